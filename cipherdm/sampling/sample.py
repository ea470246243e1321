"""Sampling: on three parties, or in plaintext from the same noise with the same functions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import jax
import numpy as np

from ..engine import CostReport, EngineConfig, Graph, LocalCluster, Node, Session, Spec, compile_plan
from ..errors import CipherDMError
from ..models import UNet, check_takes_no_prompt
from ..owner import prepare_weights
from ..progress import Progress
from ..protocols import DIRECT, Protocols
from ..protocols.fixed import ENGINE_FRACTION_BITS, decode
from ..schedules import make_schedule
from .roles import Values, client_values, owner_values, public_values
from .steps import Loop, StepShape, setup_graph, step_graph

Granularity = Literal["block", "step", "loop"]


@dataclass(frozen=True, eq=False)
class SamplingResult:
    """What the client holds in the end.

    Attributes:
        images: float32 [B, C, H, W], nominally in [-1, 1], not clipped.
        cost: what the run cost the parties, without sharing and revealing; None for a run in plaintext.
        peak_memory: bytes that each party's process held at most, by rank; empty for a run in plaintext.
    """

    images: np.ndarray
    cost: CostReport | None = None
    peak_memory: tuple[int, ...] = ()


def sample(
    unet: UNet,
    cluster: LocalCluster | None,
    *,
    labels: Sequence[int] | None = None,
    count: int | None = None,
    steps: int = 20,
    scheduler: str = "ddim",
    eta: float = 0.0,
    clip: bool = False,
    protocols: Protocols = DIRECT,
    seed: int = 0,
    granularity: Granularity = "block",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> SamplingResult:
    """Draw images from a diffusion model, secretly if there is a cluster.

    On a cluster the weights, the labels, all noise, every intermediate value and the images are secret-shared, and the
    images are put together here, by the client, alone. Public are the architecture, the schedule, the batch size and the
    protocols. This function plays both roles, model owner and client; `owner_values` and `client_values` keep them apart.

    Args:
        unet: the model, with its scheduler's configuration.
        cluster: three parties, or None to compute here in plaintext, from the same noise and with the same protocols:
            with DIRECT the reference, with others the emulation of a secure run.
        labels: one class a picture, for conditional models.
        count: how many pictures, for models without classes.
        steps: denoising steps.
        scheduler: "ddim", "ddpm" or "dpmsolver++".
        eta: DDIM's share of fresh noise, 0 to 1.
        clip: clip the predicted image to the data's range at every step, at the price of two comparisons a pixel.
        protocols: how nonlinear functions and layers are computed.
        seed: of the client's noise.
        granularity: what becomes one program: each "block" (costs by block), each "step", or the whole "loop".
        engine: how the parties compute; what `engine_for(protocols)` says by default.
        progress: called as `progress(done, total, label)`; only with a cluster.

    Raises:
        CipherDMError: an unknown scheduler, a number of steps or a label out of range, or a failure of the cluster.
    """
    task = make_task(
        unet,
        labels=labels,
        count=count,
        steps=steps,
        scheduler=scheduler,
        eta=eta,
        clip=clip,
        protocols=protocols,
        seed=seed,
        ring=cluster is not None,
    )
    return run_task(task, cluster, granularity=granularity, engine=engine, progress=progress)


def run_task(
    task: "Task",
    cluster: LocalCluster | None,
    *,
    granularity: Granularity = "block",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> SamplingResult:
    """Run what a task holds, on a cluster or in plaintext; the arguments are those of `sample`.

    Raises:
        CipherDMError: an unknown granularity, or a failure of the cluster.
    """
    if cluster is None:
        return SamplingResult(_run_plaintext(task))
    session = cluster.session(engine_for(task.shape.protocols) if engine is None else engine)
    return _run_secure(session, task, granularity, progress)


@dataclass(frozen=True, eq=False)
class Task:
    """All that a run needs: the public shape, and who brings which values, as they are to be shared.

    Attributes:
        shape: what the step's functions depend on.
        owner: the model owner's arrays, to be secret-shared.
        client: the client's arrays, to be secret-shared.
        public: what all parties may know.
    """

    shape: StepShape
    owner: Values
    client: Values
    public: Values

    @property
    def specs(self) -> dict[str, Spec]:
        """Shape, dtype and visibility of all values."""
        specs = {name: Spec.of(np.asarray(array)) for name, array in (self.owner | self.client).items()}
        return specs | {name: Spec.of(np.asarray(array), public=True) for name, array in self.public.items()}

    def share(self, session: Session) -> None:
        """Send the parties their shares."""
        session.share(self.owner)
        session.share(self.client)
        session.share(self.public, public=True)

    def decoded(self, images: np.ndarray) -> np.ndarray:
        """The images from a revealed "sample"."""
        bits = self.shape.protocols.value_bits
        return images if bits is None else decode(images, bits, self.shape.ring)


def engine_for(protocols: Protocols) -> EngineConfig:
    """How parties compute with a set: SPU's defaults, or with the fraction bits that `Fixed` numbers are made for."""
    return EngineConfig() if protocols.value_bits is None else EngineConfig(fraction_bits=ENGINE_FRACTION_BITS)


