"""Blocks: the named pure functions that a model consists of, and how a configuration's are written down."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Block:
    """One named pure function of a model.

    A value has the name of the block that writes it, except "emb" and "eps". Each residual block's "time_term", and the
    prompt's "k" and "v" for each cross-attention, are named after the block that reads them.

    Two blocks with equal `function`, `static`, local parameter names and shapes compute the same thing: one compiled
    program serves both.
    """

    name: str  # diffusers' module path, such as "down_blocks.0.resnets.1"
    # time_embedding, time_projection, conv_in, resnet, downsample, upsample or conv_out; in a UNet2DModel attention; in a
    # UNet2DConditionModel context, transformer_in, self_attention, cross_attention, feed_forward or transformer_out, with a
    # ControlNet also hint, zero_conv or sum; in a DiTTransformer2DModel patches_in, self_attention, feed_forward or patches_out
    kind: str
    inputs: tuple[str, ...]  # the values it reads, in the order of the positional arguments
    outputs: tuple[str, ...]  # the values it writes
    params: tuple[tuple[str, str], ...]  # pairs of a local name and the name in the state dict
    function: Callable  # a module-level function(params, *inputs, protocols=..., **static)
    static: tuple[tuple[str, Any], ...]  # its other keyword arguments
    # Local names with the names of layers without weights of their own, to which an owner's preparation may give some.
    bare: tuple[tuple[str, str], ...] = ()

    @property
    def layers(self) -> dict[str, str]:
        """Local names of the layers, with their names in the model."""
        return {local.rpartition(".")[0]: full.rpartition(".")[0] for local, full in self.params} | dict(self.bare)

    def __call__(self, params_local: Mapping, *inputs, protocols):
        """Compute the output, or a tuple of outputs, from arrays under local names and input arrays."""
        return self.function(params_local, *inputs, protocols=protocols, **dict(self.static))


class Builder:
    """Writes down the blocks that a model's constructor and forward meet in diffusers, with the shapes of the weights."""

    def __init__(self) -> None:
        self.time_blocks: list[Block] = []  # depend on weights, step and class alone
        self.context_blocks: list[Block] = []  # depend on weights and prompt alone
        self.blocks: list[Block] = []
        self.shapes: Shapes = {}
        self.last = "sample"  # the value that the next block reads

    def part(self, path, name, kind, function, shapes, **rest) -> None:
        """Append a block that has the name of one module, and parameters of others beside it."""
        self.chain(f"{path}.{name}", kind, function, shapes, prefix=f"{path}.", **rest)

    def chain(self, name, kind, function, shapes, *, inputs=None, output=None, prefix=None, bare=(), **static) -> None:
        """Append a block that reads the last value (unless `inputs` says otherwise) and writes the next one."""
        prefix = f"{name}." if prefix is None else prefix
        pairs = {local: prefix + local for local in shapes}
        inputs = inputs or [self.last]
        self.last = output or name
        self.blocks.append(self.block(name, kind, function, inputs, (self.last,), shapes, pairs, static, bare))

    def block(self, name, kind, function, inputs, outputs, shapes, pairs, static, bare=()) -> Block:
        self.shapes |= {pairs[local]: shape for local, shape in shapes.items()}
        params, static = tuple(pairs.items()), tuple(static.items())
        return Block(name, kind, tuple(inputs), tuple(outputs), params, function, static, tuple(bare))


def _named(layer: str, weight: tuple[int, ...], outside: int) -> Shapes:
    prefix = f"{layer}." if layer else ""
    return {f"{prefix}weight": weight, f"{prefix}bias": (outside,)}


def conv_shapes(layer: str, inside: int, outside: int, kernel: int) -> Shapes:
    """Parameters of a square convolution."""
    return _named(layer, (outside, inside, kernel, kernel), outside)


def linear_shapes(layer: str, inside: int, outside: int) -> Shapes:
    """Parameters of a linear layer."""
    return _named(layer, (outside, inside), outside)


def norm_shapes(layer: str, channels: int) -> Shapes:
    """Parameters of a normalisation."""
    return _named(layer, (channels,), channels)


def projection_shapes(module: str, names: tuple[str, ...], inside: int, outside: int) -> Shapes:
    """Parameters of linear layers without biases."""
    return {f"{module}.{name}.weight": (outside, inside) for name in names}
