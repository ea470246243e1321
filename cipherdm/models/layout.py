"""The blocks that a U-Net consists of, in order, with the values between them and the parameters of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import blocks
from .config import UNetConditionConfig, UNetConfig

Shapes = dict[str, tuple[int, ...]]
GUIDANCE = "time_embedding.cond_proj.weight"  # of models that are told the guidance scale


@dataclass(frozen=True)
class Block:
    """One named pure function of a U-Net.

    A value has the name of the block that writes it, except "emb" and "eps". Each residual block's "time_term", and the
    prompt's "k" and "v" for each cross-attention, are named after the block that reads them.

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
        """Compute the output, or a tuple of outputs, from arrays under local names and input arrays."""
        return self.function(params_local, *inputs, protocols=protocols, **dict(self.static))


def unet_blocks(config: UNetConfig | UNetConditionConfig) -> tuple[Block, ...]:
    """Return the blocks in an order of execution: time blocks, context blocks if there are any, the others.

    The graph's inputs are "sample" [B, C, H, W], "timestep" [1], "class_onehot" [B, num_class_embeds] if there are classes,
    and "encoder_hidden_states" [B, tokens, cross_attention_dim] for a UNet2DConditionModel; its output is "eps".
    """
    return _layout(config)[0]


def last_resnet(blocks: Sequence[Block]) -> int:
    """Return the number of the last residual block, whose first input is what comes from all those below."""
    return max(number for number, block in enumerate(blocks) if block.kind == "resnet")


def unet_shapes(config: UNetConfig | UNetConditionConfig) -> Shapes:
    """Return the state dict's names with their shapes."""
    return dict(_layout(config)[1])


@lru_cache(maxsize=64)
def _layout(config: UNetConfig | UNetConditionConfig) -> tuple[tuple[Block, ...], Shapes]:
    builder = _Builder(config)
    builder.build()
    return (*builder.time_blocks, *builder.context_blocks, *builder.blocks), builder.shapes


