"""The configuration of a U-Net: the part of diffusers' UNet2DModel that this package computes."""

# FROM cipherdm.models.checks:
# What the configurations of both kinds of U-Net are checked for. Errors name the field, its value and what is supported.

# FROM cipherdm.models.condition_config:
# The configuration of a U-Net with cross-attention: the part of diffusers' UNet2DConditionModel that this package computes.

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import Any

from ..errors import CipherDMError

_TUPLES = ("down_block_types", "up_block_types")


def known_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `config.json` that the dataclass `kind` has fields for, with tuples for lists."""
    known = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    for name in _TUPLES:
        if isinstance(known.get(name), tuple):  # an older spelling, which diffusers reads in the same way
            known[name] = tuple(str(block_type).removeprefix("UNetRes") for block_type in known[name])
    return known


def check_choices(values: Mapping[str, Any], choices: Mapping[str, tuple]) -> None:
    """Raise CipherDMError unless each value is one of its choices."""
    for name, supported in choices.items():
        value = values[name]
        if not any(value is choice or (choice is not None and value == choice) for choice in supported):
            raise unsupported(name, value, "one of " + ", ".join(repr(choice) for choice in supported))


def check_block_types(name: str, value: Any, supported: tuple[str, ...]) -> None:
    """Raise CipherDMError unless `value` is a tuple of supported block types."""
    check_tuple(name, value, str, "block types")
    for block_type in value:
        if block_type not in supported:
            raise unsupported(name, block_type, "made of " + ", ".join(supported))


def check_tuple(name: str, value: Any, kind: type, what: str) -> None:
    """Raise CipherDMError unless `value` is a tuple that holds something, all of that type."""
    if not isinstance(value, tuple) or not value or not all(isinstance(entry, kind) for entry in value):
        raise unsupported(name, value, f"a sequence of {what}")


def check_count(name: str, value: Any) -> None:
    """Raise CipherDMError unless `value` is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise unsupported(name, value, "a positive whole number")


def check_number(name: str, value: Any, *, zero: bool) -> None:
    """Raise CipherDMError unless `value` is a finite positive number, or zero if `zero` says so."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise unsupported(name, value, "a number from 0 on" if zero else "a positive number")


def check_levels(config) -> None:
    """Raise CipherDMError unless the numbers of levels, groups, frequencies and pixels fit together."""
    levels = len(config.block_out_channels)
    for name in ("down_block_types", "up_block_types"):
        if len(getattr(config, name)) != levels:
            raise unsupported(name, getattr(config, name), f"as long as block_out_channels, that is {levels} entries")
    for channels in config.block_out_channels:
        if channels % config.norm_num_groups:
            raise unsupported("norm_num_groups", config.norm_num_groups, f"a divisor of {channels}, a level's channels")
    if not isinstance(config.freq_shift, int | float) or config.freq_shift >= config.block_out_channels[0] // 2:
        raise unsupported("freq_shift", config.freq_shift, "a number below half of block_out_channels[0]")
    if config.sample_size is not None:
        size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
        factor = 2 ** (levels - 1)
        if len(size) != 2 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 or n % factor for n in size):
            raise unsupported("sample_size", config.sample_size, f"multiples of {factor}, for {levels} levels")


def unsupported(name: str, value: Any, supported: str) -> CipherDMError:
    """The error for a field's value that this package does not compute."""
    return CipherDMError(f"The U-Net's {name} is {value!r}, which is not supported. It must be {supported}.")


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


# Field: the values of it that are supported.
_CONDITION_CHOICES = {
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

_CONDITION_DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")

_CONDITION_UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")


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
        _check_condition(self)

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


def _check_condition(config: UNetConditionConfig) -> None:
    check_choices({name: getattr(config, name) for name in _CONDITION_CHOICES}, _CONDITION_CHOICES)
    check_block_types("down_block_types", config.down_block_types, _CONDITION_DOWN_BLOCKS)
    check_block_types("up_block_types", config.up_block_types, _CONDITION_UP_BLOCKS)
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
