"""Reading pictures back: background and colour by the palette, the digit by the LeNet that reads MNIST."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from cipherdm.errors import CipherDMError

from ..classifier import LeNet, classify, load_classifier
from .captions import COLOURS, PLACES, Caption
from .pictures import MASS, MNIST_SIZE, SCALES, SIZE, rgb, shift

_LARGE = 19  # pixels of the longer side from which on a digit is large: small ones have about 15, large ones about 23

_FAINT = 0.5  # of the darkest ink: what is less is not part of the digit's box

_LEAST_INK = 6.0  # pixels' worth of ink, below which there is no digit


@dataclass(frozen=True)
class Reading:
    """What was read in an image. None where it cannot be told: a colour that is far from all, a digit without ink."""

    size: str | None
    colour: str | None
    digit: int | None
    place: str | None
    background: str | None


def read(pictures: torch.Tensor, classifier: LeNet | None = None) -> list[Reading]:
    """Read pictures [N, 3, 32, 32] in [-1, 1].

    The background is the colour nearest to the median of the edge. The digit's colour is the other one that the picture
    is best explained with, as a mixture of the two at every pixel. The shares of the mixture are the ink, which is scaled
    and centred as MNIST's digits are and given to `classifier`, the one in `data/models/lenet` by default.
    Raises CipherDMError for another shape and for values that are not finite.
    """
    if pictures.ndim != 4 or pictures.shape[1:] != (3, SIZE, SIZE):
        raise CipherDMError(f"Pictures of shape {list(pictures.shape)} cannot be read: give [N, 3, {SIZE}, {SIZE}].")
    if not torch.isfinite(pictures).all():
        raise CipherDMError("Pictures with values that are not finite cannot be read. Did a computation overflow?")
    classifier = load_classifier() if classifier is None else classifier
    palette = torch.stack([rgb(colour) for colour in COLOURS])
    edge = _edge(pictures)
    background = _nearest(edge, palette)
    colour, ink = _colour_and_ink(pictures, edge, background, palette)
    found = ink.sum((1, 2)) > _LEAST_INK
    large, middle = _side(ink) >= _LARGE, middle_of(ink)
    scales = torch.where(large, SCALES["large"], SCALES["small"])
    digits, _ = classify(classifier, as_mnist(ink, middle, scales).numpy())

    names, readings = list(COLOURS), []
    for index in range(len(pictures)):
        painted = names[background[index]] if background[index] >= 0 else None
        if not found[index]:
            readings.append(Reading(None, None, None, None, painted))
            continue
        size = "large" if large[index] else "small"
        place = _nearest_place(size, middle[index])
        drawn = names[colour[index]] if colour[index] >= 0 else None
        readings.append(Reading(size, drawn, int(digits[index]), place, painted))
    return readings


def agreement(readings: Sequence[Reading], captions: Sequence[Caption]) -> dict[str, float]:
    """The share of pictures that show what their caption says, for each of its parts, and for all of them ("all").

    A place counts where the caption names one.
    """
    right = {
        name: [
            getattr(reading, name) == getattr(caption, name)
            for reading, caption in zip(readings, captions, strict=True)
        ]
        for name in ("digit", "colour", "background", "size")
    }
    placed = [index for index, caption in enumerate(captions) if caption.place is not None]
    at_place = [readings[index].place == captions[index].place for index in placed]
    right["all"] = list(map(all, zip(*right.values(), strict=True)))
    for index, fits in zip(placed, at_place, strict=True):
        right["all"][index] &= fits
    shares = {name: float(np.mean(values)) for name, values in right.items()}
    return shares | ({"place": float(np.mean(at_place))} if placed else {})


def middle_of(ink: torch.Tensor) -> torch.Tensor:
    """The centre of mass [N, 2] of ink [N, 32, 32]: right and down of the picture's middle, in pixels."""
    pixels = torch.arange(SIZE) + 0.5 - SIZE / 2
    mass = ink.sum((1, 2)).clamp(min=1e-6)
    return torch.stack([(ink.sum(1) * pixels).sum(1), (ink.sum(2) * pixels).sum(1)], dim=1) / mass[:, None]


def as_mnist(ink: torch.Tensor, middle: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Ink [N, 32, 32] as MNIST has its digits: [N, 1, 28, 28] in [-1, 1], its mass centred and `scales` [N] undone."""
    points = torch.arange(MNIST_SIZE) + 0.5 - MASS
    positions = middle[:, :, None] + points * scales[:, None, None]  # [N, 2, 28]: right and down, from the middle
    right, down = (positions / (SIZE / 2)).unbind(1)
    count = MNIST_SIZE
    grid = torch.stack([right[:, None, :].expand(-1, count, -1), down[:, :, None].expand(-1, -1, count)], dim=-1)
    return 2 * functional.grid_sample(ink[:, None], grid, align_corners=False) - 1


def _edge(pictures: torch.Tensor) -> torch.Tensor:
    """The median [N, 3] of the two outermost rings of pixels."""
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[2:-2, 2:-2] = True
    return pictures[:, :, ~inside].median(dim=-1).values


def _nearest(colours: torch.Tensor, palette: torch.Tensor) -> torch.Tensor:
    """The index of the palette's nearest colour for each of [N, 3]; -1 if it is no nearer than halfway to another one."""
    between = torch.cdist(palette, palette)
    limit = between[between > 0].min() / 2
    distance, index = torch.cdist(colours, palette).min(dim=1)
    return torch.where(distance < limit, index, -1)


def _colour_and_ink(
    pictures: torch.Tensor, edge: torch.Tensor, background: torch.Tensor, palette: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The index [N] of the colour that explains each picture best, and the ink [N, 32, 32] in [0, 1] with it.

    The index is -1 if the mixture leaves half of the picture's deviation from its edge unexplained.
    """
    deviation = pictures - edge[:, :, None, None]
    errors, inks = [], []
    for index, colour in enumerate(palette):
        direction = (colour - edge)[:, :, None, None]
        ink = ((deviation * direction).sum(1) / direction.square().sum(1).clamp(min=1e-6)).clamp(0, 1)
        error = (deviation - ink[:, None] * direction).square().sum((1, 2, 3))
        errors.append(
            torch.where(background == index, torch.inf, error)
        )  # ink of the background's colour shows nothing
        inks.append(ink)
    error, best = torch.stack(errors, dim=1).min(dim=1)
    ink = torch.stack(inks, dim=1)[torch.arange(len(pictures)), best]
    return torch.where(error < deviation.square().sum((1, 2, 3)) / 2, best, -1), ink


def _side(ink: torch.Tensor) -> torch.Tensor:
    """The longer side [N], in pixels, of the box around what is more than faint."""
    strong = ink > _FAINT * ink.amax((1, 2), keepdim=True)
    sides = []
    for axis in (1, 2):
        used = strong.any(dim=axis).float()
        sides.append(SIZE - used.argmax(dim=1) - used.flip(1).argmax(dim=1))
    return torch.maximum(*sides)


def _nearest_place(size: str, middle: torch.Tensor) -> str:
    distances = [(middle - torch.tensor(shift(size, place))).norm() for place in PLACES]
    return tuple(PLACES)[int(torch.stack(distances).argmin())]
