"""How well pictures follow their hints."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionControlNetPipeline
from skimage.metrics import structural_similarity

from ..sd_mini.captions import Caption
from .hints import INKED, ink_of, outline

_BATCH = 50


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


def draw_hints(
    pipeline: StableDiffusionControlNetPipeline,
    hints: torch.Tensor,
    captions: Sequence[Caption],
    *,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 0,
    **more: Any,
) -> torch.Tensor:
    """Draw pictures [N, 3, 32, 32] in [-1, 1] for hints [N, 3, 32, 32] in [0, 1], batch k of 50 from the noise of seed + k."""
    parts = []
    for number, start in enumerate(range(0, len(captions), _BATCH)):
        rows = slice(start, start + _BATCH)
        images = pipeline(
            [caption.text for caption in captions[rows]],
            hints[rows],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed + number),
            output_type="pt",
            **more,
        ).images
        parts.append(2 * images.float() - 1)
    return torch.cat(parts)
