"""A long sampling run in segments, each of them one program, so that it can be interrupted and resumed.

After a segment the client fetches the sample and stores it, and an interrupted run begins again from there. One person plays
all roles here: in earnest the client gets the last sample alone, because the samples on the way are answers of the model to
questions that nobody should be able to ask (see `cipherdm.bench.trajectory`). The parties learn nothing by it. Between two
segments of the same process the sample stays on the parties as shares.
"""

import hashlib
import io
import json
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..bench.recording import grey_levels, read_with_pictures
from ..comparison import psnr
from ..engine import LocalCluster, Session, compile_plan, sum_totals
from ..errors import CipherDMError
from ..files import replacing
from ..models import UNet
from ..protocols import DIRECT, FAST, Protocols
from ..records import environment
from ..sampling import Task, engine_for, make_task, sampling_nodes
from ..sampling.steps import setup_graph, step_graph

_COMMAND = "cipherdm bench segments MODEL"
# The arrays of a task that have a row for each step, with the axis of the steps.
_STEP_AXES = {
    "step_table": 0, "class_table": 1, "class_rows": 1, "noise": 0, "coefficients": 0, "prediction": 0, "timesteps": 0,
}  # fmt: skip

Progress = Callable[[int, int, str], None]
"""Called before each segment as `progress(done, total, name)`."""


@dataclass(frozen=True, eq=False)
class Finished:
    """A segment that has been run.

    Attributes:
        sample: float32 [B, C, H, W], the sample after it, as the parties hold it (`Task.decoded` gives its values).
        row: what it cost: steps, seconds, bytes, sends, rounds, path_bytes, peak_memory, load_before; and the commit of the
            code that ran it.
    """

    sample: np.ndarray
    row: dict[str, Any]


def segment(task: Task, first: int, steps: int) -> Task:
    """The steps from `first` on as a task of its own. Segments of equal length have equal programs, compiled once."""

    def cut(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: np.take(array, range(first, first + steps), _STEP_AXES[name]) if name in _STEP_AXES else array
            for name, array in values.items()
        }

    public = {name: array for name, array in task.public.items() if not name.startswith("step.")}
    numbers = {f"step.{index}": np.int32(index) for index in range(steps)}
    shape = replace(task.shape, steps=steps)
    return Task(shape, cut(task.owner), cut(task.client), cut(public) | numbers)


def bounds(steps: int, length: int) -> list[tuple[int, int]]:
    """(first step, number of steps) of each segment. Raises CipherDMError if either number is not positive."""
    if min(steps, length) < 1:
        raise CipherDMError(f"a run of {steps} steps cannot be cut into segments of {length}: both must be positive.")
    return [(first, min(length, steps - first)) for first in range(0, steps, length)]


