"""Sampling recorded step by step, on three parties and in plaintext from the same noise: pictures, likeness, costs.

For the recording one person plays all roles, and the client fetches the sample and the predicted noise after every step. The
parties learn nothing by that, since they send shares that they hold anyway. The client learns more than it should: every
sample with its predicted noise is an answer of the model to a chosen question, and many of them tell about the weights. In
earnest, parties that serve a model owner hand out the last sample alone, which is what `cipherdm.sample` fetches.
"""

# FROM cipherdm.bench.recording:
# Records of sampling step by step: what `bench.trajectory` measured, with its pictures beside it, written and read.

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import pandas as pd
import typer

from cipherdm.cli.options import ModelArgument, SchedulerOption
from cipherdm.costs import Network, latency
from cipherdm.engine import TOTALS, CostReport, Graph, LocalCluster, Node, Session, compile_plan
from cipherdm.errors import CipherDMError
from cipherdm.files import replacing
from cipherdm.likeness import psnr
from cipherdm.models import UNet, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, FAST, Protocols, named
from cipherdm.protocols.fixed import decode
from cipherdm.records import read_record, write_record
from cipherdm.sampling import Task, engine_for, make_task
from cipherdm.sampling.steps import COEFFICIENT_BITS, StepShape, setup_graph, step_graph
from cipherdm.views.pictures import grey_levels

from .commands import ProtocolsOption, RecordOption, record_path


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run, step by step, as somebody sees it who fetches everything.

    Attributes:
        samples: float32 [steps + 1, B, C, H, W]: the initial noise, then the sample after each step.
        predicted: float32 [steps, B, C, H, W]: the picture that each step believes its sample to come from.
        setup: what came before the first step cost the parties; None in plaintext, or if there was nothing.
        costs: what each step cost the parties, without fetching; empty in plaintext.
    """

    samples: np.ndarray
    predicted: np.ndarray
    setup: CostReport | None = None
    costs: tuple[CostReport, ...] = ()


def follow_plaintext(task: Task) -> Trajectory:
    """Sample in plaintext, with the functions of the task's protocols. The task must be made with `ring=False`."""
    values = task.owner | task.client | task.public
    setup, step = setup_graph(task.shape), recorded_step(task.shape)
    if setup is not None:
        values.update(zip(setup.outputs, setup(*(values[name] for name in setup.inputs)), strict=True))
    call = jax.jit(step.__call__)
    found = []
    for index in range(task.shape.steps):
        values["step"] = values[f"step.{index}"]
        values.update(zip(step.outputs, call(*(values[name] for name in step.inputs)), strict=True))
        found.append((np.asarray(values["sample"]), np.asarray(values["eps"])))
    return Trajectory(*_samples_and_predictions(task, found))


def follow_secure(task: Task, session: Session, progress: Progress | None = None) -> Trajectory:
    """Sample on three parties, one program a step, and fetch the sample and the predicted noise after each.

    Args:
        task: made with `ring=True`.
        session: with the task's engine, see `cipherdm.sampling.engine_for`. No variables are left on it.
        progress: told of each step.
    """
    specs, kept = dict(task.specs), set(task.specs)
    setup, step = setup_graph(task.shape), recorded_step(task.shape)
    setup_cost, costs, found = None, [], []
    try:
        task.share(session)
        if setup is not None:
            plan = compile_plan(setup.nodes, specs, keep=setup.outputs)
            kept.update(setup.outputs)
            specs |= {
                n: spec for call in plan.calls for n, spec in zip(call.outputs, call.program.outputs, strict=True)
            }
            setup_cost = session.run(plan)
        for index in range(task.shape.steps):
            if progress is not None:
                progress(index, task.shape.steps, f"step {index + 1} of {task.shape.steps}")
            plan = compile_plan([_node_at(step, index)], specs, keep=step.outputs)
            kept.update(step.outputs)
            costs.append(session.run(plan))
            found.append((session.reveal("sample"), session.reveal("eps")))
    finally:
        if not session.closed:
            session.delete(kept)
    return Trajectory(*_samples_and_predictions(task, found), setup_cost, tuple(costs))


def recorded_step(shape: StepShape) -> Graph:
    """One denoising step that also keeps "eps", the model's output. It costs the parties no message more."""
    graph = step_graph(shape)
    return replace(graph, outputs=(*graph.outputs, "eps"))


def _node_at(step: Graph, index: int) -> Node:
    node = step.as_node()
    return replace(node, inputs=tuple(f"step.{index}" if name == "step" else name for name in node.inputs))


