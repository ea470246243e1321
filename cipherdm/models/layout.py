"""The blocks that a model of diffusers consists of, in order, with the values between them and the parameters of each."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from . import blocks
from .building import Block, Builder, Shapes, conv_shapes, linear_shapes, norm_shapes, projection_shapes
from .config import Config, DiTConfig, UNetConditionConfig
from .control import HINT_ENCODER, PREFIX, ZEROS, ControlledConfig, ControlNetConfig, in_controlled
from .dit import DiTBuilder

GUIDANCE = "time_embedding.cond_proj.weight"  # of models that are told the guidance scale


def unet_blocks(config: Config) -> tuple[Block, ...]:
    """Return the blocks in an order of execution: time blocks, context blocks if there are any, the others.

    The graph's inputs are "sample" [B, C, H, W], "timestep" [1], "class_onehot" [B, num_class_embeds] if there are classes,
    "encoder_hidden_states" [B, tokens, cross_attention_dim] for a UNet2DConditionModel, and "hint" [B, C, H, W] if it has a
    ControlNet; its output is "eps".
    """
    return _layout(config)[0]


def last_resnet(blocks: Sequence[Block]) -> int:
    """Return the number of the last residual block, whose first input is what comes from all those below; 0 without any."""
    return max((number for number, block in enumerate(blocks) if block.kind == "resnet"), default=0)


def unet_shapes(config: Config) -> Shapes:
    """Return the state dict's names with their shapes."""
    return dict(_layout(config)[1])


@lru_cache(maxsize=64)
def _layout(config: Config) -> tuple[tuple[Block, ...], Shapes]:
    kinds = {DiTConfig: DiTBuilder, ControlNetConfig: _ControlNetBuilder}
    builder = kinds.get(type(config), _UNetBuilder)(config)
    builder.build()
    return (*builder.time_blocks, *builder.context_blocks, *builder.blocks), builder.shapes