def run(
    unet: UNet,
    folder: Path,
    *,
    labels: Sequence[int] | None = None,
    count: int | None = None,
    scheduler: str = "ddpm",
    steps: int = 1000,
    length: int = 50,
    protocols: Protocols = FAST,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Sample on three parties in segments, and in plaintext from the same noise.

    Args:
        unet: the model.
        folder: where finished segments are kept; those that are there already are not run again.
        labels, count, scheduler, steps, protocols, seed: as of `cipherdm.sample`.
        length: steps in a segment.
        progress: told of each segment.

    Returns:
        The record, and uint8 pictures [2, segments + 1, B, C, H, W], plaintext and secure: the noise, and the sample after
        each segment.

    Raises:
        CipherDMError: as `cipherdm.sample`, or the folder holds segments of another run.
    """
    settings = {"labels": labels, "count": count, "scheduler": scheduler, "steps": steps, "seed": seed}
    parts = bounds(steps, length)
    task = make_task(unet, protocols=protocols, **settings)
    finished = _run_secure(task, parts, folder, progress)
    noise = task.decoded(np.asarray(task.client["sample"]))
    secure = np.stack([noise, *(task.decoded(part.sample) for part in finished)])
    exact, emulated = (
        np.stack([noise, *_run_plaintext(make_task(unet, protocols=chosen, ring=False, **settings), parts)])
        for chosen in (DIRECT, protocols)
    )
    record = {
        "benchmark": "segments",
        "model": "" if unet.folder is None else unet.folder.resolve().name,
        "protocols": protocols.name,
        **settings,
        "segment": length,
        **_totals([part.row for part in finished]),
        "psnr_db": psnr(secure[-1], exact[-1]),
        "emulated_psnr_db": psnr(emulated[-1], exact[-1]),
        "rows": [
            {**part.row, "psnr_db": psnr(secure[index], exact[index])} for index, part in enumerate(finished, start=1)
        ],
    }
    return record, np.stack([grey_levels(exact), grey_levels(secure)])


def read(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """A record with its pictures, as `run` returns them. Raises CipherDMError if there is none, or one without pictures."""
    found = read_with_pictures(path, f"make it with `{_COMMAND}`.")
    return found["about"], found["samples"]


def summary(record: dict[str, Any]) -> str:
    """A sentence about a run: time, traffic, memory and likeness."""
    return (
        f"{record['steps']} steps for {len(record['psnr_db'])} pictures in {record['seconds'] / 60:.1f} minutes, "
        f"{record['step_seconds']:.2f} s a step ({record['step_seconds_low']:.2f} to {record['step_seconds_high']:.2f}); the "
        f"parties sent {record['bytes'] / 1e9:.1f} GB in {record['sends']:,} messages and held at most "
        f"{record['peak_memory'] / 2**20:.0f} MiB each. PSNR to exact plaintext: "
        + ", ".join(f"{value:.1f}" for value in record["psnr_db"])
        + " dB."
    )


def _run_secure(
    task: Task, parts: Sequence[tuple[int, int]], folder: Path, progress: Progress | None
) -> list[Finished]:
    """Every segment, from the folder if it is there, and otherwise on three parties."""
    files = [_SegmentFile(folder / f"segment_{first:04}.npz", _digest(task), parts[0][1]) for first, _ in parts]
    finished = [file.read() for file in files]
    missing = finished.index(None) if None in finished else len(parts)
    finished = finished[:missing]
    if missing == len(parts):
        return finished
    commit = environment()["commit"]  # now, since a long run's record is written when the checkout may have moved on
    with LocalCluster() as cluster:
        session = cluster.session(engine_for(task.shape.protocols))
        start = finished[-1].sample if finished else np.asarray(task.client["sample"])
        session.share({"sample": start})
        for index in range(missing, len(parts)):
            first, steps = parts[index]
            if progress is not None:
                progress(index, len(parts), f"steps {first + 1} to {first + steps}")
            part = _run_segment(session, segment(task, first, steps), first, index == missing)
            part.row["commit"] = commit
            files[index].write(part)
            finished.append(part)
    return finished


def _run_segment(session: Session, part: Task, first: int, warming_up: bool) -> Finished:
    """Run a segment on the "sample" that the parties hold, which it replaces."""
    nodes = sampling_nodes(part.shape, "loop")
    plan = compile_plan(nodes, part.specs, keep=["sample"])
    client = {name: array for name, array in part.client.items() if name != "sample"}
    session.share(part.owner | client)
    session.share(part.public, public=True)
    load = os.getloadavg()[0]
    cost = session.run(plan)
    row = {
        "first": first,
        "steps": part.shape.steps,
        **cost.totals(),
        "peak_memory": max(session.peak_memory()),
        "load_before": load,
        "first_of_process": warming_up,
    }
    return Finished(session.reveal("sample"), row)


def _run_plaintext(task: Task, parts: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The samples after each segment, computed here with the task's functions. The task must be made with `ring=False`."""
    values = task.owner | task.client | task.public
    setup, step = setup_graph(task.shape), step_graph(task.shape)
    if setup is not None:
        values.update(zip(setup.outputs, setup(*(values[name] for name in setup.inputs)), strict=True))
    call = jax.jit(step.__call__)
    for first, steps in parts:
        for index in range(first, first + steps):
            values["step"] = values[f"step.{index}"]
            values.update(zip(step.outputs, call(*(values[name] for name in step.inputs)), strict=True))
        yield task.decoded(np.asarray(values["sample"]))


@dataclass(frozen=True)
class _SegmentFile:
    """A finished segment on disk, with what it belongs to."""

    path: Path
    digest: str
    length: int

    def read(self) -> Finished | None:
        """The segment, or None if there is none. Raises CipherDMError if it is of another run."""
        if not self.path.exists():
            return None
        with np.load(self.path) as stored:
            about, sample = json.loads(str(stored["about"])), stored["sample"]
        if (about["digest"], about["length"]) != (self.digest, self.length):
            raise CipherDMError(
                f"{self.path} is of a run with other weights, noise or settings: delete {self.path.parent}, or choose "
                f"another folder."
            )
        return Finished(sample, about["row"])

    def write(self, part: Finished) -> None:
        """Store the segment, whole or not at all."""
        about = json.dumps({"digest": self.digest, "length": self.length, "row": part.row})
        buffer = io.BytesIO()
        np.savez(buffer, sample=part.sample, about=np.array(about))
        with replacing(self.path) as temporary:
            temporary.write_bytes(buffer.getvalue())


def _digest(task: Task) -> str:
    """Of all values of a run: weights, labels, noise, schedule."""
    digest = hashlib.sha256(task.shape.protocols.name.encode())
    for name, array in sorted((task.owner | task.client | task.public).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _totals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the segments, the most memory of a party's process, and the spread of a step's seconds over segments."""
    times = [row["seconds"] / row["steps"] for row in rows]
    return {
        **sum_totals(rows),
        "peak_memory": max(row["peak_memory"] for row in rows),
        "processes": sum(row["first_of_process"] for row in rows),
        "step_seconds": statistics.median(times),
        "step_seconds_low": min(times),
        "step_seconds_high": max(times),
    }
