"""The autoencoder and the denoiser of sd-mini, and the losses that they learn from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from ..modules import ScoreRecorder
from ..recipes import NOISE_SCHEDULE
from .pictures import SIZE, Drawn
from .recipe import AutoencoderConfig, DenoiserConfig, Objective


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Return a fresh AutoencoderKL whose latents are not scaled, initialised from torch's current random state."""
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def latent_size(config: AutoencoderConfig) -> tuple[int, int]:
    """Return channels and height of the latents of a picture."""
    return config.latent_channels, SIZE // 2 ** (len(config.block_out_channels) - 1)


def autoencoder_objective(config: AutoencoderConfig, drawn: Drawn) -> Objective:
    """Return the mean square error of pictures after the autoencoder, plus the latents' divergence from a standard normal."""

    def objective(model: AutoencoderKL, generator: np.random.Generator) -> torch.Tensor:
        pictures, _ = drawn(generator, config.optimisation.batch)
        latents, posterior = encode(model, pictures, generator)
        error = (model.decode(latents).sample - pictures).square().mean()
        return error + config.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()

    return objective


def encode(model: AutoencoderKL, pictures: torch.Tensor, generator: np.random.Generator) -> tuple[torch.Tensor, Any]:
    """Draw latents [B, 4, 8, 8] of pictures, not yet scaled; and return diffusers' distribution of them."""
    posterior = model.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
    return posterior.mean + posterior.std * normal(generator, posterior.mean.shape), posterior


@torch.no_grad()
def scaling_factor(model: AutoencoderKL, drawn: Drawn) -> float:
    """Return one over the standard deviation of the latents of 1000 pictures: a diffusion model sees them at unit size."""
    generator = np.random.default_rng(1000)
    latents, _ = encode(model, drawn(generator, 1000)[0], generator)
    return 1 / float(latents.std())


def normal(generator: np.random.Generator, shape: Sequence[int]) -> torch.Tensor:
    """Draw standard normal numbers, float32, that depend on the generator and not on torch's state."""
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def build_denoiser(
    config: DenoiserConfig, latent: tuple[int, int], width: int, classes: int | None = None
) -> UNet2DConditionModel:
    """Return a fresh U-Net for latents of `latent` = (channels, height) and prompts of `width`, from torch's random state.

    With `classes` a prompt is one token, which has 1 at the class and 0 elsewhere; `encoder_hid_proj` embeds it.
    """
    channels, size = latent
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=width,
        attention_head_dim=config.heads,
        encoder_hid_dim=classes,
        encoder_hid_dim_type=classes and "text_proj",
    )


def scheduler() -> DDIMScheduler:
    """Return the schedule of the MNIST models: 1000 steps, linear betas 1e-4 to 0.02, predicting noise, nothing clipped.

    Stable Diffusion's own betas leave 7 % of the latents in the last step, and with them the colour of a plain background,
    which sampling from pure noise lacks. These leave 0.6 %.
    """
    # StableDiffusionPipeline expects these two settings.
    return DDIMScheduler(**NOISE_SCHEDULE, set_alpha_to_one=False, steps_offset=1)


def denoiser_objective(
    config: DenoiserConfig,
    drawn: Drawn,
    prompts: torch.Tensor,
    autoencoder: AutoencoderKL,
    factor: float,
    scores: ScoreRecorder | None = None,
) -> Objective:
    """Return the mean square error of the predicted noise, on latents of pictures composed for each batch.

    `prompts` are the embeddings [captions + 1, tokens, width] of all captions, of which `drawn` gives the rows, and, last,
    of the empty one, which replaces some of them. `factor` scales the latents. With `scores`, which watches the network in
    training, the size of attention scores is added, weighted.
    """
    batch = config.optimisation.batch

    def objective(model: UNet2DConditionModel, generator: np.random.Generator) -> torch.Tensor:
        pictures, rows = drawn(generator, batch)
        with torch.no_grad():
            latents = factor * encode(autoencoder, pictures, generator)[0]
        noisy, noise, timesteps = noised(latents, generator)
        shown = np.where(generator.random(batch) < config.no_caption, len(prompts) - 1, rows)
        error = (model(noisy, timesteps, prompts[shown]).sample - noise).square().mean()
        return error if scores is None else error + config.score_weight * scores.mean_square()

    return objective


def noised(latents: torch.Tensor, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noisy latents [B, C, h, w], the noise in them, and timesteps [B], one from each of B equal slices of 0 to 999."""
    noise = normal(generator, latents.shape)
    slices = (np.arange(len(latents)) + generator.random(len(latents))) / len(latents)
    timesteps = torch.from_numpy(generator.permutation((slices * 1000).astype(np.int64)))
    kept = scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    return noisy.contiguous(memory_format=torch.channels_last), noise, timesteps
