"""A long sampling run in segments, each of them one program, so that it can be interrupted and resumed.

After each segment the client fetches the sample and stores it, and an interrupted run goes on from there. Between two segments
of one process the sample stays on the parties as shares. In production the client gets the last sample only, see `trajectory`.
"""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cipherdm.cli.options import ModelArgument
from cipherdm.engine import LocalCluster, compile_plan, sum_totals
from cipherdm.errors import CipherDMError
from cipherdm.files import checkout
from cipherdm.likeness import grey_levels, psnr
from cipherdm.models import UNet, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, FAST, Protocols, named
from cipherdm.records import environment, load_average
from cipherdm.sampling import Task, engine_for, make_task, plaintext_steps, sampling_nodes
from cipherdm.views.style import PALETTE, describe, new_figure

from . import recording
from .commands import KeepOption, ProtocolsOption, RecordOption, most_memory, record_path, silent
from .journal import Journal
from .recording import draw_levels, labelled_images
from .target import TINY, Check, Command, Target, field
from .variants import labels_or_count

# The arrays of a task that have a row for each step, with the axis of the steps.
_STEP_AXES = {
    "step_table": 0, "class_table": 1, "class_rows": 1, "noise": 0, "coefficients": 0, "prediction": 0, "timesteps": 0,
}  # fmt: skip


def segment(task: Task, first: int, steps: int) -> Task:
    """Return the steps from `first` on as a task of its own. Segments of equal length share one program."""

    def cut(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        chosen = range(first, first + steps)
        along = {name: np.take(values[name], chosen, axis) for name, axis in _STEP_AXES.items() if name in values}
        return values | along

    public = {name: array for name, array in task.public.items() if not name.startswith("step.")}
    numbers = {f"step.{index}": np.int32(index) for index in range(steps)}
    return Task(replace(task.shape, steps=steps), cut(task.owner), cut(task.client), cut(public) | numbers)


def bounds(steps: int, length: int) -> list[tuple[int, int]]:
    """Return (first step, number of steps) of each segment. Raises CipherDMError if either number is not positive."""
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
    progress: Progress = silent,
) -> tuple[dict[str, Any], np.ndarray]:
    """Sample on three parties in segments of `length` steps, and in plaintext from the same noise.

    Finished segments, in the folder, are not run again. All other arguments are those of `cipherdm.sample`. Return the record,
    and uint8 images [2, segments + 1, B, C, H, W], plaintext and secure: the noise, and the sample after each segment. Raises
    CipherDMError as `cipherdm.sample`, or if the folder holds segments of another run.
    """
    settings = {"labels": labels, "count": count, "scheduler": scheduler, "steps": steps, "seed": seed}
    parts = bounds(steps, length)
    task = make_task(unet, protocols=protocols, **settings)
    journal = _run_secure(task, parts, folder, progress)
    rows = journal.rows
    noise = task.decoded(np.asarray(task.client["sample"]))
    secure = np.stack([noise, *map(task.decoded, journal.arrays())])
    exact, emulated = (
        np.stack([noise, *_run_plaintext(make_task(unet, protocols=chosen, ring=False, **settings), parts)])
        for chosen in (DIRECT, protocols)
    )
    times = [row["seconds"] / row["steps"] for row in rows]
    record = {
        "benchmark": "segments",
        "model": "" if unet.folder is None else unet.folder.resolve().name,
        "protocols": protocols.name,
        **settings,
        "segment": length,
        **sum_totals(rows),
        "peak_memory": max(row["peak_memory"] for row in rows),
        "processes": sum(row["first_of_process"] for row in rows),
        "step_seconds": statistics.median(times),
        "step_seconds_low": min(times),
        "step_seconds_high": max(times),
        "psnr_db": psnr(secure[-1], exact[-1]),
        "emulated_psnr_db": psnr(emulated[-1], exact[-1]),
        "rows": [row | {"psnr_db": psnr(*pair)} for row, *pair in zip(rows, secure[1:], exact[1:], strict=True)],
    }
    return record, np.stack([grey_levels(exact), grey_levels(secure)])


