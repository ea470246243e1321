"""The client's side of a split training: from pictures, hints and captions to what leaves it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from torch import nn

from ..errors import CipherDMError, refuse
from .controlnet import encoded, mixed
from .defences import Defences
from .features import Features, Layout


def load_base(folder: str | Path) -> StableDiffusionPipeline:
    """Load the pipeline that a ControlNet is trained for, with nothing in it to be trained.

    Raises:
        CipherDMError: the folder does not load, or its model does not predict noise.
    """
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CipherDMError(f"{folder} does not load as a StableDiffusionPipeline ({error}).") from error
    if pipeline.scheduler.config.prediction_type != "epsilon":
        kind = pipeline.scheduler.config.prediction_type
        raise CipherDMError(
            f"the model in {folder} predicts {kind}; split learning trains for models that predict noise."
        )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return pipeline


def common_hash(pipeline: StableDiffusionPipeline) -> str:
    """Return a hash of what both sides must have alike: autoencoder, text model, first convolution, noise schedule."""
    found = hashlib.sha256(pipeline.scheduler.alphas_cumprod.numpy().tobytes())
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet.conv_in):
        for name, tensor in part.state_dict().items():
            found.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def embedded(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> torch.Tensor:
    """Return embeddings, float32 [B, tokens, width], of prompts, filled up to the text model's number of tokens."""
    words = pipeline.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
    return pipeline.text_encoder(words.input_ids).last_hidden_state


def hint_widths(pipeline: StableDiffusionPipeline) -> tuple[int, ...]:
    """Return the widths of a plain ControlNet's hint encoder, which must shrink hints as the autoencoder does pictures.

    diffusers' own, (16, 32, 96, 256), shrink them by 8; each further width halves once more.
    """
    return tuple(16 * 2**level for level in range(len(pipeline.vae.config.block_out_channels)))


class Head(nn.Module):
    """The layers that a client owns in conventional split learning: a ControlNet's hint encoder and its first convolution.

    Its weights have the names that diffusers' ControlNetModel gives them.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        super().__init__()
        plain = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=hint_widths(pipeline))
        self.conv_in, self.controlnet_cond_embedding = plain.conv_in, plain.controlnet_cond_embedding

    def forward(self, noisy: torch.Tensor, hints: torch.Tensor) -> torch.Tensor:
        """Return features [B, width, h, w] of noisy latents [B, C, h, w] and hints [B, 3, H, W] in [0, 1]."""
        return self.conv_in(noisy) + self.controlnet_cond_embedding(hints)


@dataclass(frozen=True)
class Client:
    """Makes messages of pictures; has no weights of its own but in conventional split learning.

    Attributes:
        pipeline: as `load_base` returns it.
        defences: what is done to the messages.
        lean: whether noisy latents go in place of the first convolution of them, which has the same information.
        head: the layers of conventional split learning; None for the published structure.
    """

    pipeline: StableDiffusionPipeline
    defences: Defences = field(default_factory=Defences)
    lean: bool = False
    head: Head | None = None

    def features(
        self, pictures: torch.Tensor, hints: torch.Tensor, captions: Sequence[str], generator: np.random.Generator
    ) -> Features:
        """Return the message of a batch. With a head, `h` has a graph for its backward pass.

        Args:
            pictures: float32 [B, 3, H, W] in [-1, 1].
            hints: float32 [B, 3, H, W] in [0, 1].
            captions: B texts, not read if prompts are hidden.
            generator: source of the timesteps and the noise.

        Raises:
            CipherDMError: shapes differ, or values are not finite or outside their range.
        """
        refuse(
            {
                f"pictures are {list(pictures.shape)}": pictures.ndim != 4 or pictures.shape[1] != 3,
                f"hints are {list(hints.shape)} and pictures {list(pictures.shape)}": hints.shape != pictures.shape,
                "pictures have values outside -1 to 1": not (pictures.abs() <= 1).all(),
                "hints have values outside 0 to 1": not ((hints >= 0) & (hints <= 1)).all(),
                "there is not one caption for each picture": len(captions) != len(pictures),
            },
            "this batch cannot be sent: ",
            "; give [B, 3, height, width] of each and B captions.",
        )
        kept = self.pipeline.scheduler.alphas_cumprod
        clean = encoded(self.pipeline.vae, pictures)
        timesteps = self.defences.timesteps(generator, len(clean), len(kept))
        noise = torch.from_numpy(generator.standard_normal(tuple(clean.shape), dtype=np.float32))
        noisy = noised(clean, noise, kept[timesteps])
        if self.head is None:
            h = mixed(encoded(self.pipeline.vae, 2 * hints - 1), noisy, activation=self.defences.activation)
        else:
            h = self.head(noisy, hints)
        with torch.no_grad():
            sent = noisy if self.lean else self.pipeline.unet.conv_in(noisy)
        prompts = None if self.defences.hide_prompts else embedded(self.pipeline, captions)
        return Features(h, sent, noise, timesteps, prompts)

    def layout(self) -> Layout:
        """Return type and shape of each tensor in a message, without the batch. The server reads nothing else."""
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        blank = torch.zeros(1, 3, side, side)
        sent = self.features(blank, blank, [""], np.random.default_rng(0)).message()
        return {tensor.name: (tensor.dtype, tuple(tensor.shape[1:])) for tensor in sent.tensors}


def noised(clean: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return sqrt(kept) clean + sqrt(1 - kept) noise for latents [B, C, h, w] and shares `kept` [B], alphas_cumprod."""
    kept = kept[:, None, None, None]
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise
