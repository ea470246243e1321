"""A long sampling run in segments, each of them one program, so that it can be interrupted and resumed.

After a segment the client fetches the sample and stores it, and an interrupted run begins again from there. One person plays
all roles here: in earnest the client gets the last sample alone, because the samples on the way are answers of the model to
questions that nobody should be able to ask (see `cipherdm.bench.trajectory`). The parties learn nothing by it. Between two
segments of the same process the sample stays on the parties as shares.
"""

# FROM cipherdm.views.segments:
# A long sampling run in segments: secure beside plaintext, likeness on the way, and what each segment took.

import hashlib
import io
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cipherdm.cli.options import ModelArgument
from cipherdm.engine import LocalCluster, Session, compile_plan, sum_totals
from cipherdm.errors import CipherDMError
from cipherdm.files import replacing, root
from cipherdm.likeness import psnr
from cipherdm.models import UNet, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, FAST, Protocols, named
from cipherdm.records import environment
from cipherdm.sampling import Task, engine_for, make_task, sampling_nodes
from cipherdm.sampling.steps import setup_graph, step_graph
from cipherdm.views.pictures import grey_levels
from cipherdm.views.style import PALETTE, describe, new_figure

from .commands import ProtocolsOption, RecordOption, record_path
from .target import MODELS, TINY, Check, Command, Target, field, mean_of
from .trajectory import read_with_pictures, write

_COMMAND = "cipherdm bench segments MODEL"

# The arrays of a task that have a row for each step, with the axis of the steps.
_STEP_AXES = {
    "step_table": 0, "class_table": 1, "class_rows": 1, "noise": 0, "coefficients": 0, "prediction": 0, "timesteps": 0,
}  # fmt: skip


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


def segments_figure(record: Mapping[str, Any], samples: np.ndarray, columns: int = 5) -> Figure:
    """The samples at a few ends of segments, plaintext above secure, then PSNR and seconds a step over the run.

    Args:
        record: of `cipherdm bench segments`.
        samples: uint8 [2, segments + 1, B, C, H, W], plaintext and secure.
        columns: how many moments are shown, the noise and the end among them.
    """
    rows, pictures = record["rows"], samples.shape[2]
    ends = np.array([row["first"] + row["steps"] for row in rows])
    moments = np.unique(np.linspace(0, len(rows), columns).round().astype(int))
    figure = new_figure(8.0, 1.05 + 1.5 * pictures + 2.4)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5 * pictures + 0.6, 2.6))
    _draw_moments(above, record, samples, moments, ends)
    likeness, speed = below.subplots(1, 2)
    psnr = np.array([row["psnr_db"] for row in rows])
    for index, values in enumerate(psnr.T):
        likeness.plot(ends, values, marker=".", color=PALETTE[index % len(PALETTE)], label=_name(record, index))
    likeness.set(xlabel="step", ylabel="PSNR to plaintext in dB")
    likeness.legend(fontsize=8, frameon=False)
    times = [row["seconds"] / row["steps"] for row in rows]
    speed.step(
        [row["first"] for row in rows] + [ends[-1]], [*times, times[-1]], where="post", color=PALETTE[2], linewidth=2
    )
    speed.set(xlabel="step", ylabel="seconds a step", ylim=(0, 1.15 * max(times)))
    for axis in (likeness, speed):
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(color="#dddddd")
    return describe(
        figure,
        f"{pictures} pictures of {record['model']} in {record['steps']} steps of {record['scheduler'].upper()} under "
        f"{record['protocols']}: from noise to digits, in plaintext and on shares, at steps {_steps(moments, ends)}. Below, "
        f"the PSNR of the secure samples to the plaintext ones falls from {psnr[0].min():.0f} dB to "
        f"{', '.join(f'{value:.1f}' for value in psnr[-1])} dB; a step took {min(times):.2f} to {max(times):.2f} seconds.",
    )


