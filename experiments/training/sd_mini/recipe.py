"""Recipe of sd-mini: frozen configurations of its networks and of their optimisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from cipherdm.errors import CipherDMError

Objective = Callable[[nn.Module, np.random.Generator], torch.Tensor]
"""A batch's loss, from the network in training and a generator for all that is drawn at random."""


@dataclass(frozen=True)
class Optimisation:
    """AdamW on `steps` batches, and the weights' moving average. Raises CipherDMError for counts below one."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    cooldown: int
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "cooldown"):
            if getattr(self, name) < 1:
                raise CipherDMError(f"{name} is {getattr(self, name)} in a training of sd-mini. It must be at least 1.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0: a rise in `warmup` steps, a cosine to 0 in the last `cooldown`."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        left = min(1.0, (self.steps - step) / self.cooldown)
        return self.learning_rate * rise * 0.5 * (1 - math.cos(math.pi * left))


@dataclass(frozen=True)
class AutoencoderConfig:
    """diffusers' AutoencoderKL for pictures of 32 x 32 pixels: 4 x 8 x 8 latents with three levels."""

    optimisation: Optimisation = Optimisation(
        steps=3000, batch=16, learning_rate=2e-3, warmup=50, cooldown=1500, ema_decay=0.998, weight_decay=0.0
    )
    in_channels: int = 3
    block_out_channels: tuple[int, ...] = (16, 32, 32)
    latent_channels: int = 4
    norm_num_groups: int = 4
    kl_weight: float = 1e-3  # of the divergence from a standard normal, mean over latents, beside the mean square error


@dataclass(frozen=True)
class TextConfig:
    """transformers' CLIPTextModel over the captions' words, and the tokens of a prompt, its beginning and end included."""

    optimisation: Optimisation = Optimisation(
        steps=1200, batch=128, learning_rate=2e-3, warmup=50, cooldown=1200, ema_decay=0.99
    )
    tokens: int = 16
    width: int = 64
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class DenoiserConfig:
    """diffusers' UNet2DConditionModel over the latents. Attention is at 4 x 4 alone: a secure run pays per query."""

    optimisation: Optimisation = Optimisation(steps=8000, batch=64, learning_rate=1e-3, warmup=100, cooldown=2500)
    block_out_channels: tuple[int, ...] = (48, 96)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "CrossAttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("CrossAttnUpBlock2D", "UpBlock2D")
    layers_per_block: int = 1
    norm_num_groups: int = 4
    heads: int = 2
    no_caption: float = 0.1  # share of pictures that come with the empty caption, for classifier-free guidance
    score_weight: float = 2e-3  # of the mean square of the attention scores, in the loss; see `ScoreRecorder`


@dataclass(frozen=True)
class ReaderConfig:
    """The LeNet that judges the pictures. It is taught further from the one that reads MNIST."""

    optimisation: Optimisation = Optimisation(
        steps=300, batch=128, learning_rate=1e-3, warmup=20, cooldown=300, ema_decay=0.99
    )
    noise: float = 0.15  # the largest deviation of the noise on its inputs, whose ink is 0 to 1


@dataclass(frozen=True)
class SDMiniConfig:
    """All of sd-mini. A configuration fixes every batch, however often the training is interrupted.

    `source` says where the digits in the pictures come from: MNIST, or glyphs of fonts (`training.glyphs`). Raises
    CipherDMError for another source.
    """

    name: str = "sd-mini"
    source: Literal["mnist", "glyphs"] = "mnist"
    seed: int = 0
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: TextConfig = TextConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    reader: ReaderConfig = ReaderConfig()

    def __post_init__(self) -> None:
        if self.source not in ("mnist", "glyphs"):
            raise CipherDMError(f"sd-mini has no source {self.source!r}. Use 'mnist' or 'glyphs'.")
