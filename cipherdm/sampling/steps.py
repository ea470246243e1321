"""One denoising step as a graph of named functions: the one definition that is run in plaintext, emulated, and on shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..engine import Graph, Node
from ..models import TIME_KINDS, Block, UNetConfig, unet_blocks, unet_shapes
from ..protocols import Protocols

WEIGHTS = "unet/"  # prefix of the weights' names, which are otherwise diffusers'


@dataclass(frozen=True)
class StepShape:
    """What a step's functions depend on besides arrays; everything here is public.

    Attributes:
        config: the architecture.
        protocols: the functions it is computed with.
        steps: denoising steps of the schedule.
        batch: images at a time.
        noisy: whether the schedule adds fresh noise.
        clip: the range that the predicted image is clipped to at each step, or None.
    """

    config: UNetConfig
    protocols: Protocols
    steps: int
    batch: int
    noisy: bool
    clip: float | None

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """[batch, channels, height, width] of the sample."""
        size = self.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (self.batch, self.config.in_channels, height, width)


def setup_graph(shape: StepShape) -> Graph | None:
    """What is computed once before the first step: the time terms of all steps, for the secret classes.

    The one-hot rows [B, classes] times the owner's table [classes, steps, width] pick a row by one matrix product, so
    that no party learns which. None if there is nothing to pick.
    """
    if shape.protocols.time_embedding == "inside" or shape.config.num_class_embeds is None:
        return None
    node = Node("time_terms", pick_time_terms, ("class_onehot", "time_table"), ("time_terms",))
    return Graph("setup", (node,), ("time_terms",))


def step_graph(shape: StepShape) -> Graph:
    """One denoising step: (weights, sample, step, coefficients, ...) to the next sample."""
    blocks = unet_blocks(shape.config)
    time_blocks = [block for block in blocks if block.kind in TIME_KINDS]
    if shape.protocols.time_embedding == "precomputed":
        terms = tuple(name for block in time_blocks if block.kind == "time_projection" for name in block.outputs)
        split = Node("time_terms", TimeTermsOfStep(time_term_widths(shape.config)), ("time_terms", "step"), terms)
        nodes = [split]
        blocks = tuple(block for block in blocks if block.kind not in TIME_KINDS)
    else:
        nodes = [Node("timestep", select_row, ("timesteps", "step"), ("timestep",))]
    nodes += [_block_node(block, shape.protocols) for block in blocks]
    noise = ("noise",) if shape.noisy else ()
    nodes.append(
        Node(
            "scheduler",
            SchedulerStep(shape.clip),
            ("coefficients", "prediction", "step", "sample", "eps", *noise),
            ("sample",),
        )
    )
    return Graph("step", tuple(nodes), ("sample",))


def time_term_widths(config: UNetConfig) -> tuple[int, ...]:
    """The length of each residual block's time term, in the order of the blocks."""
    shapes = unet_shapes(config)
    projections = [block for block in unet_blocks(config) if block.kind == "time_projection"]
    return tuple(shapes[dict(block.params)["bias"]][0] for block in projections)


@dataclass(frozen=True)
class BlockFunction:
    """A block as a function of arrays: first its parameters, then its inputs."""

    block_function: Callable
    static: tuple[tuple[str, Any], ...]
    param_names: tuple[str, ...]
    protocols: Protocols

    @property
    def __name__(self) -> str:
        return self.block_function.__name__

    def __call__(self, *arrays):
        params = dict(zip(self.param_names, arrays[: len(self.param_names)], strict=True))
        inputs = arrays[len(self.param_names) :]
        return self.block_function(params, *inputs, protocols=self.protocols, **dict(self.static))


@dataclass(frozen=True)
class TimeTermsOfStep:
    """(time_terms [b, steps, sum of widths], step []) to each residual block's term [b, width] at that step."""

    widths: tuple[int, ...]
    __name__ = "time_terms"

    def __call__(self, time_terms, step):
        row = lax.dynamic_index_in_dim(time_terms, step, axis=1, keepdims=False)
        ends = np.cumsum(self.widths)
        return tuple(row[:, end - width : end] for end, width in zip(ends, self.widths, strict=True))


@dataclass(frozen=True)
class SchedulerStep:
    """(coefficients, prediction, step, sample, eps[, noise]) to the next sample; `Schedule` has the formula.

    One dot product, so that on shares it is truncated once and not once a term.
    """

    clip: float | None
    __name__ = "scheduler"

    def __call__(self, coefficients, prediction, step, sample, eps, noise=None):
        factors = select_row(coefficients, step)
        estimate = eps
        if self.clip is not None:
            estimate = _combine(select_row(prediction, step), sample, eps)
            estimate = jnp.clip(estimate, -jnp.float32(self.clip), jnp.float32(self.clip))
        if noise is None:
            return _combine(factors[:2], sample, estimate)
        return _combine(factors, sample, estimate, select_row(noise, step))


@dataclass(frozen=True)
class Loop:
    """A step graph repeated in one program; its index is public. Inputs are the step's, without "step"."""

    step: Graph
    steps: int
    __name__ = "loop"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The step's inputs but for "step"."""
        return tuple(name for name in self.step.inputs if name != "step")

    def __call__(self, *arrays):
        values = dict(zip(self.inputs, arrays, strict=True))

        def body(index, sample):
            now = values | {"sample": sample, "step": index}
            return self.step(*(now[name] for name in self.step.inputs))[0]

        return lax.fori_loop(0, self.steps, body, values["sample"])


def pick_time_terms(class_onehot, time_table):
    """class_onehot [B, classes] and time_table [classes, steps, width] to [B, steps, width]."""
    classes, steps, width = time_table.shape
    return jnp.matmul(class_onehot, time_table.reshape(classes, steps * width)).reshape(-1, steps, width)


def select_row(table, step):
    """Row `step`, a public scalar, of a table [steps, ...]."""
    return lax.dynamic_index_in_dim(table, step, axis=0, keepdims=False)


def _combine(factors, *arrays):
    stacked = jnp.stack([array.reshape(-1) for array in arrays])
    return jnp.matmul(factors[None, :], stacked).reshape(arrays[0].shape)


def _block_node(block: Block, protocols: Protocols) -> Node:
    local = tuple(name for name, _ in block.params)
    weights = tuple(WEIGHTS + full for _, full in block.params)
    function = BlockFunction(block.function, block.static, local, protocols)
    return Node(block.name, function, weights + block.inputs, block.outputs)
