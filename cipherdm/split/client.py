"""The client's side of a split training: from pictures, hints and captions to what leaves it."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from torch import nn

from ..errors import CipherDMError, refuse
from ..files import replacing
from .controlnet import encoded, loaded, mixed
from .defences import Defences
from .features import Features, Layout

STRUCTURES = {
    "published": "features and the U-Net's first convolution go up, and nothing comes back",
    "lean": "noisy latents go up instead of the convolution, which has the same information",
    "conventional": "clients own the first layers, and wait for their gradients",
}
"""Ways to split the network."""


@dataclass(frozen=True)
class Examples:
    """Pictures and hints, uint8 [N, H, W, 3], and captions, texts [N]. Raises CipherDMError if they do not fit together."""

    pictures: np.ndarray
    hints: np.ndarray
    captions: np.ndarray

    def __post_init__(self) -> None:
        shape = self.pictures.shape
        fits = len(shape) == 4 and shape[0] > 0 and shape[3] == 3 and self.hints.shape == shape
        texts = self.captions.shape == shape[:1] and self.captions.dtype.kind == "U"
        if not (fits and texts and self.pictures.dtype == self.hints.dtype == np.uint8):
            raise CipherDMError("these pictures do not fit: give uint8 [N, height, width, 3] twice, and N texts.")

    @classmethod
    def of(cls, pictures: torch.Tensor, hints: torch.Tensor, captions: Sequence[str]) -> "Examples":
        """Make them of pictures [N, 3, H, W] in [-1, 1] and hints [N, 3, H, W] in [0, 1]."""
        levels = (127.5 * (pictures + 1), 255 * hints)
        pixels = (each.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy() for each in levels)
        return cls(*pixels, np.array(captions, str))

    def batch(self, count: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Draw pictures [count, 3, H, W] in [-1, 1], their hints in [0, 1], and their captions, with replacement."""
        return self.rows(generator.integers(len(self.pictures), size=count))

    def rows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Return those pictures, as `batch` does."""
        pictures, hints = (torch.from_numpy(each[rows]).permute(0, 3, 1, 2) for each in (self.pictures, self.hints))
        return pictures.float() / 127.5 - 1, hints.float() / 255, self.captions[rows].tolist()

    def save(self, path: Path) -> None:
        """Write the arrays to an .npz file."""
        with replacing(path) as temporary:
            np.savez_compressed(temporary, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Examples":
        """Read an .npz file with the arrays `pictures`, `hints` and `captions`. Raises CipherDMError for any other."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(*(arrays[name] for name in ("pictures", "hints", "captions")))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CipherDMError(f"{path} cannot be read ({error}): give a file that `Examples` wrote.") from error


def load_base(folder: str | Path) -> StableDiffusionPipeline:
    """Load the pipeline that a ControlNet is trained for, with nothing in it to be trained.

    Raises:
        CipherDMError: the folder does not load, or its model does not predict noise.
    """
    pipeline = loaded(StableDiffusionPipeline, folder)
    kind = pipeline.scheduler.config.prediction_type
    refuse({f"the model in {folder} predicts {kind}; split learning is for models of noise": kind != "epsilon"})
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


class Head(nn.Module):
    """The layers that a client owns in conventional split learning: a ControlNet's hint encoder and its first convolution.

    Their weights have the names that diffusers' ControlNetModel gives them, and are the same at the start at all clients.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        super().__init__()
        # Each width but the first halves a hint, which must become as small as latents are. diffusers' own four are for 8.
        widths = tuple(16 * 2**level for level in range(len(pipeline.vae.config.block_out_channels)))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            plain = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=widths)
        self.conv_in, self.controlnet_cond_embedding = plain.conv_in, plain.controlnet_cond_embedding

    def forward(self, noisy: torch.Tensor, hints: torch.Tensor) -> torch.Tensor:
        """Return features [B, width, h, w] of noisy latents [B, C, h, w] and hints [B, 3, H, W] in [0, 1]."""
        return self.conv_in(noisy) + self.controlnet_cond_embedding(hints)


class Client:
    """Makes messages of pictures.

    Args:
        pipeline: as `load_base` returns it.
        defences: what is done to the messages.
        structure: one of `STRUCTURES`.

    Attributes:
        head: the client's own layers in conventional split learning; otherwise None: it has no weights of its own.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, defences: Defences | None = None, structure: str = "published"
    ) -> None:
        self.pipeline, self.defences, self.structure = pipeline, defences or Defences(), structure
        self.head = Head(pipeline) if structure == "conventional" else None

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
                f"hints are {list(hints.shape)} and pictures {list(pictures.shape)}": hints.shape != pictures.shape,
                "pictures have values outside -1 to 1": not (pictures.abs() <= 1).all(),
                "hints have values outside 0 to 1": not ((hints >= 0) & (hints <= 1)).all(),
                "there is not one caption for each picture": len(captions) != len(pictures),
            },
            "this batch cannot be sent: ",
        )
        scheduler, vae = self.pipeline.scheduler, self.pipeline.vae
        clean = encoded(vae, pictures)
        timesteps = self.defences.timesteps(generator, len(clean), len(scheduler.alphas_cumprod))
        noise = torch.from_numpy(generator.standard_normal(tuple(clean.shape), dtype=np.float32))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        if self.head is None:
            h = mixed(encoded(vae, 2 * hints - 1), noisy, activation=self.defences.activation)
        else:
            h = self.head(noisy, hints)
        sent = noisy if self.structure == "lean" else self.pipeline.unet.conv_in(noisy)
        prompts = None if self.defences.hide_prompts else embedded(self.pipeline, captions)
        return Features(h, sent, noise, timesteps, prompts)

    def layout(self) -> Layout:
        """Return type and shape of each tensor in a message, without the batch. The server reads nothing else."""
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        blank = torch.zeros(1, 3, side, side)
        sent = self.features(blank, blank, [""], np.random.default_rng(0)).message()
        return {tensor.name: (tensor.dtype, tuple(tensor.shape[1:])) for tensor in sent.tensors}