def read(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Read a record with its images, as `run` returns them. Raises CipherDMError if there is none, or images are missing."""
    record, images = recording.read(path, "cipherdm bench segments MODEL")
    return record, images["samples"]


def summary(record: dict[str, Any]) -> str:
    """Return a sentence about a run: time, traffic, memory and likeness."""
    return (
        f"{record['steps']} steps for {len(record['psnr_db'])} pictures in {record['seconds'] / 60:.1f} minutes, "
        f"{record['step_seconds']:.2f} s a step ({record['step_seconds_low']:.2f} to {record['step_seconds_high']:.2f}); the "
        f"parties sent {record['bytes'] / 1e9:.1f} GB in {record['sends']:,} messages and held at most "
        f"{record['peak_memory'] / 2**20:.0f} MiB each. PSNR to exact plaintext: "
        f"{', '.join(f'{value:.1f}' for value in record['psnr_db'])} dB."
    )


def _run_secure(task: Task, parts: Sequence[tuple[int, int]], folder: Path, progress: Progress) -> Journal:
    """Return the journal of all segments, after running on three parties those that it lacks."""
    journal = Journal(folder, {"digest": _digest(task), "length": parts[0][1]})
    done = len(journal.rows)
    if done == len(parts):
        return journal
    commit = environment()["commit"]  # now, since a long run's record is written when the checkout may have moved on
    with LocalCluster() as cluster:
        session = cluster.session(engine_for(task.shape.protocols))
        session.share({"sample": journal.arrays()[-1] if done else np.asarray(task.client["sample"])})
        for index in range(done, len(parts)):
            first, steps = parts[index]
            progress(index, len(parts), f"steps {first + 1} to {first + steps}")
            part = segment(task, first, steps)
            plan = compile_plan(sampling_nodes(part.shape, "loop"), part.specs, keep=["sample"])
            # The parties hold the sample, which the segment replaces.
            session.share(part.owner | {name: array for name, array in part.client.items() if name != "sample"})
            session.share(part.public, public=True)
            load = load_average()
            row = {
                "first": first,
                "steps": steps,
                **session.run(plan).totals(),
                "peak_memory": most_memory(session.peak_memory()),
            }
            row |= {"load_before": load, "first_of_process": index == done, "commit": commit}
            journal.add(row, session.reveal("sample"))
    return journal


def _run_plaintext(task: Task, parts: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return the samples after each segment, computed here."""
    ends = {first + steps for first, steps in parts}
    samples = (step["sample"] for step in plaintext_steps(task))
    return [task.decoded(np.asarray(sample)) for done, sample in enumerate(samples, start=1) if done in ends]


def _digest(task: Task) -> str:
    """Return a digest of all values of a run: weights, labels, noise, schedule."""
    digest = hashlib.sha256(task.shape.protocols.name.encode())
    for name, array in sorted((task.owner | task.client | task.public).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def segments_figure(record: Mapping[str, Any], samples: np.ndarray, columns: int = 5) -> Figure:
    """Draw the samples at a few ends of segments, plaintext above secure, then PSNR and seconds per step over the run."""
    rows, pictures = record["rows"], samples.shape[2]
    ends = np.array([0] + [row["first"] + row["steps"] for row in rows])
    moments = np.unique(np.linspace(0, len(rows), columns).round().astype(int))
    figure = new_figure(8.0, 1.05 + 1.5 * pictures + 2.4)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5 * pictures + 0.6, 2.6))
    names = [f"label {label}" for label in record["labels"] or ()] or [f"picture {n + 1}" for n in range(pictures)]
    labels = [f"{name},\n{way}" for name in names for way in ("plaintext", "secure")]
    axes = labelled_images(above, labels, [f"step {ends[moment]}" if moment else "noise" for moment in moments])
    for line, (picture, way) in zip(axes, np.ndindex(pictures, 2), strict=True):
        for axis, moment in zip(line, moments, strict=True):
            draw_levels(axis, samples[way, moment, picture])
            if way and moment:
                axis.set_xlabel(f"{rows[moment - 1]['psnr_db'][picture]:.1f} dB", fontsize=8, labelpad=2)
    likeness, speed = below.subplots(1, 2)
    psnr = np.array([row["psnr_db"] for row in rows])
    for index, (name, values) in enumerate(zip(names, psnr.T, strict=True)):
        likeness.plot(ends[1:], values, marker=".", color=PALETTE[index % len(PALETTE)], label=name)
    likeness.set(xlabel="step", ylabel="PSNR to plaintext in dB")
    likeness.legend(fontsize=8, frameon=False)
    times = [row["seconds"] / row["steps"] for row in rows]
    speed.step(ends, [*times, times[-1]], where="post", color=PALETTE[2], linewidth=2)
    speed.set(xlabel="step", ylabel="seconds a step", ylim=(0, 1.15 * max(times)))
    for axis in (likeness, speed):
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(color="#dddddd")
    return describe(
        figure,
        f"{pictures} pictures of {record['model']} in {record['steps']} steps of {record['scheduler'].upper()} under "
        f"{record['protocols']}: from noise to digits, in plaintext and on shares, at steps "
        f"{', '.join(map(str, ends[moments]))}. Below, the PSNR of the secure samples to the plaintext ones falls from "
        f"{psnr[0].min():.0f} dB to {', '.join(f'{value:.1f}' for value in psnr[-1])} dB; a step took {min(times):.2f} to "
        f"{max(times):.2f} seconds.",
    )


