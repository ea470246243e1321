"""Sampling: on three parties, or in plaintext from the same noise with the same functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from itertools import accumulate
from typing import Literal

import jax
import numpy as np
from PIL import Image

from ..engine import CostReport, EngineConfig, Graph, LocalCluster, Node, compile_plan
from ..errors import CipherDMError, check_whole, refuse
from ..likeness import grey_levels
from ..models import UNet, check_draws_without_prompt, last_resnet, sampling_defaults, unet_blocks
from ..owner import prepare_weights
from ..progress import Progress
from ..protocols import DIRECT, Protocols, named
from ..protocols.fixed import ENGINE_FRACTION_BITS
from ..schedules import BRANCHES, Schedule, guided_coefficients, make_schedule, scheduler_of
from .ditto import MORE_ROOM
from .rings import walking_of
from .roles import Task, client_values, one_hot, owner_values, public_values, whole_labels
from .steps import Loop, StepShape, setup_graph, step_graph

# Size beyond which a number of a sample counts as an overflow on shares. Images lie in [-1, 1] and latents have about unit
# variance, so a few times that is a poor image and no overflow. What wraps around in the ring is mostly far larger. The bound
# is high, because a good sample must never meet it; it notices some overflows and not all.
LARGEST_SAMPLE = 64.0
Granularity = Literal["block", "step", "loop"]


@dataclass(frozen=True, eq=False)
class SamplingResult:
    """Result of a sampling run, held by the client.

    Attributes:
        images: float32 [B, C, H, W], nominally in [-1, 1], not clipped.
        cost: cost of the run to the parties, without sharing and revealing; None for a run in plaintext.
        peak_memory: largest number of bytes that each party's process held, by rank; empty for a run in plaintext.
        latents: float32 [B, C, h, w] that a VAE decoded to the images, or None for a model without one.
    """

    images: np.ndarray
    cost: CostReport | None = None
    peak_memory: tuple[int, ...] = ()
    latents: np.ndarray | None = None

    @property
    def pil(self) -> list[Image.Image]:
        """The images as Pillow's, as diffusers' pipelines return them."""
        return [
            Image.fromarray(level.transpose(1, 2, 0).squeeze(2) if len(level) == 1 else level.transpose(1, 2, 0))
            for level in grey_levels(self.images)
        ]

    def _repr_png_(self) -> bytes:
        """Show the images side by side in a notebook, each of them at least 96 pixels high."""
        row = Image.fromarray(np.concatenate([np.asarray(image) for image in self.pil], axis=1))
        factor, content = -(-96 // row.height), BytesIO()
        row.resize((row.width * factor, row.height * factor), Image.Resampling.NEAREST).save(content, "png")
        return content.getvalue()


def sample(
    unet: UNet,
    cluster: LocalCluster | None,
    *,
    labels: Sequence[int] | int | None = None,
    count: int | None = None,
    latents: np.ndarray | None = None,
    steps: int | None = None,
    start: int = 0,
    reuse: int = 1,
    scheduler: str | None = None,
    eta: float = 0.0,
    clip: bool = False,
    protocols: Protocols | str = DIRECT,
    seed: int = 0,
    granularity: Granularity = "block",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> SamplingResult:
    """Draw images from a diffusion model, secretly if there is a cluster.

    On a cluster the weights, the labels, all noise, every intermediate value and the images are secret-shared. Only the
    client puts the images together, here. Public are the architecture, the schedule, the batch size and the protocol set.
    This function plays both roles, model owner and client; `owner_values` and `client_values` keep them apart.

    Args:
        unet: the model, with its scheduler's configuration.
        cluster: three parties, or None to compute here in plaintext from the same noise: with DIRECT the reference, with
            other protocol sets the emulation of a secure run.
        labels: class of each image, for models with classes: a number, or any sequence or array of them.
        count: number of images, for models without classes.
        latents: [B, C, H, W], the initial noise, if the client brings its own.
        steps: denoising steps; 20 by default, or those of the model's `sampling.json`.
        start: number of first steps to leave out: noise is taken for the sample before the next one. How many a model can do
            without differs; look at its images in plaintext first.
        reuse: one step of so many calls the whole U-Net, and the first and the last; see `schedules.whole_steps`. The steps
            between compute its last residual block and what follows. FAST has to be calibrated with the same steps and reuse.
        scheduler: name in `schedules.SCHEDULERS`; the model's own by default, but DDIM in the place of DDPM.
        eta: share of fresh noise of DDIM and TCD, 0 to 1.
        clip: clip the predicted image to the data's range at every step, which takes two comparisons per pixel.
        protocols: protocol set that nonlinear functions and layers are computed with, or its name.
        seed: seed of the client's noise.
        granularity: part that becomes one program: each "block" (costs by block), each "step", or the whole "loop".
        engine: settings of the parties' engine; by default `engine_for(protocols)`.
        progress: called while programs are compiled and run, see `cipherdm.progress.Progress`; only with a cluster.

    Raises:
        CipherDMError: an unknown scheduler, a number of steps or a label out of range, numbers that left the ring's range, or a
            failure of the cluster.
    """
    asked = {"labels": labels, "count": count, "latents": latents, "clip": clip}
    asked |= {"steps": steps, "start": start, "scheduler": scheduler, "eta": eta}
    asked |= {"reuse": reuse}
    task = make_task(unet, **asked, protocols=named(protocols), seed=seed, ring=cluster is not None)
    result = run_task(task, cluster, granularity=granularity, engine=engine, progress=progress)
    check_sample(result.images, task.shape)
    return result


def make_task(
    unet: UNet,
    *,
    labels: Sequence[int] | int | None = None,
    count: int | None = None,
    latents: np.ndarray | None = None,
    clip: bool = False,
    **settings,
) -> Task:
    """Return what `sample` runs for the same arguments; `settings` are fields of `Settings`.

    Raises CipherDMError if an argument is out of its range.
    """
    check_draws_without_prompt(unet)
    labels = whole_labels(labels)
    chosen = Settings(**settings)
    schedule = chosen.schedule(unet, clip=clip)
    batch = _batch(unet, labels, count)
    return chosen.task(unet, schedule, batch, labels=labels, latents=initial_noise(unet, schedule, batch, latents))


def initial_noise(unet: UNet, schedule: Schedule, batch: int, latents: np.ndarray | None) -> np.ndarray | None:
    """Return noise that the client brings as the first step takes it. Raises CipherDMError if it has another shape."""
    shape = (batch, *unet.config.sample_shape)
    if latents is not None and np.shape(latents) != shape:
        raise CipherDMError(f"the latents have shape {np.shape(latents)}; this model takes {shape} for {batch} images.")
    return None if latents is None else np.asarray(latents, np.float32) * np.float32(schedule.deviation)


@dataclass(frozen=True)
class Settings:
    """Settings of a run that models with labels and models with prompts share; those that `sample` has are described there.

    Attributes:
        ring: True for three parties, False for plaintext.
    """

    steps: int | None = None
    start: int = 0
    reuse: int = 1
    scheduler: str | None = None
    eta: float = 0.0
    protocols: Protocols = DIRECT
    seed: int = 0
    ring: bool = True

    def schedule(self, unet: UNet, **options) -> Schedule:
        """The coefficients of all steps; `options` are those of `make_schedule`.

        Raises CipherDMError if the model has no scheduler, or a number is out of its range.
        """
        name = self.scheduler or scheduler_of(unet.scheduler_config)
        steps = sampling_defaults(unet.folder)["steps"] if self.steps is None else self.steps
        return make_schedule(unet.scheduler_config, name, steps, **{"eta": self.eta, "start": self.start} | options)

    def task(
        self,
        unet: UNet,
        schedule: Schedule,
        batch: int,
        *,
        labels: Sequence[int] | None = None,
        prompts: np.ndarray | None = None,
        hints: np.ndarray | None = None,
        latents: np.ndarray | None = None,
        guidance_scale: float = 1.0,
    ) -> Task:
        """Prepare the owner's weights and draw the client's noise.

        Labels, prompts, hints and latents are those of `client_values`; a guidance scale of 1 is no guidance.
        """
        guided = guidance_scale > 1
        check_whole("reuse", self.reuse, 1)
        unfit = self.reuse > 1 and not last_resnet(unet_blocks(unet.config))
        refuse({"reuse is for U-Nets, whose outermost layers see the sample; leave it out": unfit})
        weights = prepare_weights(unet, schedule.timesteps, self.protocols)
        sizes = {"batch": batch, "ring": self.ring, "branches": BRANCHES if guided else 1}
        sizes |= {"reuse": self.reuse}
        shape = StepShape.of(unet.config, self.protocols, weights.layout, schedule, **sizes)
        values = client_values(labels, shape, self.seed, latents=latents, prompts=prompts, hints=hints)
        if guided:
            schedule = replace(schedule, coefficients=guided_coefficients(schedule.coefficients, guidance_scale))
        return Task(shape, owner_values(weights, shape), values, public_values(schedule, shape))


def run_task(
    task: Task,
    cluster: LocalCluster | None,
    *,
    granularity: Granularity = "block",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> SamplingResult:
    """Run a task on a cluster or in plaintext; the other arguments are those of `sample`.

    Raises CipherDMError for an unknown granularity, or a failure of the cluster.
    """
    if cluster is None:
        *_, last = plaintext_steps(task)
        return SamplingResult(task.decoded(np.asarray(last["sample"])))
    nodes = sampling_nodes(task.shape, granularity)
    return SamplingResult(*run_nodes(task, nodes, "sample", cluster, engine=engine, progress=progress))


def run_nodes(
    task: Task,
    nodes: list[Node],
    output: str,
    cluster: LocalCluster,
    *,
    engine: EngineConfig | None,
    progress: Progress | None,
) -> tuple[np.ndarray, CostReport, tuple[int, ...]]:
    """Share a task's values, run nodes on a cluster; return the array that one of them writes, the cost, and peak memory."""
    session = cluster.session(engine_for(task.shape.protocols) if engine is None else engine)
    walking = walking_of(task, nodes, progress)
    plan = compile_plan(nodes, task.specs, keep=[output], walking=walking, progress=progress)
    with session.alone():  # other threads use the same names of variables
        try:
            task.share(session)
            cost = session.run(plan, progress and _with_step(progress, nodes, task.shape.steps))
            return task.decoded(session.reveal(output)), cost, session.peak_memory()
        finally:
            if not session.closed:
                session.delete([*task.specs, output])


