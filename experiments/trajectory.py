"""Sampling recorded step by step, on three parties and in plaintext from the same noise: images, likeness, costs.

For the record the client fetches the sample and the predicted noise after every step. The parties learn nothing by that, but
the client learns more than it should: every sample with its predicted noise is an answer of the model to a chosen question, and
many of them reveal its weights. In production, parties hand out the last sample only, which `cipherdm.sample` fetches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from cipherdm.cli.options import ModelArgument, SchedulerOption
from cipherdm.costs import Network, latency
from cipherdm.engine import TOTALS, CostReport, Graph, LocalCluster, Session, compile_plan
from cipherdm.likeness import grey_levels, psnr
from cipherdm.models import UNet, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, FAST, Protocols, named
from cipherdm.protocols.fixed import decode
from cipherdm.records import load_average
from cipherdm.sampling import Task, engine_for, make_task, plaintext_steps
from cipherdm.sampling.rings import walking_of
from cipherdm.sampling.sample import at_step
from cipherdm.sampling.steps import COEFFICIENT_BITS, StepShape, setup_graph, step_graph

from . import recording
from .commands import ProtocolsOption, RecordOption, record_path, silent
from .variants import labels_or_count


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run, step by step, with everything fetched."""

    samples: np.ndarray  # the initial noise, then the sample after each step, float32 [steps + 1, B, C, H, W]
    predicted: np.ndarray  # the image that each step predicts from its sample, float32 [steps, B, C, H, W]
    setup: CostReport | None = None  # on parties, without fetching: of what precedes the first step, then of each step
    costs: tuple[CostReport, ...] = ()


def follow_plaintext(task: Task) -> Trajectory:
    """Sample in plaintext, with the functions of the task's protocols. The task must be made with `ring=False`."""
    steps = plaintext_steps(task, recorded_step(task.shape))
    found = [(np.asarray(values["sample"]), np.asarray(values["eps"])) for values in steps]
    return Trajectory(*_samples_and_predictions(task, found))


def follow_secure(task: Task, session: Session, progress: Progress = silent) -> Trajectory:
    """Sample on three parties, one program per step, and fetch the sample and the predicted noise after each.

    The task must be made with `ring=True`, and the session with the task's engine. No variables are left on the session.
    """
    specs, kept = dict(task.specs), set(task.specs)
    setup, step = setup_graph(task.shape), recorded_step(task.shape)
    steps = [at_step(step.as_node(), index) for index in range(task.shape.steps)]
    walking = walking_of(task, [*(() if setup is None else setup.nodes), *steps])
    setup_cost, costs, found = None, [], []
    try:
        task.share(session)
        if setup is not None:
            plan = compile_plan(setup.nodes, specs, keep=setup.outputs, walking=walking)
            kept.update(setup.outputs)
            specs |= plan.outputs
            setup_cost = session.run(plan)
        for index, node in enumerate(steps):
            progress(index, len(steps), f"step {index + 1} of {len(steps)}")
            plan = compile_plan([node], specs, keep=step.outputs, walking=walking)
            kept.update(step.outputs)
            costs.append(session.run(plan))
            found.append((session.reveal("sample"), session.reveal("eps")))
    finally:
        if not session.closed:
            session.delete(kept)
    return Trajectory(*_samples_and_predictions(task, found), setup_cost, tuple(costs))


def recorded_step(shape: StepShape) -> Graph:
    """Return a denoising step that also keeps "eps", the model's output, which costs the parties no message."""
    graph = step_graph(shape)
    return replace(graph, outputs=(*graph.outputs, "eps"))


