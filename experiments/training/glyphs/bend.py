"""Paths of a pen bent at random, followed by a pen of random width, and laid out as MNIST's digits are."""

import numpy as np
import torch
from torch.nn import functional

from ..sd_mini.pictures import MASS, MNIST_SIZE
from .render import SIZE, UNIT

_BOX = 20  # pixels of the box that MNIST fits a digit's ink into
# Largest, either way: a rotation in radians, pixels right per pixel down, logarithm of a widening, which flattens.
_ROTATION, _SHEAR, _STRETCH = 0.3, 0.3, 0.25
_KNOTS, _SHIFT = 5, 0.14  # points each way of the displacement field, its largest value in halves of an image's side
_ZOOM = 1.6  # pixels of a path per pixel of the bent one, so that no bend pushes it over the edge
_PEN = (1.7, 3.5)  # pixels of the final image: a pen's width
_EDGE = 0.8  # pixels in which ink fades out


def bend(paths: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Return images, float32 [B, 1, 28, 28] in [-1, 1], of pen paths, uint8 [B, 84, 84] as `pen_paths` has them.

    Each path is rotated, sheared, stretched and displaced. It is then read once more, so that a pen's stroke along it fits
    into 20 x 20 pixels and has its centre of mass where MNIST's digits have it. `generator` gives all that is random.
    """
    count = len(paths)
    bent = _read(paths[:, None].float() / (UNIT * _ZOOM), _positions(count, generator))[:, 0]
    pen = _uniform(generator, *_PEN, count)
    scale = (_BOX - pen) / _longer_side(bent < 1)  # pixels of the final image per pixel of the path's
    middle = _middle((pen[:, None, None] / 2 - bent * scale[:, None, None] + 0.5).clamp(0, 1))
    # Four points per pixel, averaged below: a stroke shall not fall between two.
    points = (torch.arange(2 * MNIST_SIZE) + 0.5) / 2 - MASS
    right, down = (points / scale[:, None, None] + middle[:, :, None]).unbind(1)
    grid = torch.stack(torch.broadcast_tensors(right[:, None, :], down[:, :, None]), dim=-1) / (SIZE / 2)
    distance = _read(bent[:, None], grid) * scale[:, None, None, None]
    ink = ((pen[:, None, None, None] / 2 - distance) / _EDGE + 0.5).clamp(0, 1)
    return 2 * functional.avg_pool2d(ink, 2) - 1


def _positions(count: int, generator: np.random.Generator) -> torch.Tensor:
    """Return where each pixel of a bent path [B, 84, 84, 2] is read: right and down, -1 to 1 across the image."""
    angle, shear, stretch = (_uniform(generator, -most, most, count) for most in (_ROTATION, _SHEAR, _STRETCH))
    cos, sin, wide, none = angle.cos(), angle.sin(), stretch.exp(), torch.zeros(count)
    # A rotation times [[wide, shear], [0, 1 / wide]].
    rows = (cos * wide, cos * shear - sin / wide, none, sin * wide, sin * shear + cos / wide, none)
    matrices = _ZOOM * torch.stack(rows, dim=1).view(count, 2, 3)
    knots = _uniform(generator, -_SHIFT, _SHIFT, count, 2, _KNOTS, _KNOTS)
    field = functional.interpolate(knots, size=SIZE, mode="bicubic", align_corners=True)
    return functional.affine_grid(matrices, [count, 1, SIZE, SIZE], align_corners=False) + field.permute(0, 2, 3, 1)


def _read(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    # Beyond the edge a distance is as large as at the edge: zeros there would be ink.
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _uniform(generator: np.random.Generator, low: float, high: float, *shape: int) -> torch.Tensor:
    return torch.from_numpy(generator.uniform(low, high, shape).astype(np.float32))


def _longer_side(used: torch.Tensor) -> torch.Tensor:
    """Return the longer side [B] of the box around what is true in [B, 84, 84], in pixels."""
    along = torch.stack([used.any(dim=1), used.any(dim=2)]).int()
    return (SIZE - along.argmax(dim=2) - along.flip(2).argmax(dim=2)).amax(dim=0)


def _middle(ink: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass [B, 2] of ink [B, 84, 84]: right and down of the image's middle, in pixels."""
    pixels = torch.arange(SIZE) + 0.5 - SIZE / 2
    return torch.stack([ink.sum(1), ink.sum(2)], dim=1) @ pixels / ink.sum((1, 2))[:, None]
