"""How well pictures follow their hints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from skimage.metrics import structural_similarity

from cipherdm.datasets import Digits, load_mnist

from ..classifier import LeNet
from ..export import write_grid
from ..sd_mini.captions import Caption, balanced_captions
from ..sd_mini.pictures import Source
from ..sd_mini.reader import agreement, read
from ..sd_mini.score import draw
from .hints import INKED, controlled, ink_of, outline


def held_out_digits(every: int = 1) -> Digits:
    """Return MNIST's test digits; with `every` 2 each second one, where clients have the others."""
    return load_mnist("test")[every - 1 :: every]


def followed(
    pictures: torch.Tensor, hints: torch.Tensor, inks: torch.Tensor, captions: Sequence[Caption]
) -> dict[str, float]:
    """Return how well pictures [N, 3, 32, 32] in [-1, 1] follow hints [N, C, 32, 32], outlines of digits' ink [N, 1, 32, 32].

    "iou" is the mean over pictures of the drawn digit's intersection with the hint's digit over their union; "ssim" the mean
    structural similarity (Wang et al. 2004, as scikit-image computes it) of the outline in the picture and the hint.
    """
    drawn, wanted = ink_of(pictures, captions), inks > INKED
    both, either = ((drawn > INKED) & wanted).sum((1, 2, 3)), ((drawn > INKED) | wanted).sum((1, 2, 3))
    pairs = zip(outline(drawn)[:, 0].numpy(), hints[:, 0].numpy(), strict=True)
    similar = [structural_similarity(found, hint, data_range=1.0) for found, hint in pairs]
    return {"iou": float((both / either.clamp_min(1)).mean()), "ssim": float(np.mean(similar))}


@dataclass(frozen=True)
class HeldOut:
    """Pictures of MNIST's test digits [N, 3, 32, 32], their captions and hints, and the LeNet that reads pictures back."""

    captions: Sequence[Caption]
    pictures: torch.Tensor
    hints: torch.Tensor
    reader: LeNet

    @classmethod
    def of(cls, count: int, reader: LeNet, seed: int = 0, every: int = 1) -> "HeldOut":
        """Compose so many, captions balanced; with `every` 2, of each second digit, where the others have been learnt from."""
        captions, source = balanced_captions(count, seed), Source.of(held_out_digits(every))
        return cls(captions, *controlled(source, captions, np.random.default_rng(seed)), reader)

    def score(self, pictures: torch.Tensor) -> dict[str, float]:
        """Return how well pictures [N, 3, 32, 32] in [-1, 1] follow the hints, and the shares that their captions describe."""
        inks = ink_of(self.pictures, self.captions)
        own = agreement(read(pictures, self.reader), self.captions)
        return followed(pictures, self.hints, inks, self.captions) | own

    def drawn(self, pipeline: StableDiffusionPipeline | StableDiffusionControlNetPipeline) -> torch.Tensor:
        """Draw pictures for captions, and for hints if there is a ControlNet, by 20 DDIM steps with guidance 4."""
        hints = self.hints if isinstance(pipeline, StableDiffusionControlNetPipeline) else None
        return draw(pipeline, self.captions, steps=20, hints=hints)

    def sheet(self, pictures: torch.Tensor, path: Path) -> None:
        """Write an image of the first ten: hints above, and below them what was drawn."""
        write_grid(torch.cat([2 * self.hints[:10] - 1, pictures[:10]]).numpy(), path)
