"""One denoising step as a graph of named functions: the one definition that is run in plaintext, emulated, and on shares.

Its last node is `SchedulerStep`, which combines arrays with public factors to the next sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..engine import Graph, Node
from ..models import CONTEXT_KINDS, TIME_KINDS, Block, Config, last_resnet, unet_blocks
from ..owner import WEIGHTS, WeightsLayout
from ..protocols import Protocols
from ..protocols.fast import WEIGHT_BITS
from ..protocols.fixed import Fixed, decode, matmul
from ..schedules import Schedule, whole_steps
from .ditto import ditto_step
from .guidance import with_branches

TIME_TERM = ".time_term"  # how the names of the residual blocks' time terms end
MEMORY = ("last_sample", "last_eps")  # what a multistep schedule keeps of the step before


@dataclass(frozen=True)
class StepShape:
    """Everything that a step's functions depend on besides arrays. All of it is public."""

    config: Config
    protocols: Protocols
    weights: WeightsLayout  # names and shapes of what the owner shares
    steps: int
    batch: int  # number of images
    noisy: bool  # True if the schedule adds fresh noise
    clip: float | None  # range that the predicted image is clipped to at each step
    ring: bool = False  # True if `Fixed` numbers are words of SPU's ring; in plaintext they are real numbers
    multistep: bool = False  # True if a step needs the sample and the output of the one before
    branches: int = 1  # prompts that the U-Net is asked with for each image: 2 with classifier-free guidance
    deviation: float = 1.0  # standard deviation of the initial noise
    reuse: int = 1  # one step of so many calls the whole U-Net; see `step_graph`

    @classmethod
    def of(cls, config, protocols, weights, schedule: Schedule, **rest) -> "StepShape":
        """The shape of a step of a schedule; `rest` is the batch and, unless they are the defaults, the fields it lacks."""
        of_schedule = {name: getattr(schedule, name) for name in ("steps", "noisy", "clip", "multistep", "deviation")}
        return cls(config, protocols, weights, **of_schedule, **rest)

    @property
    def on_words(self) -> bool:
        """True if values are words of the ring."""
        return self.ring and self.protocols.value_bits is not None

    @property
    def state(self) -> tuple[str, ...]:
        """Names of what one step hands to the next, the sample first."""
        return ("sample", *MEMORY) if self.multistep else ("sample",)

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """[batch, channels, height, width] of the sample."""
        return (self.batch, *self.config.sample_shape)

    def decoded(self, sample: np.ndarray) -> np.ndarray:
        """Real numbers from a sample as the parties hold it."""
        bits = self.protocols.value_bits
        return sample if bits is None else decode(sample, bits, self.ring)


def setup_graph(shape: StepShape) -> Graph | None:
    """Return what is computed once before the first step, or None if there is nothing.

    For secret classes these are rows of the owner's table, picked by one matrix product of the one-hot rows [B, classes]
    with the table [classes, steps, width], so that no party learns which. For secret prompts they are the keys and values
    of each cross-attention, and for a ControlNet the hint's features.
    """
    nodes = []
    if shape.weights.by_class and shape.config.num_class_embeds not in (None, 1):
        pick = pick_class_words if shape.on_words else pick_class_rows
        nodes.append(Node("class_rows", pick, ("class_onehot", "class_table"), ("class_rows",)))
    nodes += [block_node(block, shape) for block in unet_blocks(shape.config) if block.kind in CONTEXT_KINDS]
    outputs = tuple(name for node in nodes for name in node.outputs)
    return Graph("setup", tuple(nodes), outputs) if nodes else None


def step_graph(shape: StepShape, index: int = 0) -> Graph:
    """Return the denoising step `index`, from weights, tables, sample, step and coefficients to the next sample and the memory.

    With `reuse` above 1 only the `whole_steps` compute all of the U-Net. The others compute its first convolution, and what
    comes from the last residual block on. What that block takes from those below changes slowly from step to step.
    """
    nodes = []
    tables = (("step_table", shape.weights.by_step, 0), ("class_rows", shape.weights.by_class, 1))
    for table, entries, axis in tables:
        if entries:
            names, shapes = zip(*entries, strict=True)
            split = SplitRow(shapes, axis, shape.on_words)
            nodes.append(Node(table, split, (table, "step"), tuple(value_name(name) for name in names)))
    blocks = unet_blocks(shape.config)
    if shape.protocols.time_embedding == "inside":
        nodes.append(Node("timestep", select_row, ("timesteps", "step"), ("timestep",)))
    else:
        blocks = tuple(block for block in blocks if block.kind not in TIME_KINDS)
    of_prompt = {name for block in blocks if block.kind == "context" for name in block.outputs}
    if shape.protocols.small_bits is not None:
        of_step = ditto_step(shape.config, shape.protocols, ring=shape.ring)
    else:
        of_step = [block_node(block, shape) for block in blocks if block.kind not in CONTEXT_KINDS]
    nodes += with_branches(of_step, of_prompt, shape.branches)
    rest = (("noise",) if shape.noisy else ()) + (MEMORY if shape.multistep else ())
    inputs = ("coefficients", "prediction", "step", "sample", "eps", *rest)
    update = SchedulerStep(shape.clip, shape.protocols.value_bits, shape.ring, shape.multistep, shape.branches)
    nodes.append(Node("scheduler", update, inputs, shape.state))
    if shape.reuse == 1:
        return Graph("step", tuple(nodes), shape.state)
    last = blocks[last_resnet(blocks)]
    deep = next(node for node in nodes if node.label == last.name).inputs[-len(last.inputs)]
    if whole_steps(shape.steps, shape.reuse)[0][index]:
        # Before the first one there is none: the line through one value and itself is that value.
        keep = Node("reuse", unchanged, (deep,), (KEPT,))
        return Graph("step", tuple([*nodes, keep] if index == 0 else [keep, *nodes]), (*shape.state, deep, KEPT))
    needed, between = set(shape.state), []
    for node in reversed(nodes):
        if deep not in node.outputs and not needed.isdisjoint(node.outputs):
            between.insert(0, replace(node, inputs=tuple(REUSED if name == deep else name for name in node.inputs)))
            needed.update(node.inputs)
    line = Line(shape.protocols.value_bits, shape.ring)
    nodes = [Node("reuse", line, ("reuse_weights", "step", deep, KEPT), (REUSED,)), *between]
    return Graph("shallow step", tuple(nodes), shape.state)


KEPT, REUSED = "reuse.before", "reuse.now"


def unchanged(value):
    """Return a value as it is, so that it has a second name."""
    return value


@dataclass(frozen=True)
class Line:
    """Function of (weights, step, value, value before) to their combination with the two weights of that step."""

    value_bits: int | None = None
    ring: bool = False
    __name__ = "line"

    def __call__(self, weights, step, *values):
        factors = select_row(weights, step)
        if self.value_bits is None:
            return _combine(factors, *values)
        factors = [Fixed.load(factor, COEFFICIENT_BITS, self.ring) for factor in factors]
        values = [Fixed.load(value, self.value_bits, self.ring) for value in values]
        return (factors[0] * values[0] + factors[1] * values[1]).truncated(self.value_bits).store()


@dataclass(frozen=True)
class BlockFunction:
    """A block as a function of arrays: first its parameters, then its inputs.

    Where the protocols compute on `Fixed` numbers, arrays are loaded as such first, and results are truncated at the end.
    """

    block_function: Callable
    static: tuple[tuple[str, Any], ...]
    param_names: tuple[str, ...]
    protocols: Protocols
    param_bits: tuple[int, ...] = ()
    input_bits: tuple[int, ...] = ()
    static_params: tuple[tuple[str, int], ...] = ()
    ring: bool = False

    @property
    def __name__(self) -> str:
        return self.block_function.__name__

    def __call__(self, *arrays):
        count, bits = len(self.param_names), self.protocols.value_bits
        params, inputs = arrays[:count], arrays[count:]
        if bits is not None:
            params = [Fixed.load(*pair, self.ring) for pair in zip(params, self.param_bits, strict=True)]
            inputs = [Fixed.load(*pair, self.ring) for pair in zip(inputs, self.input_bits, strict=True)]
        params = dict(zip(self.param_names, params, strict=True)) | dict(self.static_params)
        result = self.block_function(params, *inputs, protocols=self.protocols, **dict(self.static))
        if bits is None:
            return result
        if isinstance(result, tuple):
            return tuple(part.truncated(bits).store() for part in result)
        return result.truncated(bits).store()


@dataclass(frozen=True)
class SplitRow:
    """Function of (table, step []) to the arrays that the table holds side by side at that step, on its axis `axis`.

    With `words` the row is cut as words of the ring, so that one conversion serves all pieces of a step's program.
    """

    shapes: tuple[tuple[int, ...], ...]
    axis: int
    words: bool = False
    __name__ = "split_row"

    def __call__(self, table, step):
        row = lax.dynamic_index_in_dim(table, step, axis=self.axis, keepdims=False)
        row = lax.bitcast_convert_type(row, jnp.int32) if self.words else row
        widths = [math.prod(shape) for shape in self.shapes]
        ends = np.cumsum(widths)
        pieces = [row[..., end - width : end] for end, width in zip(ends, widths, strict=True)]
        pieces = [piece.reshape(*row.shape[:-1], *shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        return tuple(lax.bitcast_convert_type(piece, jnp.float32) if self.words else piece for piece in pieces)


@dataclass(frozen=True)
class Loop:
    """A step graph repeated in one program, with a public index. Inputs are the step's, without "step"."""

    step: Graph
    steps: int
    __name__ = "loop"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the step's inputs, without "step"."""
        return tuple(name for name in self.step.inputs if name != "step")

    def __call__(self, *arrays):
        values = dict(zip(self.inputs, arrays, strict=True))

        def body(index, state):
            now = values | dict(zip(self.step.outputs, state, strict=True)) | {"step": index}
            return self.step(*(now[name] for name in self.step.inputs))

        state = lax.fori_loop(0, self.steps, body, tuple(values[name] for name in self.step.outputs))
        return state if len(state) > 1 else state[0]


def pick_class_rows(class_onehot, class_table):
    """Multiply class_onehot [B, classes] and class_table [classes, steps, width] to rows [B, steps, width]."""
    classes, steps, width = class_table.shape
    return jnp.matmul(class_onehot, class_table.reshape(classes, steps * width)).reshape(-1, steps, width)


def pick_class_words(class_onehot, class_table):
    """`pick_class_rows` on words. Labels are encoded with no fraction bits, so nothing has to be truncated."""
    onehot, table = (Fixed.load(array, 0, True) for array in (class_onehot, class_table))
    classes, steps, width = table.shape
    return matmul(onehot, table.reshape(classes, steps * width)).reshape(-1, steps, width).store()


def value_name(name: str) -> str:
    """Name of a piece of the owner's tables: time terms are values between blocks, everything else is weights."""
    return name if name.endswith(TIME_TERM) else WEIGHTS + name


def block_node(block: Block, shape: StepShape) -> Node:
    """Return a block with all that the owner prepared for its layers, whether by diffusers' names or by others."""
    layout = shape.weights
    layers = {full: local for local, full in block.layers.items()}
    weights, bits = {}, dict(layout.bits)
    for full in (*layout.constant, *(name for name, _ in (*layout.by_step, *layout.by_class))):
        layer, _, leaf = full.rpartition(".")
        if layer in layers:
            weights[WEIGHTS + full] = f"{layers[layer]}.{leaf}".removeprefix(".")
    widths = tuple(bits.get(full.removeprefix(WEIGHTS), WEIGHT_BITS) for full in weights)
    values = tuple(bits.get(name, shape.protocols.value_bits or 0) for name in block.inputs)
    split = [(*name.rpartition(".")[::2], value) for name, value in layout.static]
    static = tuple(
        (f"{layers[layer]}.{leaf}".removeprefix("."), value) for layer, leaf, value in split if layer in layers
    )
    bits_and_ring = {"param_bits": widths, "input_bits": values, "static_params": static, "ring": shape.ring}
    function = BlockFunction(block.function, block.static, tuple(weights.values()), shape.protocols, **bits_and_ring)
    return Node(block.name, function, (*weights, *block.inputs), block.outputs)


# Fraction bits of the schedule's coefficients: rounded to 2^-15, with room in the ring for their products with values.
COEFFICIENT_BITS = 14


@dataclass(frozen=True)
class SchedulerStep:
    """Function of (coefficients, prediction, step, sample, eps[, noise][, last_sample, last_eps]) to the next sample.

    `Schedule` has the formula. It is one dot product, so that on shares it is truncated once and not once per term. A
    multistep schedule also returns sample and eps, for the next step to remember.

    With several branches, eps and last_eps hold the model's output for each prompt, one after the other, and coefficients
    has a column for each of them (`guided_coefficients`).
    """

    clip: float | None
    value_bits: int | None = None
    ring: bool = False
    multistep: bool = False
    branches: int = 1
    __name__ = "scheduler"

    def __call__(self, coefficients, prediction, step, sample, eps, *rest):
        row = select_row(coefficients, step)
        noise = [select_row(rest[0], step)] if len(rest) % 2 else []
        memory = [rest[-2], *self._of_branches(rest[-1])] if self.multistep else []
        arrays = [sample, *self._of_branches(eps), *noise, *memory]
        # The columns are [sample, eps, noise, last_sample, last_eps]; those of what is not there are left out.
        chosen = [index for index in range(len(row)) if index != self.branches + 1 or noise][: len(arrays)]
        factors = [row[index] for index in chosen]
        if self.value_bits is not None:
            result = self._on_fixed(factors, select_row(prediction, step), arrays)
        else:
            if self.clip is not None:
                estimate = _combine(select_row(prediction, step), *arrays[:2])
                arrays[1] = jnp.clip(estimate, -jnp.float32(self.clip), jnp.float32(self.clip))
            result = _combine(jnp.stack(factors), *arrays)
        return (result, sample, eps) if self.multistep else result

    def _of_branches(self, outputs) -> list:
        """The outputs [branches * B, ...] of each branch."""
        return [outputs] if self.branches == 1 else jnp.split(outputs, self.branches)

    def _on_fixed(self, factors, prediction, arrays):
        bits, ring = self.value_bits, self.ring
        factors = [Fixed.load(factor, COEFFICIENT_BITS, ring) for factor in factors]
        prediction = Fixed.load(prediction, COEFFICIENT_BITS, ring)
        sample, estimate, *others = (Fixed.load(array, bits, ring) for array in arrays)
        if self.clip is not None:
            estimate = (prediction[0] * sample + prediction[1] * estimate).truncated(bits)
            bound = np.array(self.clip * 2**bits, np.int32) if ring else np.float32(self.clip)
            estimate = estimate.with_array(jnp.clip(estimate.array, -bound, bound))
        result = factors[0] * sample + factors[1] * estimate
        for factor, array in zip(factors[2:], others, strict=True):
            result = result + factor * array
        return result.truncated(bits).store()


def select_row(table, step):
    """Return the row numbered `step`, a public scalar, of a table [steps, ...]."""
    return lax.dynamic_index_in_dim(table, step, axis=0, keepdims=False)


def _combine(factors, *arrays):
    stacked = jnp.stack([array.reshape(-1) for array in arrays])
    return jnp.matmul(factors[None, :], stacked).reshape(arrays[0].shape)
