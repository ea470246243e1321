"""The configuration of a U-Net: the part of diffusers' UNet2DModel that this package computes."""

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

# Field: the values of it that are supported. diffusers has more; nobody should get another network than they asked for.
_CHOICES = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish", "mish", "gelu", "quad"),
    "attention_kernel": ("softmax", "linear"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
    "flip_sin_to_cos": (True, False),
    "add_attention": (True, False),
}
_DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
_UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")


@dataclass(frozen=True)
class UNetConfig:
    """diffusers' UNet2DModel configuration: its field names and defaults, with tuples for lists, hashable.

    `dropout` is kept for those who train with diffusers; the functions of this package do not drop anything.
    Two things are ours, for models distilled into cheaper functions, which diffusers refuses to load: the activation "quad",
    which also stands in the place of the SiLU before the last convolution, and `attention_kernel="linear"`.
    Raises CipherDMError, naming the field, its value and what is supported, for what this package does not compute.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    attention_kernel: str = "softmax"

    def __post_init__(self):
        _check(self)

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any]) -> "UNetConfig":
        """Read the contents of a diffusers `config.json`.

        Keys that UNet2DModel does not know are left out, as diffusers does. Raises CipherDMError as the class does, and
        if the contents belong to another class of model.
        """
        kind = values.get("_class_name", "UNet2DModel")
        if kind != "UNet2DModel":
            raise CipherDMError(f"The configuration is of a {kind}, and not of a UNet2DModel.")
        return cls(**known_fields(cls, values))

    def to_diffusers(self) -> dict[str, Any]:
        """The contents of a `config.json`, which diffusers loads if the functions are its own."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.attention_kernel == "softmax":
            del values["attention_kernel"]  # which diffusers does not know
        return {"_class_name": "UNet2DModel", "_diffusers_version": metadata.version("diffusers"), **values}

    @property
    def time_channels(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    def heads(self, channels: int) -> tuple[int, int]:
        """Heads, and channels of each, of an attention layer over `channels` channels."""
        size = self.attention_head_dim or channels
        return channels // size, size


def _check(config: UNetConfig) -> None:
    check_choices({name: getattr(config, name) for name in _CHOICES}, _CHOICES)
    check_block_types("down_block_types", config.down_block_types, _DOWN_BLOCKS)
    check_block_types("up_block_types", config.up_block_types, _UP_BLOCKS)
    check_tuple("block_out_channels", config.block_out_channels, int, "numbers of channels")
    for name in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups"):
        check_count(name, getattr(config, name))
    for name in ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds", "time_embedding_dim"):
        if getattr(config, name) is not None:
            check_count(name, getattr(config, name))
    for channels in config.block_out_channels:
        check_count("block_out_channels", channels)
    for name, zero in (("norm_eps", True), ("mid_block_scale_factor", False), ("dropout", True)):
        check_number(name, getattr(config, name), zero=zero)
    check_levels(config)
    _check_attention(config)


def _check_attention(config: UNetConfig) -> None:
    attending = [
        channels
        for down, up, channels in zip(
            config.down_block_types, reversed(config.up_block_types), config.block_out_channels, strict=True
        )
        if down.startswith("Attn") or up.startswith("Attn")
    ]
    if config.mid_block_type is not None and config.add_attention:
        last = config.block_out_channels[-1]
        attending.append(last)
        if config.attn_norm_num_groups is not None and last % config.attn_norm_num_groups:
            raise unsupported("attn_norm_num_groups", config.attn_norm_num_groups, f"a divisor of {last}")
    for channels in attending:
        if config.heads(channels)[0] == 0:
            raise unsupported(
                "attention_head_dim",
                config.attention_head_dim,
                f"at most {channels}, the channels of a level that attends",
            )
