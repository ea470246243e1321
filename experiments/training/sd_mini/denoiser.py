"""The U-Net of sd-mini, and the batches that it learns from."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from ..attention_scores import ScoreRecorder
from ..recipes import NOISE_SCHEDULE
from .autoencoder import encode, normal
from .captions import Caption
from .pictures import Source, compose
from .recipe import DenoiserConfig, Objective


def build_denoiser(config: DenoiserConfig, latent: tuple[int, int], width: int) -> UNet2DConditionModel:
    """A fresh U-Net for latents of `latent` = (channels, height) and prompts of `width`, from torch's random state."""
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
    )


def scheduler() -> DDIMScheduler:
    """The schedule of the MNIST models: 1000 steps, linear betas 1e-4 to 0.02, predicting noise, nothing clipped.

    Stable Diffusion's own betas leave 7 % of the latents in the last step, and with them the colour of a plain background,
    which sampling from pure noise would have to do without. These leave 0.6 %.
    """
    return DDIMScheduler(
        **NOISE_SCHEDULE,
        set_alpha_to_one=False,
        steps_offset=1,  # StableDiffusionPipeline expects these two, and the first of them warns if it does not find them
    )


def denoiser_objective(
    config: DenoiserConfig,
    source: Source,
    captions: Sequence[Caption],
    prompts: torch.Tensor,
    autoencoder: AutoencoderKL,
    factor: float,
    scores: ScoreRecorder | None = None,
) -> Objective:
    """Mean square error of the predicted noise, on latents of pictures composed for each batch.

    `prompts` are the embeddings [captions + 1, tokens, width] of all captions and, last, of the empty one, which takes the
    place of some. `factor` scales the latents. Timesteps are stratified, one from each of B equal slices of 0 to 999.
    With `scores`, which watches the network in training, the size of attention scores is added, weighted.
    """
    kept = scheduler().alphas_cumprod.reshape(-1, 1, 1, 1)
    batch = config.optimisation.batch

    def objective(model: UNet2DConditionModel, generator: np.random.Generator) -> torch.Tensor:
        rows = generator.integers(len(captions), size=batch)
        pictures = compose(source, [captions[row] for row in rows], generator)
        latents = factor * encode(autoencoder, pictures, generator)
        noise = normal(generator, latents.shape)
        slices = (np.arange(batch) + generator.random(batch)) / batch
        timesteps = torch.from_numpy(generator.permutation((slices * 1000).astype(np.int64)))
        shown = np.where(generator.random(batch) < config.no_caption, len(captions), rows)
        noisy = kept[timesteps].sqrt() * latents + (1 - kept[timesteps]).sqrt() * noise
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        error = (model(noisy, timesteps, prompts[shown]).sample - noise).square().mean()
        return error if scores is None else error + config.score_weight * scores.mean_square()

    return objective
