"""sd-mini: a Stable Diffusion pipeline of a few megabytes, trained on captioned pictures composed from MNIST."""

from .captions import Caption, all_captions, balanced_captions
from .recipe import SDMiniConfig
from .train import train_sd_mini

__all__ = ["Caption", "SDMiniConfig", "all_captions", "balanced_captions", "train_sd_mini"]
