"""diffusers' models as plain JAX functions over diffusers' own state dicts."""

from . import dit
from .building import Block
from .checkpoint import CONFIGS, MAX_WEIGHT, find_model, load_unet, sampling_defaults, save_unet, takes_prompts
from .config import Config, DiTConfig, UNetConditionConfig, UNetConfig
from .control import ControlledConfig, ControlNetConfig, check_hint, with_control
from .layout import last_resnet, unet_blocks, unet_shapes
from .unet import (
    CONTEXT_KINDS,
    TIME_KINDS,
    UNet,
    apply_unet,
    at_conditioning_scale,
    at_guidance,
    check_draws_without_prompt,
    init_unet,
    run_blocks,
)
