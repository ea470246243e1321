"""Digits that a class-conditional latent model draws, and what a classifier learns from them for MNIST."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from cipherdm.datasets import Digits, load_mnist
from cipherdm.errors import CipherDMError

from ..classifier import classify, fit
from ..sd_mini.networks import scheduler
from ..sd_mini.pictures import MNIST_SIZE, SIZE
from .recipe import CLASSES

_BATCH = 500


def prompts() -> torch.Tensor:
    """Return the prompts of all classes and, last, of none: float32 [37, 1, 37]."""
    return torch.eye(CLASSES + 1)[:, None]


@torch.no_grad()
def draw(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    labels: np.ndarray,
    *,
    steps: int = 20,
    guidance: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Draw images [N, 1, 28, 28] in [-1, 1] of classes [N], by DDIM with classifier-free guidance."""
    ddim, generator, told, drawn = scheduler(), torch.Generator().manual_seed(seed), prompts(), []
    ddim.set_timesteps(steps)
    size, edge = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size), (SIZE - MNIST_SIZE) // 2
    for part in torch.from_numpy(np.asarray(labels)).split(_BATCH):
        latents = torch.randn((len(part), *size), generator=generator)
        chosen = told[part] if guidance == 1 else told[torch.cat([part, torch.full_like(part, CLASSES)])]
        for timestep in ddim.timesteps:
            shown = latents.repeat(len(chosen) // len(part), 1, 1, 1).contiguous(memory_format=torch.channels_last)
            noise = unet(shown, timestep, chosen).sample
            if guidance != 1:
                with_class, without = noise.chunk(2)
                noise = without + guidance * (with_class - without)
            latents = ddim.step(noise, timestep, latents).prev_sample
        drawn.append(vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)[..., edge:-edge, edge:-edge])
    return torch.cat(drawn).contiguous().numpy()


def load_model(folder: str | Path) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Load a folder's denoiser and autoencoder. Raises CipherDMError if they cannot be loaded."""
    try:
        given = {"local_files_only": True, "torch_dtype": torch.float32}
        kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
        unet, vae = (kind.from_pretrained(folder, subfolder=name, **given).eval() for name, kind in kinds.items())
    except (OSError, ValueError, RuntimeError) as error:
        raise CipherDMError(
            f"{folder} does not load as a latent model of classes ({error}). Train it with 'cipherdm train letters-dp10'."
        ) from error
    return unet.to(memory_format=torch.channels_last), vae


def accuracy_of_taught(images: np.ndarray, labels: np.ndarray, *, epochs: int = 10, seed: int = 0) -> float:
    """Teach a LeNet so many drawn digits, and return the share of MNIST's 10,000 test digits that it reads right."""
    test = load_mnist("test")
    predicted, _ = classify(fit(Digits(images, labels), epochs=epochs, seed=seed, progress=False), test.images)
    return float((predicted == test.labels).mean())
