"""One denoising step as a graph of named functions: the one definition that is run in plaintext, emulated, and on shares."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..engine import Graph, Node
from ..models import TIME_KINDS, Block, UNetConfig, WeightsLayout, unet_blocks
from ..protocols import Protocols

WEIGHTS = "unet/"  # prefix of the weights' names, which are otherwise diffusers'


@dataclass(frozen=True)
class StepShape:
    """What a step's functions depend on besides arrays; everything here is public.

    Attributes:
        config: the architecture.
        protocols: the functions it is computed with.
        weights: names and shapes of what the owner shares.
        steps: denoising steps of the schedule.
        batch: images at a time.
        noisy: whether the schedule adds fresh noise.
        clip: the range that the predicted image is clipped to at each step, or None.
    """

    config: UNetConfig
    protocols: Protocols
    weights: WeightsLayout
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
    """What is computed once before the first step: the rows of the owner's table for the secret classes.

    The one-hot rows [B, classes] times the table [classes, steps, width] pick by one matrix product, so that no party
    learns which. None if there is nothing to pick.
    """
    if not shape.weights.by_class or shape.config.num_class_embeds in (None, 1):
        return None
    node = Node("class_rows", pick_class_rows, ("class_onehot", "class_table"), ("class_rows",))
    return Graph("setup", (node,), ("class_rows",))


def step_graph(shape: StepShape) -> Graph:
    """One denoising step: (weights, tables, sample, step, coefficients, ...) to the next sample."""
    weights = shape.weights
    nodes = []
    if weights.by_step:
        nodes.append(_split_node("step_table", weights.by_step, axis=0))
    if weights.by_class:
        nodes.append(_split_node("class_rows", weights.by_class, axis=1))
    blocks = unet_blocks(shape.config)
    if shape.protocols.time_embedding == "inside":
        nodes.append(Node("timestep", select_row, ("timesteps", "step"), ("timestep",)))
    else:
        blocks = tuple(block for block in blocks if block.kind not in TIME_KINDS)
    nodes += [_block_node(block, shape) for block in blocks]
    noise = ("noise",) if shape.noisy else ()
    inputs = ("coefficients", "prediction", "step", "sample", "eps", *noise)
    nodes.append(Node("scheduler", SchedulerStep(shape.clip), inputs, ("sample",)))
    return Graph("step", tuple(nodes), ("sample",))


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
class SplitRow:
    """(table, step []) to the arrays that the table holds side by side at that step; `axis` is the table's axis of steps."""

    shapes: tuple[tuple[int, ...], ...]
    axis: int
    __name__ = "split_row"

    def __call__(self, table, step):
        row = lax.dynamic_index_in_dim(table, step, axis=self.axis, keepdims=False)
        widths = [math.prod(shape) for shape in self.shapes]
        ends = np.cumsum(widths)
        pieces = [row[..., end - width : end] for end, width in zip(ends, widths, strict=True)]
        return tuple(piece.reshape(*row.shape[:-1], *shape) for piece, shape in zip(pieces, self.shapes, strict=True))


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


def pick_class_rows(class_onehot, class_table):
    """class_onehot [B, classes] and class_table [classes, steps, width] to [B, steps, width]."""
    classes, steps, width = class_table.shape
    return jnp.matmul(class_onehot, class_table.reshape(classes, steps * width)).reshape(-1, steps, width)


def select_row(table, step):
    """Row `step`, a public scalar, of a table [steps, ...]."""
    return lax.dynamic_index_in_dim(table, step, axis=0, keepdims=False)


def _combine(factors, *arrays):
    stacked = jnp.stack([array.reshape(-1) for array in arrays])
    return jnp.matmul(factors[None, :], stacked).reshape(arrays[0].shape)


def _split_node(table: str, entries: tuple, axis: int) -> Node:
    names, shapes = zip(*entries, strict=True)
    return Node(table, SplitRow(shapes, axis), (table, "step"), tuple(_value_name(name) for name in names))


def _value_name(name: str) -> str:
    """Time terms are values between blocks, under their own name; all else in the owner's tables is weights."""
    return name if name.endswith(".time_term") else WEIGHTS + name


def _block_node(block: Block, shape: StepShape) -> Node:
    """A block with all that the owner prepared for its layers: diffusers' weights, or others beside them or in their place."""
    layout = shape.weights
    layers = {full.rpartition(".")[0]: local.rpartition(".")[0] for local, full in block.params}
    weights = {}
    for full in (*layout.constant, *(name for name, _ in (*layout.by_step, *layout.by_class))):
        layer, _, leaf = full.rpartition(".")
        if layer in layers:
            weights[WEIGHTS + full] = f"{layers[layer]}.{leaf}".removeprefix(".")
    function = BlockFunction(block.function, block.static, tuple(weights.values()), shape.protocols)
    return Node(block.name, function, (*weights, *block.inputs), block.outputs)