def make_task(
    unet: UNet,
    *,
    labels: Sequence[int] | None = None,
    count: int | None = None,
    steps: int = 20,
    scheduler: str = "ddim",
    eta: float = 0.0,
    clip: bool = False,
    protocols: Protocols = DIRECT,
    seed: int = 0,
    ring: bool = True,
) -> Task:
    """What `sample` runs, for the same arguments; with `ring` for three parties, otherwise for plaintext.

    Raises:
        CipherDMError: as `sample`, for the arguments.
    """
    check_takes_no_prompt(unet)
    if unet.scheduler_config is None:
        raise CipherDMError("this model has no scheduler: put its scheduler_config.json beside its config.json.")
    schedule = make_schedule(unet.scheduler_config, scheduler, steps, eta=eta, clip=clip)
    batch = _batch(unet, labels, count)
    weights = prepare_weights(unet, schedule.timesteps, protocols)
    shape = StepShape(
        unet.config,
        protocols,
        weights.layout,
        schedule.steps,
        batch,
        schedule.noisy,
        schedule.clip,
        ring,
        schedule.multistep,
    )
    client = client_values(labels, schedule, shape, seed)
    return Task(shape, owner_values(weights, shape), client, public_values(schedule, shape))


def _batch(unet: UNet, labels: Sequence[int] | None, count: int | None) -> int:
    conditional = unet.config.num_class_embeds is not None
    if conditional and not labels:
        raise CipherDMError(
            f"this model is conditional: give a label of 0 to {unet.config.num_class_embeds - 1} a picture."
        )
    if not conditional and labels:
        raise CipherDMError("this model has no classes; leave the labels out and say how many images you want.")
    batch = len(labels) if conditional else (1 if count is None else count)
    if batch < 1 or (conditional and count not in (None, batch)):
        raise CipherDMError(f"count is {count}, but there must be at least one picture, and one for each label.")
    return batch


def plaintext_steps(task: Task, step: Graph | None = None) -> Iterator[dict[str, jax.Array]]:
    """Sample here and now: yield what each step returns, by name ("sample" and what a multistep schedule remembers).

    Args:
        task: made with `ring=False`.
        step: graph to run instead of the task's own step, which must return at least the same values.
    """
    values = {name: jax.numpy.asarray(array) for name, array in (task.owner | task.client | task.public).items()}
    setup, step = setup_graph(task.shape), step_graph(task.shape) if step is None else step
    if setup is not None:
        values.update(zip(setup.outputs, _run(setup, values), strict=True))
    for index in range(task.shape.steps):
        values["step"] = values[f"step.{index}"]
        outputs = dict(zip(step.outputs, _run(step, values), strict=True))
        values |= outputs
        yield outputs


def _run_plaintext(task: Task) -> np.ndarray:
    *_, last = plaintext_steps(task)
    return task.decoded(np.asarray(last["sample"]))


def _run(graph: Graph, values: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    return _jitted(graph)(*(values[name] for name in graph.inputs))


@lru_cache(maxsize=64)
def _jitted(graph: Graph):
    return jax.jit(graph.__call__)


def _run_secure(session: Session, task: Task, granularity: Granularity, progress: Progress | None) -> SamplingResult:
    nodes = sampling_nodes(task.shape, granularity)
    plan = compile_plan(nodes, task.specs, keep=["sample"])
    try:
        task.share(session)
        cost = session.run(plan, progress and _with_step(progress, nodes, task.shape.steps))
        images = task.decoded(session.reveal("sample"))
        memory = session.peak_memory()
    finally:
        if not session.closed:
            session.delete([*task.specs, "sample"])
    return SamplingResult(images, cost, memory)


def sampling_nodes(shape: StepShape, granularity: Granularity) -> list[Node]:
    """The whole run as nodes, each of which becomes one program call.

    Raises:
        CipherDMError: an unknown granularity.
    """
    setup, step = setup_graph(shape), step_graph(shape)
    nodes = [] if setup is None else list(setup.nodes)
    if granularity == "loop":
        loop = Loop(step, shape.steps)
        return [*nodes, Node("loop", loop, loop.inputs, shape.state)]
    if granularity not in ("block", "step"):
        raise CipherDMError(f"unknown granularity {granularity!r}: choose block, step or loop.")
    of_one_step = step.nodes if granularity == "block" else (step.as_node(),)
    return nodes + [_at_step(node, index) for index in range(shape.steps) for node in of_one_step]


def _at_step(node: Node, index: int) -> Node:
    return replace(node, inputs=tuple(f"step.{index}" if name == "step" else name for name in node.inputs))


def _with_step(progress: Progress, nodes: list[Node], steps: int) -> Progress:
    """`progress`, with the number of the step in each label."""
    numbers = [next((int(name[5:]) + 1 for name in node.inputs if name.startswith("step.")), None) for node in nodes]
    first = 0
    for index, number in enumerate(numbers):
        first = max(first, number or 0)
        numbers[index] = first
    return lambda done, total, label: progress(done, total, f"step {numbers[done - 1]}/{steps} {label}")