def check_sample(sample: np.ndarray, shape: StepShape) -> None:
    """Raise CipherDMError if a final sample shows that numbers left the range in which a protocol set is right.

    The emulation says so by NaN. The ring wraps around without a sign, and what comes back is too large, if it shows at all.
    """
    largest = np.abs(sample).max()
    if not np.isfinite(largest) or (shape.ring and largest > LARGEST_SAMPLE):
        calibrated = "calibrate the model as it is sampled (`cipherdm calibrate`), or take fast-guarded, or direct"
        raise CipherDMError(
            f"the result has values up to {largest:.4g}, where at most a few are right: numbers left the range in which the "
            f"set {shape.protocols.name} computes. Look for the layer with `cipherdm check-ranges`, "
            f"{calibrated if shape.protocols.small_bits is None else MORE_ROOM}."
        )


def engine_for(protocols: Protocols) -> EngineConfig:
    """Engine settings for a protocol set: SPU's defaults, or with the fraction bits that `Fixed` numbers are made for."""
    if protocols.value_bits is None:
        return EngineConfig(small_fraction_bits=protocols.small_bits)
    return EngineConfig(fraction_bits=ENGINE_FRACTION_BITS)


def _batch(unet: UNet, labels: Sequence[int] | None, count: int | None) -> int:
    conditional = unet.config.num_class_embeds is not None
    if conditional and not labels:
        raise CipherDMError(
            f"this model is conditional: give each image a label of 0 to {unet.config.num_class_embeds - 1}."
        )
    if labels:
        one_hot(labels, unet.config)  # which refuses those that the model does not have
    batch = len(labels) if conditional else (1 if count is None else count)
    check_whole("count", batch, 1)
    if conditional and count not in (None, batch):
        raise CipherDMError(f"count is {count}, and there are {batch} labels: give one per image.")
    return batch