class _UNetBuilder(Builder):
    """Walks the configuration of a U-Net."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.act_fn = "silu" if config.act_fn == "swish" else config.act_fn
        self.prompts = isinstance(config, UNetConditionConfig)

    def build(self) -> None:
        self.time_embedding()
        self.first()
        skips = self.down()
        self.middle()
        if isinstance(self.config, ControlledConfig):
            skips = self.controlled(skips)
        self.up(skips)

    def first(self) -> None:
        config = self.config
        shapes = conv_shapes("", config.in_channels, config.block_out_channels[0], 3)
        self.chain("conv_in", "conv_in", blocks.conv_in, shapes, prefix="conv_in.")

    def down(self) -> list[tuple[str, int]]:
        """Append the way down; return the values that it keeps for the way up, in order, with their channels."""
        config = self.config
        widths = config.block_out_channels
        channels = widths[0]
        skips = [(self.last, channels)]
        for level, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
            path = f"down_blocks.{level}"
            for index in range(config.layers_per_block):
                self.resnet(f"{path}.resnets.{index}", channels, width)
                channels = width
                if "Attn" in kind:
                    self.attend(f"{path}.attentions.{index}", channels, level)
                skips.append((self.last, channels))
            if level != len(widths) - 1:
                static = {"padding": config.downsample_padding}
                shapes = conv_shapes("conv", channels, channels, 3)
                self.chain(f"{path}.downsamplers.0", "downsample", blocks.downsample, shapes, **static)
                skips.append((self.last, channels))
        return skips

    def middle(self) -> None:
        config, channels = self.config, self.config.block_out_channels[-1]
        if config.mid_block_type is not None:
            scale = config.mid_block_scale_factor
            self.resnet("mid_block.resnets.0", channels, channels, output_scale=scale)
            self.attend_in_middle(channels)
            self.resnet("mid_block.resnets.1", channels, channels, output_scale=scale)

    def controlled(self, skips: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Append the ControlNet, and the sums of what it gives with skips and the middle."""
        control = _ControlNetBuilder(self.config.control)
        control.build()
        for own, others in ((self.time_blocks, control.time_blocks), (self.context_blocks, control.context_blocks)):
            own += map(in_controlled, others)
        self.blocks += map(in_controlled, control.blocks)
        self.shapes |= {PREFIX + name: shape for name, shape in control.shapes.items()}
        pairs = zip([*skips, (self.last, 0)], control.added, strict=True)
        *skips, _ = [(self.sum(value, PREFIX + added), channels) for (value, channels), added in pairs]
        return skips

    def sum(self, value: str, added: str) -> str:
        """Append the sum of two values, and return its name."""
        self.chain(f"{added}.added", "sum", blocks.sum_of, {}, inputs=[value, added])
        return self.last

    def up(self, skips: list[tuple[str, int]]) -> None:
        config = self.config
        widths = config.block_out_channels
        final, channels = len(widths) - 1, widths[-1]
        for level, (kind, width) in enumerate(zip(config.up_block_types, reversed(widths), strict=True)):
            path = f"up_blocks.{level}"
            for index in range(config.layers_per_block + 1):
                self.resnet(f"{path}.resnets.{index}", channels, width, skip=skips.pop())
                channels = width
                if "Attn" in kind:
                    self.attend(f"{path}.attentions.{index}", channels, final - level)
            if level != final:
                shapes = conv_shapes("conv", channels, channels, 3)
                self.chain(f"{path}.upsamplers.0", "upsample", blocks.upsample, shapes)

        shapes = norm_shapes("conv_norm_out", channels) | conv_shapes("conv_out", channels, config.out_channels, 3)
        # A UNet2DModel ends in SiLU, whatever act_fn says; "quad" is not diffusers' and replaces it.
        act_fn = self.act_fn if self.prompts or self.act_fn == "quad" else "silu"
        static = {"groups": config.norm_num_groups, "eps": config.norm_eps, "act_fn": act_fn}
        self.chain("conv_out", "conv_out", blocks.conv_out, shapes, prefix="", output="eps", **static)

    def time_embedding(self) -> None:
        config = self.config
        inside, outside = config.block_out_channels[0], config.time_channels
        shapes = linear_shapes("linear_1", inside, outside) | linear_shapes("linear_2", outside, outside)
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
        shapes = linear_shapes("", config.time_channels, 2 * outside if scale_shift else outside)
        pairs = {local: f"{path}.{local}" for local in shapes}
        static = {"act_fn": self.act_fn}
        block = self.block(path, "time_projection", blocks.time_projection, ["emb"], (term,), shapes, pairs, static)
        self.time_blocks.append(block)

        inputs = [self.last, term]
        if skip is not None:
            inputs.insert(1, skip[0])
            inside += skip[1]
        shapes = norm_shapes("norm1", inside) | conv_shapes("conv1", inside, outside, 3)
        shapes |= norm_shapes("norm2", outside) | conv_shapes("conv2", outside, outside, 3)
        if inside != outside:
            shapes |= conv_shapes("conv_shortcut", inside, outside, 1)
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
        shapes = {} if groups is None else norm_shapes("group_norm", channels)
        for projection in ("to_q", "to_k", "to_v"):
            shapes |= linear_shapes(projection, channels, heads * size)
        shapes |= linear_shapes("to_out.0", heads * size, channels)
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

        shapes = norm_shapes("norm", channels) | self._projection("proj_in", channels, inside)
        groups = {"groups": config.norm_num_groups}
        self.part(name, "proj_in", "transformer_in", blocks.transformer_in, shapes, **groups, **static)
        for index in range(config.transformer_layers_per_block):
            self.transformer_block(f"{name}.transformer_blocks.{index}", inside, heads)
        shapes, inputs = self._projection("proj_out", inside, channels), [self.last, hidden]
        self.part(name, "proj_out", "transformer_out", blocks.transformer_out, shapes, inputs=inputs, **static)

    def transformer_block(self, path: str, channels: int, heads: int) -> None:
        """Append BasicTransformerBlock of diffusers."""
        shapes = norm_shapes("norm1", channels) | projection_shapes(
            "attn1", ("to_q", "to_k", "to_v"), channels, channels
        )
        shapes |= linear_shapes("attn1.to_out.0", channels, channels)
        self.part(path, "attn1", "self_attention", blocks.self_attention, shapes, heads=heads)

        self.cross_attention(path, channels, heads)

        # Four times as wide inside, and twice that for value and gate.
        shapes = norm_shapes("norm3", channels) | linear_shapes("ff.net.0.proj", channels, 8 * channels)
        shapes |= linear_shapes("ff.net.2", 4 * channels, channels)
        self.part(path, "ff", "feed_forward", blocks.feed_forward, shapes)

    def cross_attention(self, path: str, channels: int, heads: int) -> None:
        shapes = projection_shapes("attn2", ("to_k", "to_v"), self.config.cross_attention_dim, channels)
        pairs = {local: f"{path}.{local}" for local in shapes}
        outputs = (f"{path}.attn2.k", f"{path}.attn2.v")
        inputs = ["encoder_hidden_states"]
        name = f"{path}.attn2.context"
        self.context_blocks.append(self.block(name, "context", blocks.context, inputs, outputs, shapes, pairs, {}))

        shapes = norm_shapes("norm2", channels) | projection_shapes("attn2", ("to_q",), channels, channels)
        shapes |= linear_shapes("attn2.to_out.0", channels, channels)
        inputs = [self.last, *outputs]
        self.part(path, "attn2", "cross_attention", blocks.cross_attention, shapes, inputs=inputs, heads=heads)

    def _projection(self, name: str, inside: int, outside: int):
        return (
            linear_shapes(name, inside, outside)
            if self.config.use_linear_projection
            else conv_shapes(name, inside, outside, 1)
        )


