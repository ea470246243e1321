"""The configuration of a U-Net with cross-attention: the part of diffusers' UNet2DConditionModel that this package computes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from ..errors import CipherDMError
from .checks import (
    check_block_types,
    check_choices,
    check_count,
    check_levels,
    check_number,
    check_tuple,
    known_fields,
    unsupported,
)

# Field: the values of it that are supported.
_CHOICES = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish", "mish", "gelu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "flip_sin_to_cos": (True, False),
    "use_linear_projection": (True, False),
    "upcast_attention": (True, False, None),
}
# What diffusers has beyond, for other families of models: options of which one value is supported, and so not stored.
_ABSENT = {
    "center_input_sample": False,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "dual_cross_attention": False,
    "num_attention_heads": None,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "addition_embed_type": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
_DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")


@dataclass(frozen=True)
class UNetConditionConfig:
    """diffusers' UNet2DConditionModel configuration, of Stable Diffusion 1 and 2: its field names and defaults, hashable.

    `attention_head_dim` is the number of heads, of all levels or of each, as diffusers takes it for this class against
    the field's name. `upcast_attention` asks for float32 inside models of half precision; here everything is float32, so it
    changes nothing. `dropout` is kept for those who train with diffusers.
    Raises CipherDMError, naming the field, its value and what is supported, for what this package does not compute.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    resnet_time_scale_shift: str = "default"
    num_class_embeds: int | None = None

    def __post_init__(self):
        _check(self)

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any]) -> "UNetConditionConfig":
        """Read the contents of a diffusers `config.json`.

        Keys that UNet2DConditionModel does not know are left out, as diffusers does. Raises CipherDMError as the class does,
        for options that it has no field for unless they are off, and if the contents belong to another class of model.
        """
        kind = values.get("_class_name", "UNet2DConditionModel")
        if kind != "UNet2DConditionModel":
            raise CipherDMError(f"The configuration is of a {kind}, and not of a UNet2DConditionModel.")
        for name, supported in _ABSENT.items():
            value = values.get(name, supported)
            entries = value if isinstance(value, list | tuple) and value else [value]  # one for all levels, or one each
            for entry in entries:
                if entry != supported and (entry or supported):  # False and None say the same
                    raise unsupported(name, value, repr(supported))
        return cls(**known_fields(cls, values))

    def to_diffusers(self) -> dict[str, Any]:
        """The contents of a `config.json`, which diffusers loads."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"_class_name": "UNet2DConditionModel", "_diffusers_version": metadata.version("diffusers"), **values}

    @property
    def time_channels(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    def heads(self, level: int) -> tuple[int, int]:
        """Heads, and channels of each, of the attention layers in a level, counted from the outside."""
        count = self.attention_head_dim
        count = count if isinstance(count, int) else count[level]
        return count, self.block_out_channels[level] // count


def _check(config: UNetConditionConfig) -> None:
    check_choices({name: getattr(config, name) for name in _CHOICES}, _CHOICES)
    check_block_types("down_block_types", config.down_block_types, _DOWN_BLOCKS)
    check_block_types("up_block_types", config.up_block_types, _UP_BLOCKS)
    check_tuple("block_out_channels", config.block_out_channels, int, "numbers of channels")
    counts = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim")
    for name in (*counts, "transformer_layers_per_block"):
        check_count(name, getattr(config, name))
    for name in ("num_class_embeds", "time_embedding_dim"):
        if getattr(config, name) is not None:
            check_count(name, getattr(config, name))
    for channels in config.block_out_channels:
        check_count("block_out_channels", channels)
    check_number("norm_eps", config.norm_eps, zero=True)
    check_number("mid_block_scale_factor", config.mid_block_scale_factor, zero=False)
    check_number("dropout", config.dropout, zero=True)
    check_levels(config)
    _check_heads(config)


def _check_heads(config: UNetConditionConfig) -> None:
    count, levels = config.attention_head_dim, len(config.block_out_channels)
    if isinstance(count, tuple) and len(count) != levels:
        raise unsupported("attention_head_dim", count, f"one number of heads, or {levels}, one for each level")
    for heads in count if isinstance(count, tuple) else (count,):
        check_count("attention_head_dim", heads)
    block_types = zip(config.down_block_types, reversed(config.up_block_types), strict=True)
    attending = {level for level, pair in enumerate(block_types) if any("CrossAttn" in kind for kind in pair)}
    if config.mid_block_type is not None:
        attending.add(levels - 1)
    for level in sorted(attending):
        if config.heads(level)[1] == 0:
            channels = config.block_out_channels[level]
            raise unsupported("attention_head_dim", count, f"at most {channels} heads in a level of so many channels")
