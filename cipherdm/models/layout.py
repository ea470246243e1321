"""Which blocks a U-Net consists of, in which order, with which values between them and which parameters."""

from functools import lru_cache

from . import blocks
from .builder import Block, Builder, Shapes, linear, norm
from .condition_config import UNetConditionConfig
from .condition_layout import ConditionBuilder
from .config import UNetConfig


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
