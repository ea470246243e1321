"""Outlines of digits as hints, batches of pictures with them, and the ink read back from a picture."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from cipherdm.split import Examples

from ..sd_mini.captions import Caption, all_captions
from ..sd_mini.pictures import Source, compose, rgb

INKED = 0.5  # ink from which on a pixel belongs to the digit


def ink_of(pictures: torch.Tensor, captions: Sequence[Caption]) -> torch.Tensor:
    """Return the ink, float32 [B, 1, 32, 32] in [0, 1], of pictures [B, 3, 32, 32] whose captions name their two colours.

    A composed picture is background + ink (colour - background), and the ink is read along that line; what a model draws is
    read at the nearest point of it.
    """
    colour, background = (
        torch.stack([rgb(getattr(each, name)) for each in captions])[:, :, None, None]
        for name in ("colour", "background")
    )
    line = colour - background
    return (((pictures - background) * line).sum(1, keepdim=True) / line.square().sum(1, keepdim=True)).clamp(0, 1)


def outline(ink: torch.Tensor) -> torch.Tensor:
    """Return the outlines, float32 [B, 1, H, W] of 0 and 1, of ink [B, 1, H, W]: the digit minus its erosion by 3 x 3."""
    mask = (ink > INKED).float()
    # Beyond the edge there is no ink, so a digit that touches the edge is closed there.
    eroded = -functional.max_pool2d(-functional.pad(mask, (1, 1, 1, 1)), 3, stride=1)
    return mask - eroded


def controlled(
    source: Source, captions: Sequence[Caption], generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fresh pictures [B, 3, 32, 32] in [-1, 1], one per caption, and their hints [B, 3, 32, 32], outlines in white."""
    pictures = compose(source, captions, generator)
    return pictures, outline(ink_of(pictures, captions)).expand(-1, 3, -1, -1)


def client_examples(source: Source, count: int, generator: np.random.Generator) -> Examples:
    """Return what a client of a split training brings: `count` pictures of captions taken at random, with their hints."""
    known, parts = all_captions(), []
    for start in range(0, count, 1000):
        captions = [known[row] for row in generator.integers(len(known), size=min(1000, count - start))]
        parts.append((*controlled(source, captions, generator), [caption.text for caption in captions]))
    pictures, hints, texts = zip(*parts, strict=True)
    return Examples.of(torch.cat(pictures), torch.cat(hints), sum(texts, []))