def plaintext_steps(task: Task, step: Graph | None = None) -> Iterator[dict[str, jax.Array]]:
    """Sample in plaintext, and yield what each step returns, by name: "sample", and the memory of a multistep schedule.

    Args:
        task: made with `ring=False`.
        step: graph to run instead of the task's own step, which must return at least the same values.
    """
    values = {name: jax.numpy.asarray(array) for name, array in (task.owner | task.client | task.public).items()}
    setup = setup_graph(task.shape)

    def run(graph: Graph) -> dict[str, jax.Array]:
        outputs = dict(zip(graph.outputs, jitted(graph)(*(values[name] for name in graph.inputs)), strict=True))
        values.update(outputs)
        return outputs

    if setup is not None:
        run(setup)
    for index in range(task.shape.steps):
        values["step"] = values[f"step.{index}"]
        yield run(step_graph(task.shape, index) if step is None else step)


@lru_cache(maxsize=64)
def jitted(graph: Graph):
    return jax.jit(graph.__call__)


def sampling_nodes(shape: StepShape, granularity: Granularity) -> list[Node]:
    """Return the whole run as nodes, each of which becomes one program call.

    Raises CipherDMError for an unknown granularity.
    """
    if granularity != "block" and shape.protocols.small_bits is not None:
        raise CipherDMError(f"{shape.protocols.name} has a ring for each part of a step: take the granularity block.")
    setup = setup_graph(shape)
    nodes = [] if setup is None else list(setup.nodes)
    if granularity == "loop":
        if shape.reuse > 1:
            raise CipherDMError("with reuse steps differ, and do not make a loop: take the granularity block or step.")
        loop = Loop(step_graph(shape), shape.steps)
        return [*nodes, Node("loop", loop, loop.inputs, shape.state)]
    if granularity not in ("block", "step"):
        raise CipherDMError(f"unknown granularity {granularity!r}: choose block, step or loop.")
    for index in range(shape.steps):
        step = step_graph(shape, index)
        of_step = step.nodes if granularity == "block" else (step.as_node(),)
        nodes += [at_step(node, index) for node in of_step]
    return nodes


def at_step(node: Node, index: int) -> Node:
    """Return a node of a step as that of the step `index`."""
    return replace(node, inputs=tuple(f"step.{index}" if name == "step" else name for name in node.inputs))


def _with_step(progress: Progress, nodes: list[Node], steps: int) -> Progress:
    """Return `progress` with the number of the step in each label."""
    found = ((int(name[5:]) + 1 for name in node.inputs if name.startswith("step.")) for node in nodes)
    numbers = list(accumulate((next(of_node, 0) for of_node in found), max))
    if steps == 1 and not any(numbers):
        return progress
    return lambda done, total, label: progress(done, total, f"step {numbers[done - 1]}/{steps} {label}")