def _samples_and_predictions(task: Task, found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return samples [steps + 1, B, C, H, W] and predicted images [steps, B, C, H, W] from each step's sample and noise."""
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
    progress: Progress = silent,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Sample on three parties and in plaintext from the same noise. Return the record and its images, for `recording.write`."""
    settings = {**labels_or_count(unet, batch), "scheduler": scheduler, "steps": steps, "eta": eta, "seed": seed}
    load = load_average()
    task = make_task(unet, protocols=protocols, **settings)
    with LocalCluster() as cluster:
        session = cluster.session(engine_for(protocols))
        secure = follow_secure(task, session, progress)
        memory = session.peak_memory()
    exact, emulated = (
        follow_plaintext(make_task(unet, protocols=chosen, ring=False, **settings)) for chosen in (DIRECT, protocols)
    )
    timesteps = np.ravel(task.public["timesteps"])
    record = {
        "benchmark": "trajectory",
        "model": "" if unet.folder is None else unet.folder.resolve().name,
        "protocols": protocols.name,
        "granularity": "step",
        **settings,
        "load_before": load,
        "peak_memory": memory,
        "setup": dict.fromkeys(TOTALS, 0) if secure.setup is None else secure.setup.totals(),
        "rows": [
            {
                "step": step,
                "timestep": int(timestep),
                **cost.totals(),
                "secure_to_exact": psnr(secure.samples[step], exact.samples[step]),
                "emulated_to_exact": psnr(emulated.samples[step], exact.samples[step]),
                "secure_to_emulated": psnr(secure.samples[step], emulated.samples[step]),
                "predicted_to_exact": psnr(secure.predicted[step - 1], exact.predicted[step - 1]),
            }
            for step, (timestep, cost) in enumerate(zip(timesteps, secure.costs, strict=True), start=1)
        ],
    }
    kinds = ("samples", "predicted")
    return record, {kind: grey_levels(np.stack([getattr(run, kind) for run in (exact, secure)])) for kind in kinds}


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded run: the record, and grey levels of 0 to 255 for values of -1 to 1, clipped, plaintext and secure.

    Samples, with the noise before the first step, are [2, steps + 1, B, C, H, W], predicted images [2, steps, B, C, H, W].
    """

    about: Mapping[str, Any]
    samples: np.ndarray
    predicted: np.ndarray

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return len(self.about["rows"])

    @property
    def name(self) -> str:
        """Model, protocols, scheduler and steps, in a few words."""
        about = self.about
        return f"{about['model']}, {about['protocols']}, {about['scheduler'].upper()}-{about['steps']}"

    def likeness(self, pair: str) -> np.ndarray:
        """Return the PSNR in dB [steps, B] of one run to another from the same noise, after each step.

        The pairs are "secure_to_exact", "emulated_to_exact", "secure_to_emulated", and "predicted_to_exact" of secure
        predicted images. Emulated runs are in plaintext with the functions of the protocols.
        """
        return np.array([row[pair] for row in self.about["rows"]])

    def so_far(self, quantity: str) -> np.ndarray:
        """Return the "seconds", "bytes", "sends", "rounds" or "path_bytes" spent up to the end of each step, [steps + 1]."""
        parts = [self.about["setup"], *self.about["rows"]]
        return np.cumsum([part[quantity] for part in parts], dtype=np.float64)

    def seconds_over(self, network: Network) -> np.ndarray:
        """Return the seconds up to the end of each step over a network, by the latency model, [steps + 1]."""
        seconds, rounds, size = (self.so_far(quantity) for quantity in ("seconds", "rounds", "path_bytes"))
        return latency(seconds, rounds, size, network).seconds


def read(path: str | Path) -> Recording:
    """Read a recorded run. Raises CipherDMError as `recording.read`."""
    about, images = recording.read(path, "cipherdm bench trajectory MODEL --scheduler NAME")
    return Recording(about, **images)


def table(recording: Recording) -> pd.DataFrame:
    """Return a row for each step: timestep, cost, and median PSNR of the samples in dB."""
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
    written = recording.write(path, *found)
    typer.echo(f"{table(read(path)).to_string(float_format='{:.4g}'.format)}\n{written}")
