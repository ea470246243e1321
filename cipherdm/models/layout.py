"""Which blocks a U-Net consists of, in which order, with which values between them and which parameters."""

# FROM cipherdm.models.builder:
# The walk through a U-Net's configuration that writes down its blocks: all that diffusers' U-Nets have in common.

# FROM cipherdm.models.condition_layout:
# The walk through a UNet2DConditionModel.

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import blocks
from .config import UNetConditionConfig, UNetConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Block:
    """One named pure function of a U-Net.

    Values are named by the block that writes them, except "emb", "eps", each residual block's "time_term", and the prompt's
    "k" and "v" of each cross-attention, which are named by the block that reads them.

    Two blocks with equal `function`, `static`, local parameter names and shapes compute the same thing: one compiled
    program serves both.
    """

    name: str  # diffusers' module path, such as "down_blocks.0.resnets.1"
    # time_embedding, time_projection, conv_in, resnet, downsample, upsample or conv_out; in a UNet2DModel attention; in a
    # UNet2DConditionModel context, transformer_in, self_attention, cross_attention, feed_forward or transformer_out
    kind: str
    inputs: tuple[str, ...]  # the values it reads, in the order of the positional arguments
    outputs: tuple[str, ...]  # the values it writes
    params: tuple[tuple[str, str], ...]  # pairs of a local name and the name in the state dict
    function: Callable  # a module-level function(params, *inputs, protocols=..., **static)
    static: tuple[tuple[str, Any], ...]  # its other keyword arguments

    def __call__(self, params_local: Mapping, *inputs, protocols):
        """The output, or a tuple of outputs, from arrays under local names and input arrays."""
        return self.function(params_local, *inputs, protocols=protocols, **dict(self.static))


class Builder(ABC):
    """Walks a configuration as the model's constructor and forward do in diffusers, and writes down the blocks it meets.

    What the levels and the middle attend with is each model's own.
    """

    def __init__(self, config: UNetConfig | UNetConditionConfig, time_act_fn: str, last_act_fn: str):
        self.config = config
        self.time_act_fn = time_act_fn  # between the linear layers of the time embedding
        self.last_act_fn = last_act_fn  # before the last convolution
        self.time_blocks: list[Block] = []  # which depend on nothing but weights, step and class
        self.context_blocks: list[Block] = []  # which depend on nothing but weights and prompt
        self.blocks: list[Block] = []
        self.shapes: Shapes = {}
        self.last = "sample"  # the value that the next block reads

    @abstractmethod
    def attend(self, name: str, channels: int, level: int) -> None:
        """Append what follows a residual block in a level that attends. Levels are counted from the outside."""

    @abstractmethod
    def middle(self, channels: int) -> None:
        """Append what the middle consists of."""

    def build(self) -> None:
        config = self.config
        widths = config.block_out_channels
        final = len(widths) - 1
        self.time_embedding()
        self.chain("conv_in", "conv_in", blocks.conv_in, conv("", config.in_channels, widths[0], 3), prefix="conv_in.")
        skips = [(self.last, widths[0])]

        channels = widths[0]
        for level, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
            path = f"down_blocks.{level}"
            for index in range(config.layers_per_block):
                self.resnet(f"{path}.resnets.{index}", channels, width)
                channels = width
                if "Attn" in kind:
                    self.attend(f"{path}.attentions.{index}", channels, level)
                skips.append((self.last, channels))
            if level != final:
                static = {"padding": config.downsample_padding}
                shapes = conv("conv", channels, channels, 3)
                self.chain(f"{path}.downsamplers.0", "downsample", blocks.downsample, shapes, **static)
                skips.append((self.last, channels))

        if config.mid_block_type is not None:
            self.middle(channels)

        for level, (kind, width) in enumerate(zip(config.up_block_types, reversed(widths), strict=True)):
            path = f"up_blocks.{level}"
            for index in range(config.layers_per_block + 1):
                self.resnet(f"{path}.resnets.{index}", channels, width, skip=skips.pop())
                channels = width
                if "Attn" in kind:
                    self.attend(f"{path}.attentions.{index}", channels, final - level)
            if level != final:
                shapes = conv("conv", channels, channels, 3)
                self.chain(f"{path}.upsamplers.0", "upsample", blocks.upsample, shapes)

        shapes = norm("conv_norm_out", channels) | conv("conv_out", channels, config.out_channels, 3)
        static = {"groups": config.norm_num_groups, "eps": config.norm_eps, "act_fn": self.last_act_fn}
        self.chain("conv_out", "conv_out", blocks.conv_out, shapes, prefix="", output="eps", **static)

    def time_embedding(self) -> None:
        config = self.config
        inside, outside = config.block_out_channels[0], config.time_channels
        shapes = linear("linear_1", inside, outside) | linear("linear_2", outside, outside)
        pairs = {name: f"time_embedding.{name}" for name in shapes}
        inputs = ["timestep"]
        if config.num_class_embeds is not None:
            inputs.append("class_onehot")
            shapes["class_embedding.weight"] = (config.num_class_embeds, outside)
            pairs["class_embedding.weight"] = "class_embedding.weight"
        static = {
            "channels": inside,
            "flip_sin_to_cos": config.flip_sin_to_cos,
            "freq_shift": config.freq_shift,
            "act_fn": self.time_act_fn,
        }
        name, function = "time_embedding", blocks.time_embedding
        self.time_blocks.append(self.block(name, name, function, inputs, ("emb",), shapes, pairs, static))

    def resnet(self, name: str, inside: int, outside: int, skip=None, output_scale: float = 1) -> None:
        config = self.config
        scale_shift = config.resnet_time_scale_shift == "scale_shift"
        act_fn = "silu" if config.act_fn == "swish" else config.act_fn

        path, term = f"{name}.time_emb_proj", f"{name}.time_term"
        shapes = linear("", config.time_channels, 2 * outside if scale_shift else outside)
        pairs = {local: f"{path}.{local}" for local in shapes}
        static = {"act_fn": act_fn}
        block = self.block(path, "time_projection", blocks.time_projection, ["emb"], (term,), shapes, pairs, static)
        self.time_blocks.append(block)

        inputs = [self.last, term]
        if skip is not None:
            inputs.insert(1, skip[0])
            inside += skip[1]
        shapes = norm("norm1", inside) | conv("conv1", inside, outside, 3)
        shapes |= norm("norm2", outside) | conv("conv2", outside, outside, 3)
        if inside != outside:
            shapes |= conv("conv_shortcut", inside, outside, 1)
        static = {
            "groups": config.norm_num_groups,
            "eps": config.norm_eps,
            "act_fn": act_fn,
            "scale_shift": scale_shift,
            "output_scale": output_scale,
        }
        self.chain(name, "resnet", blocks.resnet, shapes, inputs=inputs, **static)

    def chain(self, name, kind, function, shapes, *, inputs=None, output=None, prefix=None, **static) -> None:
        """Append a block that reads the last value (unless `inputs` says otherwise) and writes the next one."""
        prefix = f"{name}." if prefix is None else prefix
        pairs = {local: prefix + local for local in shapes}
        inputs = inputs or [self.last]
        self.last = output or name
        self.blocks.append(self.block(name, kind, function, inputs, (self.last,), shapes, pairs, static))

    def block(self, name, kind, function, inputs, outputs, shapes, pairs, static) -> Block:
        self.shapes |= {pairs[local]: shape for local, shape in shapes.items()}
        params, static = tuple(pairs.items()), tuple(static.items())
        return Block(name, kind, tuple(inputs), tuple(outputs), params, function, static)


