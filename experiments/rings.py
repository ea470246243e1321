"""Rings by value: what a step costs, and what an image loses, by the significant bits that factors of products keep.

Bytes and rounds are exact functions of a plan, and the plan's program is read in the clear, so only FAST needs parties.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from cipherdm.cli.options import ModelArgument
from cipherdm.engine import LocalCluster, Plan, Walking, compile_plan
from cipherdm.kernels.ring_program import WalkPlan, computed
from cipherdm.kernels.rings import Made, costs, made_by
from cipherdm.likeness import grey_levels, psnr
from cipherdm.models import UNet, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, FAST, FAST_64, FAST_RINGS
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS
from cipherdm.sampling import Task, make_task, sample, sampling_nodes
from cipherdm.sampling.rings import walking_of

from . import recording
from .commands import RecordOption, parse_numbers, record_path, silent

SIGNIFICANT = tuple(range(8, 19))


@dataclass(frozen=True, eq=False)
class Rings:
    """A recorded run: the record, and images uint8 [1 + rows, C, H, W], that of the exact functions first."""

    about: Mapping[str, Any]
    pictures: np.ndarray

    @property
    def step(self) -> list[Made]:
        """What the operations of the recorded step make."""
        rows = (line.split() for line in self.about["operations"])
        return [Made(kind, int(bits), int(numbers)) for kind, bits, numbers in rows]

    @property
    def significant(self) -> dict[int, int]:
        """Place of each number of significant bits among the rows."""
        rows = enumerate(self.about["rows"])
        return {row["significant_bits"]: place for place, row in rows if row["significant_bits"] is not None}


def run(
    unet: UNet,
    cluster: LocalCluster,
    significant: Sequence[int] = SIGNIFICANT,
    *,
    label: int | None = None,
    steps: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plan an image for each number of significant bits; return the record and its images, for `recording.write`.

    Rows are `fast` on three parties, `fast-64`, and rings by value. "bytes" of all parties, without heads of messages, and
    "rounds" are those of the whole run. "bits" counts the numbers of a step by the bits of their ring. "operations" is the
    step that FAST_RINGS plans: what each operation makes, its bits, how many numbers. PSNR is that to the image of the exact
    functions, and to that of `fast-64`, from which rings by value differ by their bits alone.
    """
    settings = {"labels": None if label is None else [label], "steps": steps, "seed": seed}
    exact = sample(unet, None, protocols=DIRECT, **settings).images
    total = len(significant) + 3
    progress(0, total, FAST.name)
    fast = sample(unet, cluster, protocols=FAST, **settings)
    rows = [{"name": FAST.name, "significant_bits": None, "bytes": fast.cost.bytes, "rounds": fast.cost.rounds}]
    images, operations = [exact, fast.images], []
    task = make_task(unet, protocols=FAST_RINGS, **settings)
    nodes = sampling_nodes(task.shape, "step")
    progress(1, total, "sizes of numbers")
    walking = walking_of(task, nodes)
    for place, bits in enumerate((None, *significant)):
        name = FAST_64.name if bits is None else f"{bits} bits"
        progress(2 + place, total, name)
        chosen = Walking(ENGINE_FRACTION_BITS) if bits is None else replace(walking, significant_bits=bits)
        plan = compile_plan(nodes, task.specs, keep=["sample"], walking=chosen)
        walks = [WalkPlan.from_json(call.program.code.decode()) for call in plan.calls]
        rows.append({"name": name, "significant_bits": bits} | _row(walks))
        images.append(in_the_clear(plan, walks, task))
        if bits == FAST_RINGS.significant_bits:
            operations = [f"{made.kind} {made.bits} {made.numbers}" for made in made_by(walks[-1])]
    for row, image in zip(rows, images[1:], strict=True):
        row["psnr_db"], row["psnr_to_fast_64_db"] = psnr(image, exact)[0], psnr(image, images[2])[0]
    record = {
        "benchmark": "rings",
        "model": unet.folder.resolve().name,
        "scheduler": "ddim",
        "label": label,
        "steps": steps,
        "seed": seed,
        "rows": rows,
        "operations": operations,
    }
    return record, {"pictures": np.concatenate([grey_levels(image) for image in images])}


def _row(walks: Sequence[WalkPlan]) -> dict[str, Any]:
    """Return the costs of a run, and of its last step the truncations that are cuts or local, and numbers by bits."""
    sent, rounds = np.sum([costs(walk) for walk in walks], axis=0).tolist()
    found, bits = Counter(), Counter()
    for made in made_by(walks[-1]):
        found[made.kind] += 1
        bits[made.bits] += made.numbers
    truncations = {"cuts": found["cut"], "local_truncations": found["local"]}
    return {"bytes": sent, "rounds": rounds} | truncations | {"bits": {str(of): bits[of] for of in sorted(bits)}}


def in_the_clear(plan: Plan, walks: Sequence[WalkPlan], task: Task) -> np.ndarray:
    """Return the images of a plan whose programs are read on words in the clear, where truncations are to the nearest."""
    arrays = task.owner | task.client | task.public
    words = {name: _words(np.asarray(array)) for name, array in arrays.items()}
    for call, walk in zip(plan.calls, walks, strict=True):
        results = {}
        for number, array in computed(walk.program, [words[name] for name in call.inputs]):
            if number in walk.program.outputs:
                results[number] = array
        words |= {name: results[number] for name, number in zip(call.outputs, walk.program.outputs, strict=True)}
    return task.decoded((words["sample"] * 2.0**-ENGINE_FRACTION_BITS).astype(np.float32))


def _words(array: np.ndarray) -> np.ndarray:
    """Return the words that the engine makes of an array."""
    if array.dtype.kind == "i":
        return array.astype(np.int64)
    return np.round(array.astype(np.float64) * 2.0**ENGINE_FRACTION_BITS).astype(np.int64)


def read(path: str | Path) -> Rings:
    """Read a recorded run. Raises CipherDMError as `recording.read`."""
    about, images = recording.read(path, "cipherdm bench rings")
    return Rings(about, **images)


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each way to compute: MB and rounds of a step, truncations that send and that do not, PSNR."""
    frame, steps = pd.DataFrame(record["rows"]).set_index("name"), record["steps"]
    columns = {"MB per step": frame["bytes"] / steps / 1e6, "rounds per step": frame["rounds"] / steps}
    columns |= {"cuts": frame["cuts"], "local truncations": frame["local_truncations"], "PSNR in dB": frame["psnr_db"]}
    columns |= {"PSNR to fast-64": frame["psnr_to_fast_64_db"]}
    return pd.DataFrame(columns)


def measure(
    model: ModelArgument = "mnist01-tiny",
    significant: Annotated[str, typer.Option(help="Significant bits: one or several numbers, with commas between.")] = (
        ",".join(map(str, SIGNIFICANT))
    ),
    label: Annotated[int | None, typer.Option(help="Class of the image, for models with classes.")] = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Plan rings by value for several numbers of significant bits: bytes, rounds, and the image that comes of it.

    The images go into an .npz file beside the record.
    """
    folder = find_model(model)
    path = record_path(record, f"rings_{folder.resolve().name}")
    chosen = parse_numbers(significant, "--significant")
    with LocalCluster() as cluster, ProgressBar("plan") as bar:
        found, images = run(load_unet(folder), cluster, chosen, label=label, steps=steps, seed=seed, progress=bar)
    typer.echo(f"{table(found).to_string(float_format='{:.4g}'.format)}\n{recording.write(path, found, images)}")
