"""The walk through a UNet2DConditionModel."""

from . import condition_blocks as blocks
from .builder import Builder, conv, linear, norm
from .condition_config import UNetConditionConfig


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
