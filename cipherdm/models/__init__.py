"""diffusers' U-Nets as plain JAX functions over diffusers' own state dicts."""

from .checkpoint import MAX_WEIGHT as MAX_WEIGHT
from .checkpoint import find_model as find_model
from .checkpoint import load_unet as load_unet
from .checkpoint import save_unet as save_unet
from .checkpoint import takes_prompts as takes_prompts
from .config import UNetConditionConfig as UNetConditionConfig
from .config import UNetConfig as UNetConfig
from .layout import Block as Block
from .layout import unet_blocks as unet_blocks
from .layout import unet_shapes as unet_shapes
from .unet import CONTEXT_KINDS as CONTEXT_KINDS
from .unet import TIME_KINDS as TIME_KINDS
from .unet import UNet as UNet
from .unet import apply_unet as apply_unet
from .unet import check_draws_without_prompt as check_draws_without_prompt
from .unet import init_unet as init_unet
from .unet import run_blocks as run_blocks