def _named(layer: str, weight: tuple[int, ...], outside: int) -> Shapes:
    prefix = f"{layer}." if layer else ""
    return {f"{prefix}weight": weight, f"{prefix}bias": (outside,)}


def conv(layer: str, inside: int, outside: int, kernel: int) -> Shapes:
    """A square convolution's parameters."""
    return _named(layer, (outside, inside, kernel, kernel), outside)


def linear(layer: str, inside: int, outside: int, *, bias: bool = True) -> Shapes:
    """A linear layer's parameters."""
    shapes = _named(layer, (outside, inside), outside)
    return shapes if bias else {name: shape for name, shape in shapes.items() if name.endswith("weight")}


def norm(layer: str, channels: int) -> Shapes:
    """A normalisation's parameters."""
    return _named(layer, (channels,), channels)


def unet_blocks(config: UNetConfig | UNetConditionConfig) -> tuple[Block, ...]:
    """The blocks in an order in which they can be executed: time blocks, context blocks if there are any, the others.

    The graph's inputs are "sample" [B, C, H, W], "timestep" [1], "class_onehot" [B, num_class_embeds] if there are classes,
    and "encoder_hidden_states" [B, tokens, cross_attention_dim] for a UNet2DConditionModel; its output is "eps".
    """
    return _layout(config)[0]


def unet_shapes(config: UNetConfig | UNetConditionConfig) -> Shapes:
    """The state dict's names with their shapes."""
    return dict(_layout(config)[1])


@lru_cache(maxsize=64)
def _layout(config: UNetConfig | UNetConditionConfig) -> tuple[tuple[Block, ...], Shapes]:
    builder = ConditionBuilder(config) if isinstance(config, UNetConditionConfig) else _ImageBuilder(config)
    builder.build()
    return (*builder.time_blocks, *builder.context_blocks, *builder.blocks), builder.shapes


