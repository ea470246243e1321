"""The ControlNet that split learning trains: it reads the noisy latents and the hint's latents in one tensor, without a prompt.

Source: arXiv 2409.08503. Its network is no plain ControlNet: the first convolution reads h = phi(hint + noisy) instead of the
noisy latents, h is rounded to float16, the hint is encoded by the pipeline's own autoencoder, and contexts are zero.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    ModelMixin,  # noqa: F401 (diffusers looks here for it when it loads a folder with our class)
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.models.controlnets.controlnet import ControlNetOutput
from torch import nn

from ..errors import CipherDMError
from .defences import phi


class _Nothing(nn.Module):
    """Stands where a plain ControlNet encodes its hint: h has the hint already."""

    def forward(self, h):
        return h.new_zeros(())


class SplitControlNetModel(ControlNetModel):
    """ControlNetModel of diffusers whose forward pass is that of split learning; takes the same arguments to be made.

    It runs in diffusers' StableDiffusionControlNetPipeline, whose autoencoder `load_split_pipeline` lets it use.
    """

    def __init__(self, *, split_activation: bool = True, **controlnet) -> None:
        super().__init__(**controlnet)
        self.register_to_config(split_activation=split_activation)
        self.controlnet_cond_embedding = _Nothing()
        self._autoencoder: tuple[AutoencoderKL, ...] = ()  # a tuple, or torch would make it a part of the network

    # diffusers takes the fields of config.json that this signature has. `models.checkpoint` knows split networks by this one.
    _OWN = inspect.Parameter("split_activation", inspect.Parameter.KEYWORD_ONLY, default=True)
    __init__.__signature__ = inspect.Signature([*inspect.signature(ControlNetModel.__init__).parameters.values(), _OWN])

    @classmethod
    def of(cls, unet: UNet2DConditionModel, *, activation: bool = True) -> "SplitControlNetModel":
        """Return a copy of a U-Net's encoder that adds nothing yet: its last convolutions are zero."""
        made = cls.from_unet(unet)
        made.register_to_config(split_activation=activation)
        return made

    def use_autoencoder(self, autoencoder: AutoencoderKL) -> None:
        """Encode hints with this autoencoder from now on: the one of the pipeline that the network was trained for."""
        self._autoencoder = (autoencoder,)

    def forward(self, sample, timestep, encoder_hidden_states, controlnet_cond, conditioning_scale=1.0, **more):
        """Return the residuals for noisy latents [B, C, h, w] and hints [B, 3, H, W] in [0, 1], as diffusers' forward does.

        The prompt's embedding is not read. Raises CipherDMError without an autoencoder.
        """
        if not self._autoencoder:
            raise CipherDMError(
                "this ControlNet was trained by split learning and encodes hints with its pipeline's autoencoder: load it with "
                "load_split_pipeline, or give it the autoencoder with use_autoencoder."
            )
        h = mixed(encoded(*self._autoencoder, 2 * controlnet_cond - 1), sample, activation=self.config.split_activation)
        return self.residuals(h.to(sample.dtype), timestep, conditioning_scale, **more)

    def residuals(
        self, h: torch.Tensor, timestep: torch.Tensor | float, conditioning_scale: float = 1.0, **more
    ) -> ControlNetOutput | tuple:
        """Return what diffusers' forward returns for h [B, C, h, w], the hint and the noisy latents in one."""
        # Attention over a zero context is the bias of its last layer, however many tokens there are: one will do.
        nothing = h.new_zeros(len(h), 1, self.config.cross_attention_dim)
        return super().forward(h, timestep, nothing, h, conditioning_scale, **more)


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Return latents [B, C, h, w] of pictures [B, 3, H, W] in [-1, 1]: the means of their distributions, at unit size."""
    return autoencoder.config.scaling_factor * autoencoder.encode(pictures).latent_dist.mean


@torch.no_grad()
def decoded(autoencoder: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Return pictures [B, 3, H, W], clipped to [-1, 1], of latents [B, C, h, w] at unit size."""
    return autoencoder.decode(latents.float() / autoencoder.config.scaling_factor).sample.clamp(-1, 1)


def mixed(hint: torch.Tensor, noisy: torch.Tensor, *, activation: bool) -> torch.Tensor:
    """Return h = phi(hint + noisy), float16, of latents of one shape; without the activation it is the sum alone."""
    total = hint + noisy
    return (phi(total) if activation else total).half()


def loaded(kind: type[DiffusionPipeline], folder: str | Path) -> Any:
    """Load a folder as diffusers' pipeline of that kind, in float32. Raises CipherDMError if it does not load."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CipherDMError(f"{folder} does not load as a {kind.__name__} ({error}).") from error


def load_split_pipeline(folder: str | Path) -> StableDiffusionControlNetPipeline:
    """Load a folder with a split-trained ControlNet as diffusers' pipeline, ready to draw.

    Raises:
        CipherDMError: the folder does not load, or its ControlNet is a plain one.
    """
    pipeline = loaded(StableDiffusionControlNetPipeline, folder)
    if not isinstance(pipeline.controlnet, SplitControlNetModel):
        raise CipherDMError(f"the ControlNet in {folder} is a plain one: load the folder with diffusers alone.")
    pipeline.controlnet.use_autoencoder(pipeline.vae)
    return pipeline