def _samples_and_predictions(task: Task, found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """[steps + 1, B, C, H, W] and [steps, B, C, H, W] from each step's sample and predicted noise."""
    samples, eps = (np.stack([task.decoded(array) for array in arrays]) for arrays in zip(*found, strict=True))
    samples = np.concatenate([task.decoded(np.asarray(task.client["sample"]))[None], samples])
    factors = task.public["prediction"]
    if task.shape.protocols.value_bits is not None:
        factors = decode(factors, COEFFICIENT_BITS, task.shape.ring)
    factors = factors.reshape(-1, 2, *[1] * (samples.ndim - 1))
    return samples, factors[:, 0] * samples[:-1] + factors[:, 1] * eps


def run(
    unet: UNet,
    *,
    protocols: Protocols = FAST,
    scheduler: str = "ddim",
    steps: int = 20,
    batch: int = 10,
    eta: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Sample on three parties and in plaintext from the same noise; the record, and its pictures, for `recording.write`.

    Labels go through the model's classes, 0, 1, ..., again and again.

    Raises:
        CipherDMError: as `cipherdm.sample`.
    """
    classes = unet.config.num_class_embeds
    pictures = {"count": batch} if classes is None else {"labels": [index % classes for index in range(batch)]}
    settings = {**pictures, "scheduler": scheduler, "steps": steps, "eta": eta, "seed": seed}
    load = os.getloadavg()[0]
    task = make_task(unet, protocols=protocols, **settings)
    with LocalCluster() as cluster:
        session = cluster.session(engine_for(protocols))
        secure = follow_secure(task, session, progress)
        memory = session.peak_memory()
    exact, emulated = (
        follow_plaintext(make_task(unet, protocols=chosen, ring=False, **settings)) for chosen in (DIRECT, protocols)
    )
    record = {
        "benchmark": "trajectory",
        "model": "" if unet.folder is None else unet.folder.resolve().name,
        "protocols": protocols.name,
        "granularity": "step",
        **settings,
        "load_before": load,
        "peak_memory": memory,
        "setup": dict.fromkeys(TOTALS, 0) if secure.setup is None else secure.setup.totals(),
        "rows": list(_rows(task, exact, emulated, secure)),
    }
    return record, {
        "samples": np.stack([grey_levels(exact.samples), grey_levels(secure.samples)]),
        "predicted": np.stack([grey_levels(exact.predicted), grey_levels(secure.predicted)]),
    }


def _rows(task: Task, exact: Trajectory, emulated: Trajectory, secure: Trajectory) -> Iterator[dict[str, Any]]:
    timesteps = np.ravel(task.public["timesteps"])
    for index, cost in enumerate(secure.costs):
        yield {
            "step": index + 1,
            "timestep": int(timesteps[index]),
            **cost.totals(),
            "secure_to_exact": psnr(secure.samples[index + 1], exact.samples[index + 1]),
            "emulated_to_exact": psnr(emulated.samples[index + 1], exact.samples[index + 1]),
            "secure_to_emulated": psnr(secure.samples[index + 1], emulated.samples[index + 1]),
            "predicted_to_exact": psnr(secure.predicted[index], exact.predicted[index]),
        }


_REMEDY = "make it with `cipherdm bench trajectory MODEL --scheduler NAME`."

LIKENESSES = {
    "secure_to_exact": "samples on shares, against those of the exact functions in plaintext",
    "emulated_to_exact": "samples of the protocols in plaintext, against those of the exact functions",
    "secure_to_emulated": "samples on shares, against those of the same protocols in plaintext",
    "predicted_to_exact": "predicted pictures on shares, against those of the exact functions in plaintext",
}
"""Which two runs a PSNR compares, all from the same noise."""


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded run, as `read` gives it: pictures in grey levels of 0 to 255 for values of -1 to 1, clipped.

    Attributes:
        about: the record: model, protocols, scheduler, steps, labels, seed, setup, a row for each step, environment.
        samples: uint8 [2, steps + 1, B, C, H, W], plaintext and secure: the noise, and the sample after each step.
        predicted: uint8 [2, steps, B, C, H, W], plaintext and secure: each step's predicted picture.
    """

    about: Mapping[str, Any]
    samples: np.ndarray
    predicted: np.ndarray

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return len(self.about["rows"])

    @property
    def name(self) -> str:
        """Model, protocols, scheduler and steps in a few words."""
        about = self.about
        return f"{about['model']}, {about['protocols']}, {about['scheduler'].upper()}-{about['steps']}"

    def likeness(self, pair: str) -> np.ndarray:
        """PSNR in dB [steps, B] of `pair`, one of LIKENESSES."""
        return np.array([row[pair] for row in self.about["rows"]])

    def so_far(self, quantity: str) -> np.ndarray:
        """float64 [steps + 1]: "seconds", "bytes", "sends", "rounds" or "path_bytes" spent up to the end of each step."""
        parts = [self.about["setup"], *self.about["rows"]]
        return np.cumsum([part[quantity] for part in parts], dtype=np.float64)

    def seconds_over(self, network: Network) -> np.ndarray:
        """float64 [steps + 1]: seconds up to the end of each step over a network, by the latency model."""
        seconds, rounds, size = (self.so_far(quantity) for quantity in ("seconds", "rounds", "path_bytes"))
        return latency(seconds, rounds, size, network).seconds


def write(path: str | Path, record: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> tuple[Path, ...]:
    """Write a record as JSON and its pictures beside it, an .npz file for each kind; returns the pictures' paths.

    Pictures are uint8 [n, ...], plaintext ones first. The others are stored as their difference from those, modulo 256, which
    compresses well.
    """
    path = Path(path)
    files, paths = {}, []
    for kind, levels in pictures.items():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, plaintext=levels[0], difference=levels[1:] - levels[0])
        beside = path.with_name(f"{path.stem}_{kind}.npz")
        with replacing(beside) as temporary:
            temporary.write_bytes(buffer.getvalue())
        files[kind] = {"file": beside.name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        paths.append(beside)
    write_record(path, {**record, "pictures": files})
    return tuple(paths)


def read(path: str | Path) -> Recording:
    """Read what `write` wrote.

    Raises:
        CipherDMError: there is no such record, or its pictures are missing or of another run.
    """
    return Recording(**read_with_pictures(path, _REMEDY))


def read_with_pictures(path: str | Path, remedy: str) -> dict[str, Any]:
    """A record that `write` wrote as "about", and its pictures by kind, uint8 [n, ...].

    Raises:
        CipherDMError: there is no such record, or its pictures are missing or of another run; with the remedy.
    """
    path = Path(path)
    if not path.exists():
        raise CipherDMError(f"there is no record {path}: {remedy}")
    about = read_record(path)
    return {"about": about} | {kind: _pictures(path, named, remedy) for kind, named in about["pictures"].items()}


def _pictures(path: Path, named: Mapping[str, str], remedy: str) -> np.ndarray:
    beside = path.with_name(named["file"])
    content = beside.read_bytes() if beside.exists() else b""
    if hashlib.sha256(content).hexdigest() != named["sha256"]:
        raise CipherDMError(f"{beside} is missing or does not belong to {path.name}: {remedy}")
    with np.load(io.BytesIO(content)) as stored:
        first, difference = stored["plaintext"], stored["difference"]
        return np.concatenate([first[None], first + difference.reshape(-1, *first.shape)])


def table(recording: Recording) -> pd.DataFrame:
    """A row for each step: timestep, median PSNR of the samples in dB, and what it cost the parties."""
    frame = pd.DataFrame(recording.about["rows"]).set_index("step")
    medians = {"PSNR": np.median(recording.likeness("secure_to_exact"), axis=1)}
    return frame[["timestep", "seconds", "bytes", "sends", "rounds"]].assign(**medians)


def measure(
    model: ModelArgument,
    scheduler: SchedulerOption = "ddim",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20,
    batch: Annotated[int, typer.Option(help="Images; labels go through the model's classes.", min=1)] = 10,
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: ProtocolsOption = "fast",
    seed: Annotated[int, typer.Option(help="Seed of the client's noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Record sampling step by step, on three parties and in plaintext from the same noise: images, PSNR, costs.

    The client fetches the sample after every step, which it does for the record alone. The images go into .npz files
    beside the record.
    """
    folder = find_model(model)
    path = record_path(record, f"trajectory_{folder.resolve().name}_{scheduler}")
    settings = {"scheduler": scheduler, "steps": steps, "batch": batch, "eta": eta, "seed": seed}
    with ProgressBar("run") as bar:
        found = run(load_unet(folder), protocols=named(protocols), progress=bar, **settings)
    beside = write(path, *found)
    typer.echo(table(read(path)).to_string(float_format="{:.4g}".format))
    typer.echo(f"Wrote {path} and {', '.join(map(str, beside))}.")