def _draw_moments(
    figure, record: Mapping[str, Any], samples: np.ndarray, moments: np.ndarray, ends: np.ndarray
) -> None:
    pictures = samples.shape[2]
    axes = figure.subplots(2 * pictures, len(moments), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for picture in range(pictures):
        for way, text in enumerate(("plaintext", "secure")):
            line = axes[2 * picture + way]
            line[0].set_ylabel(f"{_name(record, picture)},\n{text}", fontsize=9, rotation=0, ha="right", va="center")
            for axis, moment in zip(line, moments, strict=True):
                axis.imshow(samples[way, moment, picture, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                if way and moment:
                    axis.set_xlabel(f"{record['rows'][moment - 1]['psnr_db'][picture]:.1f} dB", fontsize=8, labelpad=2)
    for axis, moment in zip(axes[0], moments, strict=True):
        axis.set_title(f"step {ends[moment - 1]}" if moment else "noise", fontsize=9)


def _name(record: Mapping[str, Any], index: int) -> str:
    labels = record["labels"]
    return f"label {labels[index]}" if labels else f"picture {index + 1}"


def _steps(moments: np.ndarray, ends: np.ndarray) -> str:
    return ", ".join(str(ends[moment - 1] if moment else 0) for moment in moments)


def long_run(records: Path) -> Figure:
    """The long DDPM run, secure beside plaintext."""

    return segments_figure(*read(records / f"ddpm1000_{MODELS[0]}.json"))


def measure(
    model: ModelArgument,
    scheduler: Annotated[str, typer.Option(help="ddim or ddpm.")] = "ddpm",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 1000,
    segment: Annotated[int, typer.Option(help="Steps in one program.", min=1)] = 50,
    batch: Annotated[int, typer.Option(help="Images; labels go through the model's classes.", min=1)] = 2,
    protocols: ProtocolsOption = "fast",
    seed: Annotated[int, typer.Option(help="Seed of the client's noise.")] = 0,
    keep: Annotated[
        Path | None, typer.Option(help="Folder of finished segments; runs/segments/RECORD by default.")
    ] = None,
    record: RecordOption = None,
) -> None:
    """Sample a long schedule on three parties in segments, beside plaintext from the same noise; can be resumed.

    After each segment the client fetches the sample and stores it, which it does for resuming alone. The images go into
    an .npz file beside the record.
    """
    folder = find_model(model)
    path = record_path(record, f"{scheduler}{steps}_{folder.resolve().name}")
    keep = keep or root() / "runs" / "segments" / path.stem
    unet = load_unet(folder)
    classes = unet.config.num_class_embeds
    images = {"count": batch} if classes is None else {"labels": [index % classes for index in range(batch)]}
    settings = {"scheduler": scheduler, "steps": steps, "length": segment, "seed": seed, **images}
    with ProgressBar("run") as bar:
        found, samples = run(unet, keep, protocols=named(protocols), progress=bar, **settings)
    beside = write(path, found, {"samples": samples})
    typer.echo(f"{summary(found)}\nWrote {path} and {', '.join(map(str, beside))}.")


TARGET = Target(
    "ddpm-1000",
    "The whole DDPM schedule of 1000 steps under fast",
    "a full DDPM run on shares gives the plaintext pictures, in the time of 1000 steps",
    "ours",
    (
        Command(
            f"ddpm1000_{TINY}",
            ("bench", "segments", TINY, "--scheduler", "ddpm"),
            ("--steps", "1000", "--segment", "50"),
            ("--steps", "20", "--segment", "10"),
            resumes=True,
        ),
    ),
    (
        Check("mean PSNR to plaintext", 26.9, 5, mean_of(f"ddpm1000_{TINY}", "psnr_db"), 5, unit=" dB"),
        Check("GB of all parties", 50.7, 0.2, field(f"ddpm1000_{TINY}", "bytes", factor=1e-9), unit=" GB"),
    ),
    long_run,
)