class _Builder:
    """Walks a configuration as the model's constructor and forward do in diffusers, and writes down the blocks it meets."""

    def __init__(self, config: UNetConfig | UNetConditionConfig):
        self.config = config
        self.act_fn = "silu" if config.act_fn == "swish" else config.act_fn
        self.prompts = isinstance(config, UNetConditionConfig)
        self.time_blocks: list[Block] = []  # depend on weights, step and class alone
        self.context_blocks: list[Block] = []  # depend on weights and prompt alone
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
                if "Attn" in kind:
                    self.attend(f"{path}.attentions.{index}", channels, level)
                skips.append((self.last, channels))
            if level != final:
                static = {"padding": config.downsample_padding}
                shapes = _conv("conv", channels, channels, 3)
                self.chain(f"{path}.downsamplers.0", "downsample", blocks.downsample, shapes, **static)
                skips.append((self.last, channels))

        if config.mid_block_type is not None:
            scale = config.mid_block_scale_factor
            self.resnet("mid_block.resnets.0", channels, channels, output_scale=scale)
            self.attend_in_middle(channels)
            self.resnet("mid_block.resnets.1", channels, channels, output_scale=scale)

        for level, (kind, width) in enumerate(zip(config.up_block_types, reversed(widths), strict=True)):
            path = f"up_blocks.{level}"
            for index in range(config.layers_per_block + 1):
                self.resnet(f"{path}.resnets.{index}", channels, width, skip=skips.pop())
                channels = width
                if "Attn" in kind:
                    self.attend(f"{path}.attentions.{index}", channels, final - level)
            if level != final:
                shapes = _conv("conv", channels, channels, 3)
                self.chain(f"{path}.upsamplers.0", "upsample", blocks.upsample, shapes)

        shapes = _norm("conv_norm_out", channels) | _conv("conv_out", channels, config.out_channels, 3)
        # A UNet2DModel ends in SiLU, whatever act_fn says; "quad" is not diffusers' and replaces it.
        act_fn = self.act_fn if self.prompts or self.act_fn == "quad" else "silu"
        static = {"groups": config.norm_num_groups, "eps": config.norm_eps, "act_fn": act_fn}
        self.chain("conv_out", "conv_out", blocks.conv_out, shapes, prefix="", output="eps", **static)

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
        static = {
            "channels": inside,
            "flip_sin_to_cos": config.flip_sin_to_cos,
            "freq_shift": config.freq_shift,
            # As diffusers gives it, which does not know "quad".
            "act_fn": self.act_fn if self.prompts and self.act_fn != "quad" else "silu",
        }
        if getattr(config, "time_cond_proj_dim", None):  # no block reads it; see `at_guidance`
            self.shapes[GUIDANCE] = (inside, config.time_cond_proj_dim)
        name, function = "time_embedding", blocks.time_embedding
        self.time_blocks.append(self.block(name, name, function, inputs, ("emb",), shapes, pairs, static))

    def attend(self, name: str, channels: int, level: int) -> None:
        """Append what follows a residual block in a level that attends. Levels are counted from the outside."""
        if self.prompts:
            self.transformer(name, channels, level)
        else:
            self.attention(name, channels, self.config.norm_num_groups)

    def attend_in_middle(self, channels: int) -> None:
        config = self.config
        name = "mid_block.attentions.0"
        if self.prompts:
            self.transformer(name, channels, len(config.block_out_channels) - 1)
        elif config.add_attention:
            groups = config.attn_norm_num_groups
            if groups is None and config.resnet_time_scale_shift == "default":
                groups = config.norm_num_groups
            self.attention(name, channels, groups, output_scale=config.mid_block_scale_factor)

    def resnet(self, name: str, inside: int, outside: int, skip=None, output_scale: float = 1) -> None:
        config = self.config
        scale_shift = config.resnet_time_scale_shift == "scale_shift"

        path, term = f"{name}.time_emb_proj", f"{name}.time_term"
        shapes = _linear("", config.time_channels, 2 * outside if scale_shift else outside)
        pairs = {local: f"{path}.{local}" for local in shapes}
        static = {"act_fn": self.act_fn}
        block = self.block(path, "time_projection", blocks.time_projection, ["emb"], (term,), shapes, pairs, static)
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
            "act_fn": self.act_fn,
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
            "output_scale": output_scale,
            "kernel": self.config.attention_kernel,
        }
        self.chain(name, "attention", blocks.attention, shapes, **static)

    def transformer(self, name: str, channels: int, level: int) -> None:
        """Append Transformer2DModel of diffusers, each of its parts a block, so that programs stay small."""
        config, hidden = self.config, self.last
        heads, size = config.heads(level)
        inside = heads * size
        static = {"linear_projection": config.use_linear_projection}

        shapes = _norm("norm", channels) | self._projection("proj_in", channels, inside)
        groups = {"groups": config.norm_num_groups}
        self.part(name, "proj_in", "transformer_in", blocks.transformer_in, shapes, **groups, **static)
        for index in range(config.transformer_layers_per_block):
            self.transformer_block(f"{name}.transformer_blocks.{index}", inside, heads)
        shapes, inputs = self._projection("proj_out", inside, channels), [self.last, hidden]
        self.part(name, "proj_out", "transformer_out", blocks.transformer_out, shapes, inputs=inputs, **static)

    def transformer_block(self, path: str, channels: int, heads: int) -> None:
        """Append BasicTransformerBlock of diffusers."""
        shapes = _norm("norm1", channels) | _projections("attn1", ("to_q", "to_k", "to_v"), channels, channels)
        shapes |= _linear("attn1.to_out.0", channels, channels)
        self.part(path, "attn1", "self_attention", blocks.self_attention, shapes, heads=heads)

        shapes = _projections("attn2", ("to_k", "to_v"), self.config.cross_attention_dim, channels)
        pairs = {local: f"{path}.{local}" for local in shapes}
        outputs = (f"{path}.attn2.k", f"{path}.attn2.v")
        inputs = ["encoder_hidden_states"]
        name = f"{path}.attn2.context"
        self.context_blocks.append(self.block(name, "context", blocks.context, inputs, outputs, shapes, pairs, {}))

        shapes = _norm("norm2", channels) | _projections("attn2", ("to_q",), channels, channels)
        shapes |= _linear("attn2.to_out.0", channels, channels)
        inputs = [self.last, *outputs]
        self.part(path, "attn2", "cross_attention", blocks.cross_attention, shapes, inputs=inputs, heads=heads)

        # Four times as wide inside, and twice that for value and gate.
        shapes = _norm("norm3", channels) | _linear("ff.net.0.proj", channels, 8 * channels)
        shapes |= _linear("ff.net.2", 4 * channels, channels)
        self.part(path, "ff", "feed_forward", blocks.feed_forward, shapes)

    def part(self, path, name, kind, function, shapes, **rest) -> None:
        """Append a block that has the name of one module, and parameters of others beside it."""
        self.chain(f"{path}.{name}", kind, function, shapes, prefix=f"{path}.", **rest)

    def _projection(self, name: str, inside: int, outside: int):
        return _linear(name, inside, outside) if self.config.use_linear_projection else _conv(name, inside, outside, 1)

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


def _conv(layer: str, inside: int, outside: int, kernel: int) -> Shapes:
    """Parameters of a square convolution."""
    return _named(layer, (outside, inside, kernel, kernel), outside)


def _linear(layer: str, inside: int, outside: int) -> Shapes:
    """Parameters of a linear layer."""
    return _named(layer, (outside, inside), outside)


def _norm(layer: str, channels: int) -> Shapes:
    """Parameters of a normalisation."""
    return _named(layer, (channels,), channels)


def _projections(module: str, names: tuple[str, ...], inside: int, outside: int) -> Shapes:
    """Parameters of linear layers without biases."""
    return {f"{module}.{name}.weight": (outside, inside) for name in names}
