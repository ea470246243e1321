"""diffusers' U-Nets as plain JAX functions over diffusers' own state dicts."""

from .checkpoint import MAX_WEIGHT, find_model, load_unet, sampling_defaults, save_unet, takes_prompts
from .config import UNetConditionConfig, UNetConfig
from .layout import Block, last_resnet, unet_blocks, unet_shapes
from .unet import (
    CONTEXT_KINDS,
    TIME_KINDS,
    UNet,
    apply_unet,
    at_guidance,
    check_draws_without_prompt,
    init_unet,
    run_blocks,
)
