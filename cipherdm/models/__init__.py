"""diffusers' U-Nets as plain JAX functions over diffusers' own state dicts."""

from .builder import Block
from .checkpoint import MAX_WEIGHT, find_model, load_unet, save_unet
from .condition_config import UNetConditionConfig
from .config import UNetConfig
from .layout import unet_blocks, unet_shapes
from .prepared import PreparedWeights, WeightsLayout, prepare_weights
from .unet import CONTEXT_KINDS, TIME_KINDS, UNet, apply_unet, check_takes_no_prompt, init_unet, run_blocks

__all__ = [
    "CONTEXT_KINDS",
    "MAX_WEIGHT",
    "TIME_KINDS",
    "Block",
    "PreparedWeights",
    "UNet",
    "UNetConditionConfig",
    "UNetConfig",
    "WeightsLayout",
    "apply_unet",
    "check_takes_no_prompt",
    "find_model",
    "init_unet",
    "load_unet",
    "prepare_weights",
    "run_blocks",
    "save_unet",
    "unet_blocks",
    "unet_shapes",
]
