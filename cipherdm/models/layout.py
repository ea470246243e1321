"""Which blocks a U-Net consists of, in which order, with which values between them and which parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import blocks
from .config import UNetConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Block:
    """One named pure function of a U-Net. Values are named by the block that writes them, except "emb" and "eps".

    Two blocks with equal `function`, `static`, local parameter names and shapes compute the same thing: one compiled
    program serves both.
    """

    name: str  # diffusers' module path, such as "down_blocks.0.resnets.1"
    kind: str  # time_embedding, time_projection, conv_in, resnet, attention, downsample, upsample or conv_out
    inputs: tuple[str, ...]  # the values it reads, in the order of the positional arguments
    outputs: tuple[str, ...]  # the values it writes
    params: tuple[tuple[str, str], ...]  # pairs of a local name and the name in the state dict
    function: Callable  # a module-level function(params, *inputs, protocols=..., **static)
    static: tuple[tuple[str, Any], ...]  # its other keyword arguments

    def __call__(self, params_local: Mapping, *inputs, protocols):
        """The output, or a tuple of outputs, from arrays under local names and input arrays."""
        return self.function(params_local, *inputs, protocols=protocols, **dict(self.static))


def unet_blocks(config: UNetConfig) -> tuple[Block, ...]:
    """The blocks in an order in which they can be executed, time blocks first.

    The graph's inputs are "sample" [B, C, H, W], "timestep" [1] and, if the model is conditional, "class_onehot"
    [B, num_class_embeds]; its output is "eps".
    """
    return _layout(config)[0]


def unet_shapes(config: UNetConfig) -> Shapes:
    """The state dict's names with their shapes."""
    return dict(_layout(config)[1])


@lru_cache(maxsize=64)
def _layout(config: UNetConfig) -> tuple[tuple[Block, ...], Shapes]:
    builder = _Builder(config)
    builder.build()
    return (*builder.time_blocks, *builder.blocks), builder.shapes