class _ImageBuilder(Builder):
    """The walk through a UNet2DModel."""

    def __init__(self, config: UNetConfig):
        # At both ends diffusers takes SiLU whatever act_fn says.
        super().__init__(config, time_act_fn="silu", last_act_fn="quad" if config.act_fn == "quad" else "silu")

    def attend(self, name: str, channels: int, level: int) -> None:
        self.attention(name, channels, self.config.norm_num_groups)

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

    def attention(self, name: str, channels: int, groups: int | None, output_scale: float = 1) -> None:
        heads, size = self.config.heads(channels)
        shapes = {} if groups is None else norm("group_norm", channels)
        for projection in ("to_q", "to_k", "to_v"):
            shapes |= linear(projection, channels, heads * size)
        shapes |= linear("to_out.0", heads * size, channels)
        static = {
            "groups": groups,
            "eps": self.config.norm_eps,
            "heads": heads,
            "head_channels": size,
            "output_scale": output_scale,
            "kernel": self.config.attention_kernel,
        }
        self.chain(name, "attention", blocks.attention, shapes, **static)


class ConditionBuilder(Builder):
    """What a UNet2DConditionModel attends with: a transformer of several blocks, so that each is a program of its own.

    Cross-attention reads keys and values that a context block wrote, which is executed once for each prompt.
    """

    def __init__(self, config: UNetConditionConfig):
        act_fn = "silu" if config.act_fn == "swish" else config.act_fn
        super().__init__(config, time_act_fn=act_fn, last_act_fn=act_fn)

    def middle(self, channels: int) -> None:
        scale = self.config.mid_block_scale_factor
        self.resnet("mid_block.resnets.0", channels, channels, output_scale=scale)
        self.attend("mid_block.attentions.0", channels, len(self.config.block_out_channels) - 1)
        self.resnet("mid_block.resnets.1", channels, channels, output_scale=scale)

    def attend(self, name: str, channels: int, level: int) -> None:
        config, hidden = self.config, self.last
        heads, size = config.heads(level)
        inside = heads * size
        static = {"linear_projection": config.use_linear_projection}

        shapes = norm("norm", channels) | self._projection("proj_in", channels, inside)
        groups = {"groups": config.norm_num_groups}
        self.part(name, "proj_in", "transformer_in", blocks.transformer_in, shapes, **groups, **static)
        for index in range(config.transformer_layers_per_block):
            self.transformer(f"{name}.transformer_blocks.{index}", inside, heads)
        shapes, inputs = self._projection("proj_out", inside, channels), [self.last, hidden]
        self.part(name, "proj_out", "transformer_out", blocks.transformer_out, shapes, inputs=inputs, **static)

    def transformer(self, path: str, channels: int, heads: int) -> None:
        """BasicTransformerBlock in diffusers."""
        shapes = norm("norm1", channels) | _projections("attn1", ("to_q", "to_k", "to_v"), channels, channels)
        shapes |= linear("attn1.to_out.0", channels, channels)
        self.part(path, "attn1", "self_attention", blocks.self_attention, shapes, heads=heads)

        shapes = _projections("attn2", ("to_k", "to_v"), self.config.cross_attention_dim, channels)
        pairs = {local: f"{path}.{local}" for local in shapes}
        outputs = (f"{path}.attn2.k", f"{path}.attn2.v")
        inputs = ["encoder_hidden_states"]
        name = f"{path}.attn2.context"
        self.context_blocks.append(self.block(name, "context", blocks.context, inputs, outputs, shapes, pairs, {}))

        shapes = norm("norm2", channels) | _projections("attn2", ("to_q",), channels, channels)
        shapes |= linear("attn2.to_out.0", channels, channels)
        inputs = [self.last, *outputs]
        self.part(path, "attn2", "cross_attention", blocks.cross_attention, shapes, inputs=inputs, heads=heads)

        # Four times as wide inside, and twice that for value and gate.
        shapes = norm("norm3", channels) | linear("ff.net.0.proj", channels, 8 * channels)
        shapes |= linear("ff.net.2", 4 * channels, channels)
        self.part(path, "ff", "feed_forward", blocks.feed_forward, shapes)

    def part(self, path, name, kind, function, shapes, **rest) -> None:
        """Append a block that is named after one module, and has parameters of others beside it."""
        self.chain(f"{path}.{name}", kind, function, shapes, prefix=f"{path}.", **rest)

    def _projection(self, name: str, inside: int, outside: int):
        return linear(name, inside, outside) if self.config.use_linear_projection else conv(name, inside, outside, 1)


def _projections(module: str, names: tuple[str, ...], inside: int, outside: int):
    shapes = {}
    for name in names:
        shapes |= linear(f"{module}.{name}", inside, outside, bias=False)
    return shapes
