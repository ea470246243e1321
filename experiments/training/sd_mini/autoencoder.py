"""The autoencoder of sd-mini: pictures to latents and back."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL

from .captions import Caption
from .pictures import SIZE, Source, compose
from .recipe import AutoencoderConfig, Objective


def build_autoencoder(config: AutoencoderConfig, scaling_factor: float = 1.0) -> AutoencoderKL:
    """A fresh AutoencoderKL, initialised from torch's current random state."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=SIZE,
        scaling_factor=scaling_factor,
        mid_block_add_attention=False,
    )


def autoencoder_objective(config: AutoencoderConfig, source: Source, captions: Sequence[Caption]) -> Objective:
    """Mean square error of pictures decoded from a sample of their latents, plus the divergence from a standard normal."""

    def objective(model: AutoencoderKL, generator: np.random.Generator) -> torch.Tensor:
        chosen = generator.integers(len(captions), size=config.optimisation.batch)
        pictures = compose(source, [captions[index] for index in chosen], generator)
        posterior = model.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        latents = posterior.mean + posterior.std * normal(generator, posterior.mean.shape)
        error = (model.decode(latents).sample - pictures).square().mean()
        return error + config.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()

    return objective


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Latents [B, 4, 8, 8] of pictures, drawn from their distribution, not yet scaled."""
    posterior = model.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
    return posterior.mean + posterior.std * normal(generator, posterior.mean.shape)


def scaling_factor(model: AutoencoderKL, source: Source, captions: Sequence[Caption], count: int = 1000) -> float:
    """One over the standard deviation of the latents of `count` pictures, so that a diffusion model sees them at unit size."""
    generator = np.random.default_rng(count)
    chosen = generator.integers(len(captions), size=count)
    latents = encode(model, compose(source, [captions[index] for index in chosen], generator), generator)
    return 1 / float(latents.std())


def normal(generator: np.random.Generator, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers, float32, that depend on the generator and not on torch's state."""
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
