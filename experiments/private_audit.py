"""Does the promise hold? An audit of the step with and without planted faults, and membership inference on trained models."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from cipherdm.datasets import load_mnist
from cipherdm.private import ClippedSums, PrivateStep, audit_step
from cipherdm.progress import Progress, ProgressBar

from .commands import RecordOption, finish, record_path, silent

EPSILON, SEEDS, DRAWS = 1.0, (0, 1, 2), 8


class NoNoise(PrivateStep):
    """A step that forgets the noise."""

    def noise(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.float64)


class NoiseOfTheMean(PrivateStep):
    """A step with the noise of a mean over 8 examples, on their sum."""

    def noise(self, count: int) -> torch.Tensor:
        return super().noise(count) / 8


class BatchClipped(PrivateStep):
    """A step that clips the mean gradient of a microbatch, as trainings without privacy do."""

    class sums_of(ClippedSums):
        def squared_norms(self, gradients):
            count = len(gradients[0][1].g)
            mean = [part.weighted_sum(torch.full((count,), 1 / count), parameter) for parameter, part in gradients]
            return sum(each.square().sum() for each in mean).expand(count)


class LayerLeftOut(PrivateStep):
    """A step whose norms lack all layers but one."""

    class sums_of(ClippedSums):
        def squared_norms(self, gradients):
            return super().squared_norms(gradients[:1])


class DrawsClippedApart(PrivateStep):
    """A step that clips each draw as if it were an example, and adds them up."""

    class sums_of(ClippedSums):
        def __init__(self, module, clip, draws):
            super().__init__(module, clip)
            self.each = draws

        def add(self, count, losses):
            super().add(count * self.each, losses)


STEPS: Mapping[str, Callable[..., PrivateStep]] = {
    "as it is": PrivateStep,
    "no noise": NoNoise,
    "noise of the mean": NoiseOfTheMean,
    "batch clipped": BatchClipped,
    "a layer left out of the norm": LayerLeftOut,
    "draws clipped apart": DrawsClippedApart,
}
"""Steps to audit: the library's, and five with faults that trainings have had."""


def audited(step: Callable[..., PrivateStep], seed: int) -> float:
    """Return the epsilon that an audit of a step with the promise EPSILON shows at least."""
    return audit_step(step, epsilon=EPSILON, seed=seed, draws=DRAWS if step is DrawsClippedApart else 1)


def run(public: str, progress: Progress = silent) -> dict[str, Any]:
    """Audit all steps, and attack trainings that began with the model in the folder `public`; return the record."""
    from .training.private_digits.draw import load_model
    from .training.private_digits.membership import MEMBERS, membership
    from .training.private_digits.recipe import PRIVATE_DIGITS

    audits = []
    for done, (name, step) in enumerate(STEPS.items()):
        progress(done, 2 * len(STEPS), f"audit: {name}")
        audits.append({"step": name, "shown": [audited(step, seed) for seed in SEEDS]})
    digits = load_mnist("train")
    rows = np.random.default_rng(0).permutation(len(digits))[: 2 * MEMBERS]

    def second_half(done: int, total: int, label: str) -> None:
        progress(total + done, 2 * total, f"membership: {label}")

    attacked = membership(
        PRIVATE_DIGITS["glyphs-dp10"],
        load_model(public),
        digits.images[rows],
        digits.labels[rows],
        progress=second_half,
    )
    return {"benchmark": "private-audit", "epsilon": EPSILON, "audits": audits, "members": MEMBERS, "attacks": attacked}


def measure(
    public: Annotated[
        str, typer.Option(help="Folder of the model that saw public data alone: `cipherdm train glyphs-public`.")
    ] = "runs/glyphs-public/model",
    record: RecordOption = None,
) -> None:
    """Audit the private step, with and without planted faults, and attack trainings on 500 images by membership inference."""
    with ProgressBar("part") as bar:
        found = run(public, bar)
    shown = [{"what": row["step"], "found": max(row["shown"])} for row in found["audits"]]
    shown += [{"what": f"membership, {row['name']}", "found": row["auc"]} for row in found["attacks"]]
    finish(record_path(record, "private_audit"), found, pd.DataFrame(shown))
