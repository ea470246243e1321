"""ControlNets: their configuration, and a U-Net and its ControlNet as one model.

A ControlNet is a copy of a U-Net's way down and middle that also reads a hint, an image such as an outline. What it has at
each place where the U-Net keeps a skip goes through a convolution of its own (a "zero convolution", because training begins
with zeros) and is added to the skip. Names of its parameters, blocks and values begin with PREFIX.
Source: Zhang et al., arXiv 2302.05543; diffusers' ControlNetModel.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ..errors import CipherDMError, refuse
from .building import Block
from .config import Config, UNetConditionConfig, _check_count, _check_tuple

PREFIX = "controlnet."
INPUTS = ("sample", "timestep", "encoder_hidden_states", "hint")  # which U-Net and ControlNet share
HINT_ENCODER = "controlnet_cond_embedding"
ZEROS = ("controlnet_down_blocks", "controlnet_mid_block")  # modules of the zero convolutions


@dataclass(frozen=True)
class ControlNetConfig(UNetConditionConfig):
    """diffusers' ControlNetModel configuration: its field names and defaults, hashable; fields of the way up are not used.

    `hide_prompt` is ours, for ControlNets that were trained with zeros instead of the prompt's embedding. Cross-attention to
    zeros is a constant, so the ControlNet reads no prompt, and computes once for all branches of guidance. diffusers ignores
    the field: it has to be given zeros, unless the weights of `attn2.to_v` are zero, with which any prompt gives that constant.
    Raises CipherDMError if this package does not compute what a field asks for.
    """

    _kind = "ControlNetModel"
    _choices = UNetConditionConfig._choices | {
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "controlnet_conditioning_channel_order": ("rgb", "bgr"),
        "hide_prompt": (False, True),
    }
    _counts = (*UNetConditionConfig._counts, "conditioning_channels")
    _off = f"{UNetConditionConfig._off} global_pool_conditions"

    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    hide_prompt: bool = False

    @property
    def hint_factor(self) -> int:
        """Factor by which the hint's encoder shrinks height and width."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    def _check(self) -> None:
        name = "down_block_types"
        _check_tuple(name, getattr(self, name), str, "block types")
        # There is no way up; one like the way down attends at the same levels.
        mirrored = tuple(kind.replace("Down", "Up") for kind in reversed(self.down_block_types))
        object.__setattr__(self, "up_block_types", mirrored)
        name = "conditioning_embedding_out_channels"
        _check_tuple(name, getattr(self, name), int, "numbers of channels")
        for channels in getattr(self, name):
            _check_count(name, channels)
        super()._check()


_SHARED = (
    *("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "num_class_embeds"),
    *("flip_sin_to_cos", "norm_eps", "act_fn", "resnet_time_scale_shift", "mid_block_scale_factor"),
)


@dataclass(frozen=True)
class ControlledConfig(UNetConditionConfig):
    """A U-Net's configuration with that of its ControlNet. Raises CipherDMError if they do not belong together."""

    control: ControlNetConfig = field(kw_only=True)

    def to_diffusers(self) -> dict[str, Any]:
        """Return the contents of the U-Net's `config.json`; that of `control` has its own."""
        values = super().to_diffusers()
        del values["control"]
        return values

    def _check(self) -> None:
        super()._check()
        of_both = ((name, getattr(self.control, name), getattr(self, name)) for name in _SHARED)
        told = {f"its {name} is {one!r}, and the U-Net's {other!r}": one != other for name, one, other in of_both}
        refuse(told, "this ControlNet was made from another U-Net: ")

    def hint_shape(self, batch: int, sides: tuple[int, int]) -> tuple[int, int, int, int]:
        """Shape [B, C, H, W] of the hints for so many samples with these sides."""
        return (batch, self.control.conditioning_channels, *(self.control.hint_factor * side for side in sides))


def with_control(config: UNetConditionConfig, control: ControlNetConfig) -> ControlledConfig:
    """Return the configuration of a U-Net with a ControlNet."""
    return ControlledConfig(**{part.name: getattr(config, part.name) for part in fields(config)}, control=control)


def control_params(config: ControlNetConfig, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return diffusers' state dict of a ControlNet as part of a controlled model's; exact.

    The order of the hint's channels goes into the first weight. With a hidden prompt the cross-attentions, which give their
    last bias, go into the bias before.
    """
    params = dict(params)
    if config.controlnet_conditioning_channel_order == "bgr":
        name = f"{HINT_ENCODER}.conv_in.weight"
        params[name] = np.ascontiguousarray(params[name][:, ::-1])
    if config.hide_prompt:
        for name in [name for name in params if re.search(r"\.transformer_blocks\.\d+\.(attn2|norm2)\.", name)]:
            value = params.pop(name)
            if name.endswith("attn2.to_out.0.bias"):
                before = name.replace("attn2", "attn1")
                params[before] = params[before] + value
    return {PREFIX + name: value for name, value in params.items()}


def scaled_params(params: Mapping[str, np.ndarray], scale: float) -> Mapping[str, np.ndarray]:
    """Return a controlled model's state dict for a conditioning scale, by which all that is added is multiplied; exact.

    Raises CipherDMError if the scale is no number from 0 on.
    """
    if not (0 <= scale < np.inf):  # NaN is refused too
        raise CipherDMError(f"conditioning_scale must be a number from 0 on; got {scale!r}.")
    zeros = [name for name in params if name.removeprefix(PREFIX).startswith(ZEROS)]
    refuse({"this model has no ControlNet; leave conditioning_scale out": scale != 1 and not zeros})
    return dict(params) | {name: params[name] * np.float32(scale) for name in zeros}


def check_hint(config: Config, hint: np.ndarray | None, batch: int, sides: tuple[int, int]) -> None:
    """Raise CipherDMError unless there is a hint of the right shape for a ControlNet, or none where there is no ControlNet."""
    shape = None if hint is None else np.shape(hint)
    if not isinstance(config, ControlledConfig):
        refuse({"this model has no ControlNet, and takes no hints; leave them out": shape is not None})
    elif shape != (wanted := config.hint_shape(batch, sides)):
        told = "are missing" if shape is None else f"have shape {shape}"
        raise CipherDMError(f"this model has a ControlNet, and its hints {told}: give images [B, C, H, W] = {wanted}.")


def in_controlled(block: Block) -> Block:
    """Return a block of a ControlNet as one of a controlled model."""

    def named(name: str) -> str:
        return name if name in INPUTS else PREFIX + name

    return replace(
        block,
        name=PREFIX + block.name,
        inputs=tuple(map(named, block.inputs)),
        outputs=tuple(map(named, block.outputs)),
        params=tuple((local, PREFIX + full) for local, full in block.params),
    )
