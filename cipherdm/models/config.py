"""Configurations: the parts of diffusers' UNet2DModel, UNet2DConditionModel and DiTTransformer2DModel that are computed here.

Errors name the field, its value and what is supported.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import Any, ClassVar, Self

from ..errors import CipherDMError

_TUPLES = ("down_block_types", "up_block_types")


class Config:
    """Behaviour that all configurations share, and checks of the fields that they have."""

    # diffusers' class.
    _kind: ClassVar[str]
    # Field: its supported values. diffusers has more; nobody should get another network than they asked for.
    _choices: ClassVar[Mapping[str, tuple]]
    # Options that diffusers has for other families of models. One value of each is supported, so it is not stored; those in
    # `_off` have to be off, which False and None both say.
    _absent: ClassVar[Mapping[str, Any]] = {}
    _off: ClassVar[str] = ""
    # Fields that are positive whole numbers, those that may be None instead, and numbers, with whether they may be 0.
    _counts: ClassVar[tuple[str, ...]]
    _optional_counts: ClassVar[tuple[str, ...]] = ()
    _numbers: ClassVar[Mapping[str, bool]]

    def __post_init__(self):
        for name, choices in self._choices.items():
            value = getattr(self, name)
            if not any(value is choice or (choice is not None and value == choice) for choice in choices):
                raise _unsupported(name, value, "one of " + ", ".join(map(repr, choices)))
        for name in self._counts:
            _check_count(name, getattr(self, name))
        for name in self._optional_counts:
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name, zero in self._numbers.items():
            _check_number(name, getattr(self, name), zero=zero)
        self._check()

    @classmethod
    def from_diffusers(cls, values: Mapping[str, Any]) -> Self:
        """Read the contents of a diffusers `config.json`.

        Keys that diffusers' class does not know are left out, as diffusers does. Raises CipherDMError if a value is not
        supported, an option without a field here is on, or the contents belong to another class of model.
        """
        kind = values.get("_class_name", cls._kind)
        if kind != cls._kind:
            raise CipherDMError(f"The configuration is of a {kind}, and not of a {cls._kind}.")
        for name, supported in (cls._absent | dict.fromkeys(cls._off.split())).items():
            value = values.get(name, supported)
            entries = value if isinstance(value, list | tuple) and value else [value]  # one for all levels, or one each
            for entry in entries:
                if entry != supported and (entry or supported):  # False and None say the same
                    raise _unsupported(name, value, repr(supported) if supported else "off")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        for name in _TUPLES:
            if isinstance(known.get(name), tuple):  # an older spelling, which diffusers reads in the same way
                known[name] = tuple(str(block_type).removeprefix("UNetRes") for block_type in known[name])
        return cls(**known)

    def to_diffusers(self) -> dict[str, Any]:
        """Return the contents of a `config.json`, which diffusers loads if the functions are its own."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"_class_name": self._kind, "_diffusers_version": metadata.version("diffusers"), **values}

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a sample. `sample_size` must not be None."""
        size = self.sample_size
        return (self.in_channels, *((size, size) if isinstance(size, int) else size))


class _UNet(Config):
    """What the configurations of U-Nets share."""

    _down_blocks: ClassVar[tuple[str, ...]]
    _up_blocks: ClassVar[tuple[str, ...]]
    _counts = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
    _optional_counts = ("num_class_embeds", "time_embedding_dim")
    _numbers = {"norm_eps": True, "mid_block_scale_factor": False, "dropout": True}

    def _check(self) -> None:
        for name, supported in (("down_block_types", self._down_blocks), ("up_block_types", self._up_blocks)):
            _check_tuple(name, getattr(self, name), str, "block types")
            for block_type in getattr(self, name):
                if block_type not in supported:
                    raise _unsupported(name, block_type, "made of " + ", ".join(supported))
        _check_tuple("block_out_channels", self.block_out_channels, int, "numbers of channels")
        for channels in self.block_out_channels:
            _check_count("block_out_channels", channels)
        _check_levels(self)
        self._check_attention()

    @property
    def time_channels(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def multiple(self) -> int:
        """What height and width of a sample have to be multiples of."""
        return 2 ** (len(self.block_out_channels) - 1)

    def _attending(self) -> list[int]:
        """Levels with attention on the way down or up, counted from the outside."""
        pairs = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        return [level for level, pair in enumerate(pairs) if any("Attn" in kind for kind in pair)]


@dataclass(frozen=True)
class UNetConfig(_UNet):
    """diffusers' UNet2DModel configuration: its field names and defaults, with tuples for lists, hashable.

    `dropout` is kept for those who train with diffusers; this package drops nothing. Two things are ours, for models distilled
    into cheaper functions, and diffusers refuses to load them: the activation "quad", which also replaces the SiLU before the
    last convolution, and `attention_kernel="linear"`. Raises CipherDMError if this package does not compute what a field asks
    for.
    """

    _kind = "UNet2DModel"
    _choices = {
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
    _down_blocks = ("DownBlock2D", "AttnDownBlock2D")
    _up_blocks = ("UpBlock2D", "AttnUpBlock2D")
    _optional_counts = ("attention_head_dim", "attn_norm_num_groups", *_UNet._optional_counts)

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

    def to_diffusers(self) -> dict[str, Any]:
        """Return the contents of a `config.json`, which diffusers loads if the functions are its own."""
        values = super().to_diffusers()
        if self.attention_kernel == "softmax":
            del values["attention_kernel"]  # diffusers does not know it
        return values

    def heads(self, channels: int) -> tuple[int, int]:
        """Return the number of heads of an attention layer over `channels` channels, and the channels of each."""
        size = self.attention_head_dim or channels
        return channels // size, size

    def _check_attention(self) -> None:
        attending = [self.block_out_channels[level] for level in self._attending()]
        if self.mid_block_type is not None and self.add_attention:
            last = self.block_out_channels[-1]
            attending.append(last)
            if self.attn_norm_num_groups is not None and last % self.attn_norm_num_groups:
                raise _unsupported("attn_norm_num_groups", self.attn_norm_num_groups, f"a divisor of {last}")
        for channels in attending:
            if self.heads(channels)[0] == 0:
                limit = f"at most {channels}, the channels of a level that attends"
                raise _unsupported("attention_head_dim", self.attention_head_dim, limit)


@dataclass(frozen=True)
class UNetConditionConfig(_UNet):
    """diffusers' UNet2DConditionModel configuration, of Stable Diffusion 1 and 2: its field names and defaults, hashable.

    `attention_head_dim` is the number of heads, of all levels or of each: diffusers takes it so for this class, whatever the
    name says. `upcast_attention` asks for float32 inside models of half precision; here everything is float32, so it changes
    nothing. `dropout` is kept for those who train with diffusers. The activation "quad", of students distilled into cheaper
    functions, is ours, and diffusers refuses to load it. Raises CipherDMError if this package does not compute what a
    field asks for.
    """

    _kind = "UNet2DConditionModel"
    _choices = {
        "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
        "downsample_padding": (0, 1),
        "act_fn": ("silu", "swish", "mish", "gelu", "quad"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "flip_sin_to_cos": (True, False),
        "use_linear_projection": (True, False),
        "upcast_attention": (True, False, None),
    }
    _down_blocks = ("DownBlock2D", "CrossAttnDownBlock2D")
    _up_blocks = ("UpBlock2D", "CrossAttnUpBlock2D")
    _counts = (*_UNet._counts, "cross_attention_dim", "transformer_layers_per_block")
    _optional_counts = (*_UNet._optional_counts, "time_cond_proj_dim")
    _off = (
        "center_input_sample only_cross_attention mid_block_only_cross_attention dual_cross_attention num_attention_heads "
        "reverse_transformer_layers_per_block encoder_hid_dim encoder_hid_dim_type class_embed_type addition_embed_type "
        "resnet_skip_time_act time_embedding_act_fn timestep_post_act class_embeddings_concat "
        "cross_attention_norm"
    )
    _absent = {
        "resnet_out_scale_factor": 1,
        "time_embedding_type": "positional",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "attention_type": "default",
    }

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
    time_cond_proj_dim: int | None = None

    def heads(self, level: int) -> tuple[int, int]:
        """Return the number of heads of the attention layers in a level, counted from the outside, and the channels of each."""
        count = self.attention_head_dim
        count = count if isinstance(count, int) else count[level]
        return count, self.block_out_channels[level] // count

    def _check_attention(self) -> None:
        count, levels = self.attention_head_dim, len(self.block_out_channels)
        if isinstance(count, tuple) and len(count) != levels:
            raise _unsupported("attention_head_dim", count, f"one number of heads, or {levels}, one for each level")
        for heads in count if isinstance(count, tuple) else (count,):
            _check_count("attention_head_dim", heads)
        attending = {*self._attending(), *([] if self.mid_block_type is None else [levels - 1])}
        for level in sorted(attending):
            if self.heads(level)[1] == 0:
                channels = self.block_out_channels[level]
                raise _unsupported(
                    "attention_head_dim", count, f"at most {channels} heads in a level of so many channels"
                )


@dataclass(frozen=True)
class DiTConfig(Config):
    """diffusers' DiTTransformer2DModel configuration: its field names and defaults, hashable.

    `norm_num_groups` and `upcast_attention` change nothing, there and here, and `dropout` is for those who train. The label
    `num_embeds_ada_norm`, which stands for none, is not drawn. The activation "gelu_quad", of students distilled into it, is
    ours, and diffusers refuses to load it. Raises CipherDMError if this package does not compute what a field asks for.
    """

    _kind = "DiTTransformer2DModel"
    _choices = {
        "attention_bias": (True,),
        "activation_fn": ("gelu-approximate", "gelu", "gelu_quad"),
        "norm_type": ("ada_norm_zero",),
        "norm_elementwise_affine": (False,),
    }
    _counts = (
        *("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size", "patch_size"),
        "num_embeds_ada_norm",
    )
    _optional_counts = ("out_channels",)
    _numbers = {"norm_eps": True, "dropout": True}

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    dropout: float = 0.0
    norm_num_groups: int = 32
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int = 1000
    upcast_attention: bool = False
    norm_type: str = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-5

    def _check(self) -> None:
        if self.out_channels is None:  # as many as go in
            object.__setattr__(self, "out_channels", self.in_channels)
        if self.sample_size % self.patch_size:
            raise _unsupported("patch_size", self.patch_size, f"a divisor of sample_size, {self.sample_size}")
        if self.width % 4:
            heads = (self.num_attention_heads, self.attention_head_dim)
            raise _unsupported("num_attention_heads and attention_head_dim", heads, "of a product that 4 divides")

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_class_embeds(self) -> int:
        """Number of labels."""
        return self.num_embeds_ada_norm

    @property
    def act_fn(self) -> str:
        """Name of the activation among the functions of protocol sets."""
        return "gelu_new" if self.activation_fn == "gelu-approximate" else self.activation_fn

    @property
    def multiple(self) -> int:
        """What height and width of a sample have to be multiples of: a DiT takes one size."""
        return self.sample_size


def _check_tuple(name: str, value: Any, kind: type, what: str) -> None:
    if not isinstance(value, tuple) or not value or not all(isinstance(entry, kind) for entry in value):
        raise _unsupported(name, value, f"a sequence of {what}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unsupported(name, value, "a positive whole number")


def _check_number(name: str, value: Any, *, zero: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise _unsupported(name, value, "a number from 0 on" if zero else "a positive number")


def _check_levels(config: _UNet) -> None:
    """Raise CipherDMError unless the numbers of levels, groups, frequencies and pixels fit together."""
    levels = len(config.block_out_channels)
    for name in _TUPLES:
        if len(getattr(config, name)) != levels:
            raise _unsupported(name, getattr(config, name), f"as long as block_out_channels, that is {levels} entries")
    for channels in config.block_out_channels:
        if channels % config.norm_num_groups:
            raise _unsupported(
                "norm_num_groups", config.norm_num_groups, f"a divisor of {channels}, a level's channels"
            )
    if not isinstance(config.freq_shift, int | float) or config.freq_shift >= config.block_out_channels[0] // 2:
        raise _unsupported("freq_shift", config.freq_shift, "a number below half of block_out_channels[0]")
    if config.sample_size is not None:
        size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
        factor = 2 ** (levels - 1)  # each level but the last halves height and width
        if len(size) != 2 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 or n % factor for n in size):
            raise _unsupported("sample_size", config.sample_size, f"multiples of {factor}, for {levels} levels")


def _unsupported(name: str, value: Any, supported: str) -> CipherDMError:
    return CipherDMError(f"The model's {name} is {value!r}, which is not supported. It must be {supported}.")