def measure(
    model: ModelArgument,
    scheduler: Annotated[str, typer.Option(help="ddim or ddpm.")] = "ddpm",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 1000,
    segment: Annotated[int, typer.Option(help="Steps in one program.", min=1)] = 50,
    batch: Annotated[int, typer.Option(help="Images; labels go through the model's classes.", min=1)] = 2,
    protocols: ProtocolsOption = "fast",
    seed: Annotated[int, typer.Option(help="Seed of the client's noise.")] = 0,
    keep: KeepOption = None,
    record: RecordOption = None,
) -> None:
    """Sample a long schedule on three parties in segments, beside plaintext from the same noise; can be resumed.

    After each segment the client fetches the sample and stores it, which it does for resuming only. The images go into an
    .npz file beside the record.
    """
    folder = find_model(model)
    path = record_path(record, f"{scheduler}{steps}_{folder.resolve().name}")
    keep = keep or checkout() / "runs" / "segments" / path.stem
    unet = load_unet(folder)
    settings = {"scheduler": scheduler, "steps": steps, "length": segment, "seed": seed, **labels_or_count(unet, batch)}
    with ProgressBar("run") as bar:
        found, samples = run(unet, keep, protocols=named(protocols), progress=bar, **settings)
    typer.echo(f"{summary(found)}\n{recording.write(path, found, {'samples': samples})}")


_NAME = f"ddpm1000_{TINY}"
_LENGTHS = ("--steps", "1000", "--segment", "50"), ("--steps", "20", "--segment", "10")

TARGET = Target(
    "ddpm-1000",
    "The whole DDPM schedule of 1000 steps under fast",
    "a full DDPM run on shares gives the plaintext pictures, in the time of 1000 steps",
    "ours",
    (Command(_NAME, ("bench", "segments", TINY, "--scheduler", "ddpm"), *_LENGTHS, resumes=True),),
    (
        Check("mean PSNR to plaintext", 26.9, 5, field(_NAME, "psnr_db"), 5, unit=" dB"),
        Check("GB of all parties", 50.7, 0.2, field(_NAME, "bytes", factor=1e-9), unit=" GB"),
    ),
    lambda records: segments_figure(*read(records / f"{_NAME}.json")),
    order=60,
)