class _ControlNetBuilder(_UNetBuilder):
    """Walks the configuration of a ControlNet."""

    def build(self) -> None:
        self.time_embedding()
        hint = self.hint()
        self.first()
        self.sum(self.last, hint)
        skips = self.down()
        self.middle()
        down, middle = ZEROS
        names = [f"{down}.{index}" for index in range(len(skips))] + [middle]
        for name, (value, channels) in zip(names, [*skips, (self.last, skips[-1][1])], strict=True):
            self.chain(name, "zero_conv", blocks.zero_conv, conv_shapes("", channels, channels, 1), inputs=[value])
        self.added = names  # values that are added to the U-Net's skips, and to its middle

    def hint(self) -> str:
        """Append the convolutions that encode the hint, and return the name of their result."""
        config = self.config
        last, inside = "hint", config.conditioning_channels
        channels = config.conditioning_embedding_out_channels
        layers = [("conv_in", channels[0], 1, "silu")]
        for index, (same, wider) in enumerate(pairwise(channels)):
            layers += [(f"blocks.{2 * index}", same, 1, "silu"), (f"blocks.{2 * index + 1}", wider, 2, "silu")]
        layers.append(("conv_out", config.block_out_channels[0], 1, None))
        for leaf, outside, stride, act_fn in layers:
            name, shapes = f"{HINT_ENCODER}.{leaf}", conv_shapes("", inside, outside, 3)
            pairs, static = {local: f"{name}.{local}" for local in shapes}, {"stride": stride, "act_fn": act_fn}
            block = self.block(name, "hint", blocks.hint_conv, [last], (name,), shapes, pairs, static)
            self.context_blocks.append(block)
            last, inside = name, outside
        return last

    def cross_attention(self, path: str, channels: int, heads: int) -> None:
        if not self.config.hide_prompt:
            super().cross_attention(path, channels, heads)