class _Builder:
    """Walks a configuration as UNet2DModel's constructor and forward do, and writes down the blocks it meets."""

    def __init__(self, config: UNetConfig):
        self.config = config
        self.time_blocks: list[Block] = []
        self.blocks: list[Block] = []
        self.shapes: Shapes = {}
        self.last = "sample"  # the value that the next block reads

    def build(self) -> None:
        config = self.config
        widths = config.block_out_channels
        final = len(widths) - 1
        self.time_embedding()
        self.chain("conv_in", "conv_in", blocks.conv_in, _conv("", config.in_channels, widths[0], 3), prefix="conv_in.")
        skips = [(self.last, widths[0])]

        channels = widths[0]
        for level, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
            path = f"down_blocks.{level}"
            for index in range(config.layers_per_block):
                self.resnet(f"{path}.resnets.{index}", channels, width)
                channels = width
                if kind.startswith("Attn"):
                    self.attention(f"{path}.attentions.{index}", channels, config.norm_num_groups)
                skips.append((self.last, channels))
            if level != final:
                static = {"padding": config.downsample_padding}
                shapes = _conv("conv", channels, channels, 3)
                self.chain(f"{path}.downsamplers.0", "downsample", blocks.downsample, shapes, **static)
                skips.append((self.last, channels))

        if config.mid_block_type is not None:
            self.middle(channels)

        for level, (kind, width) in enumerate(zip(config.up_block_types, reversed(widths), strict=True)):
            path = f"up_blocks.{level}"
            for index in range(config.layers_per_block + 1):
                self.resnet(f"{path}.resnets.{index}", channels, width, skip=skips.pop())
                channels = width
                if kind.startswith("Attn"):
                    self.attention(f"{path}.attentions.{index}", channels, config.norm_num_groups)
            if level != final:
                shapes = _conv("conv", channels, channels, 3)
                self.chain(f"{path}.upsamplers.0", "upsample", blocks.upsample, shapes)

        shapes = _norm("conv_norm_out", channels) | _conv("conv_out", channels, config.out_channels, 3)
        act_fn = "quad" if config.act_fn == "quad" else "silu"  # SiLU whatever act_fn says, as in diffusers
        static = {"groups": config.norm_num_groups, "eps": config.norm_eps, "act_fn": act_fn}
        self.chain("conv_out", "conv_out", blocks.conv_out, shapes, prefix="", output="eps", **static)

    def middle(self, channels: int) -> None:
        config = self.config
        scale = config.mid_block_scale_factor
        groups = config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        self.resnet("mid_block.resnets.0", channels, channels, output_scale=scale)
        if config.add_attention:
            self.attention("mid_block.attentions.0", channels, groups, output_scale=scale)
        self.resnet("mid_block.resnets.1", channels, channels, output_scale=scale)

    def time_embedding(self) -> None:
        config = self.config
        inside, outside = config.block_out_channels[0], config.time_channels
        shapes = _linear("linear_1", inside, outside) | _linear("linear_2", outside, outside)
        pairs = {name: f"time_embedding.{name}" for name in shapes}
        inputs = ["timestep"]
        if config.num_class_embeds is not None:
            inputs.append("class_onehot")
            shapes["class_embedding.weight"] = (config.num_class_embeds, outside)
            pairs["class_embedding.weight"] = "class_embedding.weight"
        static = {"channels": inside, "flip_sin_to_cos": config.flip_sin_to_cos, "freq_shift": config.freq_shift}
        block = self.block(
            "time_embedding", "time_embedding", blocks.time_embedding, inputs, "emb", shapes, pairs, static
        )
        self.time_blocks.append(block)

    def resnet(self, name: str, inside: int, outside: int, skip=None, output_scale: float = 1) -> None:
        config = self.config
        scale_shift = config.resnet_time_scale_shift == "scale_shift"
        act_fn = "silu" if config.act_fn == "swish" else config.act_fn

        path, term = f"{name}.time_emb_proj", f"{name}.time_term"
        shapes = _linear("", config.time_channels, 2 * outside if scale_shift else outside)
        pairs = {local: f"{path}.{local}" for local in shapes}
        static = {"act_fn": act_fn}
        block = self.block(path, "time_projection", blocks.time_projection, ["emb"], term, shapes, pairs, static)
        self.time_blocks.append(block)

        inputs = [self.last, term]
        if skip is not None:
            inputs.insert(1, skip[0])
            inside += skip[1]
        shapes = _norm("norm1", inside) | _conv("conv1", inside, outside, 3)
        shapes |= _norm("norm2", outside) | _conv("conv2", outside, outside, 3)
        if inside != outside:
            shapes |= _conv("conv_shortcut", inside, outside, 1)
        static = {
            "groups": config.norm_num_groups,
            "eps": config.norm_eps,
            "act_fn": act_fn,
            "scale_shift": scale_shift,
            "output_scale": output_scale,
        }
        self.chain(name, "resnet", blocks.resnet, shapes, inputs=inputs, **static)

    def attention(self, name: str, channels: int, groups: int | None, output_scale: float = 1) -> None:
        heads, size = self.config.heads(channels)
        shapes = {} if groups is None else _norm("group_norm", channels)
        for projection in ("to_q", "to_k", "to_v"):
            shapes |= _linear(projection, channels, heads * size)
        shapes |= _linear("to_out.0", heads * size, channels)
        static = {
            "groups": groups,
            "eps": self.config.norm_eps,
            "heads": heads,
            "head_channels": size,
            "output_scale": output_scale,
            "kernel": self.config.attention_kernel,
        }
        self.chain(name, "attention", blocks.attention, shapes, **static)

    def chain(self, name, kind, function, shapes, *, inputs=None, output=None, prefix=None, **static) -> None:
        """Append a block that reads the last value (unless `inputs` says otherwise) and writes the next one."""
        prefix = f"{name}." if prefix is None else prefix
        pairs = {local: prefix + local for local in shapes}
        inputs = inputs or [self.last]
        self.last = output or name
        self.blocks.append(self.block(name, kind, function, inputs, self.last, shapes, pairs, static))

    def block(self, name, kind, function, inputs, output, shapes, pairs, static) -> Block:
        self.shapes |= {pairs[local]: shape for local, shape in shapes.items()}
        params, static = tuple(pairs.items()), tuple(static.items())
        return Block(name, kind, tuple(inputs), (output,), params, function, static)


def _named(layer: str, weight: tuple[int, ...], outside: int) -> Shapes:
    prefix = f"{layer}." if layer else ""
    return {f"{prefix}weight": weight, f"{prefix}bias": (outside,)}


def _conv(layer: str, inside: int, outside: int, kernel: int) -> Shapes:
    return _named(layer, (outside, inside, kernel, kernel), outside)


def _linear(layer: str, inside: int, outside: int) -> Shapes:
    return _named(layer, (outside, inside), outside)


def _norm(layer: str, channels: int) -> Shapes:
    return _named(layer, (channels,), channels)
