"""Training of small diffusion models on MNIST: named recipes, a resumable loop, export as diffusers folders."""

from .loop import train
from .recipes import RECIPES, TrainingConfig

__all__ = ["RECIPES", "TrainingConfig", "train"]
