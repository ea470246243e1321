"""Does the promise hold? An audit of the step with and without planted faults, and membership inference on trained models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure

from cipherdm.datasets import load_mnist
from cipherdm.private import ClippedSums, PrivateStep, audit_step
from cipherdm.progress import Progress, ProgressBar
from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .commands import RecordOption, finish, record_path, silent
from .markdown import markdown, records_named
from .target import Check, Command, Records, Target, Value

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


def run(public: str, steps: int | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Audit all steps, and attack trainings that began with the model `public`; return the record.

    The trainings take `steps` steps, or as many as show something.
    """
    from .training.export import trained
    from .training.private_digits.draw import load_model
    from .training.private_digits.membership import MEMBERS, STAGES, membership
    from .training.private_digits.recipe import PRIVATE_DIGITS

    audits = []
    for done, (name, step) in enumerate(STEPS.items()):
        progress(done, 2 * len(STEPS), f"audit: {name}")
        audits.append({"step": name, "shown": [audited(step, seed) for seed in SEEDS]})
    digits = load_mnist("train")
    rows = np.random.default_rng(0).permutation(len(digits))[: 2 * MEMBERS]

    def second_half(done: int, total: int, label: str) -> None:
        progress(total + done, 2 * total, f"membership: {label}")

    stages = STAGES if steps is None else {name: stage.shortened(steps) for name, stage in STAGES.items()}
    attacked = membership(
        PRIVATE_DIGITS["glyphs-dp10"],
        load_model(trained(public)),
        digits.images[rows],
        digits.labels[rows],
        stages=stages,
        progress=second_half,
    )
    return {"benchmark": "private-audit", "epsilon": EPSILON, "audits": audits, "members": MEMBERS, "attacks": attacked}


def most(epsilon: float, delta: float, rate: np.ndarray) -> np.ndarray:
    """Return the largest true positive rate that (epsilon, delta) allows at these false positive rates.

    Source: Kairouz, Oh and Viswanath, ICML 2015, theorem 2.1.
    """
    return np.clip(np.minimum(np.exp(epsilon) * rate + delta, 1 - np.exp(-epsilon) * (1 - delta - rate)), 0, 1)


def audit_table(measurements: Path) -> str:
    """Return what audits show of a promise of 1, for each step, as Markdown."""
    record = _record(measurements)
    rows = [
        [row["step"], *(f"{shown:.2f}" for shown in row["shown"]), "within" if max(row["shown"]) < EPSILON else "found"]
        for row in record["audits"]
    ]
    return markdown(["step", *(f"seed {seed}" for seed in SEEDS), f"promise of {EPSILON:g}"], rows)


def membership_table(measurements: Path) -> str:
    """Return how well members can be told from others, as Markdown."""
    rows = []
    for row in _record(measurements)["attacks"]:
        low, high = row["auc_interval"]
        bound = "-" if row["epsilon"] is None else f"{most(row['epsilon'], row['delta'], np.array(0.01)):.0%}"
        rows.append(
            [
                row["name"],
                f"{row['steps']:,}",
                f"{row['auc']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{row['roc'][1]:.1%}",
                bound,
            ]
        )
    header = [
        "training",
        "steps",
        "AUC",
        "95% interval",
        "members found, 1% of others taken for one",
        "most by the promise",
    ]
    return markdown(header, rows)


def _record(measurements: Path) -> dict[str, Any]:
    (record,) = records_named(measurements, "private_audit.json", "cipherdm bench private-audit")
    return record


def figure(records: Path) -> Figure:
    """Draw what audits show beside the promise, and the ROC of membership inference with what the promise allows."""
    record = _record(records)
    drawn = new_figure(9.6, 3.8)
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1))
    names = [row["step"] for row in record["audits"]]
    for place, row in enumerate(record["audits"]):
        colour = PALETTE[0] if max(row["shown"]) < EPSILON else PALETTE[1]
        left.plot(row["shown"], [place] * len(row["shown"]), "o", color=colour)
    left.axvline(EPSILON, color=GREY, linestyle="--")
    left.text(EPSILON, len(names) - 0.4, " promised", color=GREY, fontsize=9)
    left.set(yticks=range(len(names)), yticklabels=names, xlabel="epsilon that an audit shows at least", xlim=(0, None))
    left.set_ylim(len(names) - 0.3, -0.6)
    rates, said = np.linspace(0, 1, 101), []
    for colour, row in zip(PALETTE, record["attacks"], strict=False):
        right.plot(rates, row["roc"], color=colour, label=f"{row['name']}: AUC {row['auc']:.2f}")
        if row["epsilon"] is not None:
            bound = most(row["epsilon"], row["delta"], rates)
            right.plot(rates, bound, color=colour, linestyle=":", label=f"the most that {row['name']} allows")
        said.append(f"{row['name']} {row['auc']:.2f}")
    right.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    right.set(xlabel="others taken for members", ylabel="members found", xlim=(0, 1), ylim=(0, 1.01))
    right.legend(frameon=False, fontsize=8, loc="lower right")
    shown = "; ".join(f"{row['step']} {max(row['shown']):.2f}" for row in record["audits"])
    return describe(
        drawn,
        f"What audits show of a promise of {EPSILON:g}: {shown}. Area under the ROC of members: {'; '.join(said)}.",
    )


TABLES = {"private_audit": audit_table, "private_membership": membership_table}


def measure(
    public: Annotated[
        str, typer.Option(help="Model that saw public data alone, with which the attacked trainings begin.")
    ] = "glyphs-public",
    steps: Annotated[int | None, typer.Option(help="Steps of the trainings that are attacked.", min=2)] = None,
    record: RecordOption = None,
) -> None:
    """Audit the private step, with and without planted faults, and attack trainings on 500 images by membership inference."""
    with ProgressBar("part") as bar:
        found = run(public, steps, bar)
    shown = [{"what": row["step"], "found": max(row["shown"])} for row in found["audits"]]
    shown += [{"what": f"membership, {row['name']}", "found": row["auc"]} for row in found["attacks"]]
    finish(record_path(record, "private_audit"), found, pd.DataFrame(shown))


def _shown(records: Records, right: bool) -> list[list[float]]:
    return [row["shown"] for row in records["private_audit"]["audits"] if (row["step"] == "as it is") == right]


def _area(name: str) -> Value:
    def value(records: Records) -> float:
        (row,) = (row for row in records["private_audit"]["attacks"] if row["name"] == name)
        return row["auc"]

    return value


TARGET = Target(
    "private-audit",
    "What audits of the private step show, and membership inference",
    "an audit refutes each step with a fault, and never the right one; members hide behind eps 10, and not without it",
    "ours",
    (Command("private_audit", ("bench", "private-audit"), (), ("--steps", "20")),),
    (
        Check(
            "epsilon shown of the right step", EPSILON, 0, lambda r: max(map(max, _shown(r, True))), 0, 2, bound="most"
        ),
        Check(
            "of the fault that shows least", EPSILON, 0, lambda r: min(map(min, _shown(r, False))), 0, 2, bound="least"
        ),
        Check("AUC of members, no privacy", 0.9, 0.03, _area("no privacy"), None, 2, bound="least"),
        Check("AUC of members, eps 10", 0.55, 0.03, _area("eps 10"), 0.05, 2, bound="most"),
    ),
    figure,
    order=108,
)
