"""diffusers' U-Nets as plain JAX functions over diffusers' own state dicts."""

from .checkpoint import MAX_WEIGHT, find_model, load_unet, save_unet
from .config import UNetConfig
from .layout import Block, unet_blocks, unet_shapes
from .prepared import PreparedWeights, WeightsLayout, prepare_weights
from .unet import TIME_KINDS, UNet, apply_unet, init_unet, run_blocks

__all__ = [
    "MAX_WEIGHT",
    "TIME_KINDS",
    "Block",
    "PreparedWeights",
    "UNet",
    "UNetConfig",
    "WeightsLayout",
    "apply_unet",
    "find_model",
    "init_unet",
    "load_unet",
    "prepare_weights",
    "run_blocks",
    "save_unet",
    "unet_blocks",
    "unet_shapes",
]
