"""Reading pictures back: background and colour by the palette, the digit by the LeNet that reads MNIST."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cipherdm.errors import CipherDMError

from ..classifier import LeNet, classify, load_classifier
from .captions import COLOURS, PLACES, Caption
from .networks import normal
from .pictures import MASS, MNIST_SIZE, SCALES, SIZE, Source, placed, read_at, rgb, shift
from .recipe import Objective, ReaderConfig

_LARGE = 19  # pixels of the longer side from which on a digit is large: small ones have about 15, large ones about 23
_FAINT = 0.5  # of the darkest ink: what is less is not part of the digit's box
_LEAST_INK = 6.0  # pixels' worth of ink, below which there is no digit


@dataclass(frozen=True)
class Reading:
    """Parts read in an image. None where they cannot be told: a colour that is far from all, a digit without ink."""

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
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[2:-2, 2:-2] = True
    edge = pictures[:, :, ~inside].median(dim=-1).values  # of the two outermost rings of pixels, [N, 3]
    between = torch.cdist(palette, palette)
    distance, nearest = torch.cdist(edge, palette).min(dim=1)
    background = torch.where(distance < between[between > 0].min() / 2, nearest, -1)  # -1: another one could be meant
    colour, ink = _colour_and_ink(pictures, edge, background, palette)
    found = ink.sum((1, 2)) > _LEAST_INK
    strong = ink > _FAINT * ink.amax((1, 2), keepdim=True)
    used = [strong.any(dim=axis).float() for axis in (1, 2)]
    sides = (
        SIZE - along.argmax(dim=1) - along.flip(1).argmax(dim=1) for along in used
    )  # of the box around what is strong
    large, middle = torch.maximum(*sides) >= _LARGE, middle_of(ink)
    scales = torch.where(large, SCALES["large"], SCALES["small"])
    digits, _ = classify(classifier, as_mnist(ink, middle, scales).numpy())

    names, readings = list(COLOURS), []
    for index in range(len(pictures)):
        painted = names[background[index]] if background[index] >= 0 else None
        if not found[index]:
            readings.append(Reading(None, None, None, None, painted))
            continue
        size = "large" if large[index] else "small"
        place = min(PLACES, key=lambda place: (middle[index] - torch.tensor(shift(size, place))).norm().item())
        drawn = names[colour[index]] if colour[index] >= 0 else None
        readings.append(Reading(size, drawn, int(digits[index]), place, painted))
    return readings


def agreement(readings: Sequence[Reading], captions: Sequence[Caption]) -> dict[str, float]:
    """Return the share of pictures that show what their caption says, for each part that it names, and for all of them."""
    pairs = list(zip(readings, captions, strict=True))
    right = {
        name: [getattr(reading, name) == getattr(caption, name) for reading, caption in pairs]
        for name in ("digit", "colour", "background", "size")
    }
    at_place = [caption.place in (None, reading.place) for reading, caption in pairs]
    right["all"] = list(map(all, zip(*right.values(), at_place, strict=True)))
    right["place"] = [reading.place == caption.place for reading, caption in pairs if caption.place is not None]
    return {name: float(np.mean(values)) for name, values in right.items() if values}


def middle_of(ink: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass [N, 2] of ink [N, 32, 32]: right and down of the picture's middle, in pixels."""
    pixels = torch.arange(SIZE) + 0.5 - SIZE / 2
    mass = ink.sum((1, 2)).clamp(min=1e-6)
    return torch.stack([(ink.sum(1) * pixels).sum(1), (ink.sum(2) * pixels).sum(1)], dim=1) / mass[:, None]


def as_mnist(ink: torch.Tensor, middle: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return ink [N, 32, 32] as MNIST has its digits: [N, 1, 28, 28] in [-1, 1], its mass centred and `scales` [N] undone."""
    points = torch.arange(MNIST_SIZE) + 0.5 - MASS
    positions = middle[:, :, None] + points * scales[:, None, None]  # [N, 2, 28]: right and down, from the middle
    return 2 * read_at(ink[:, None], positions / (SIZE / 2)) - 1


def reader_objective(config: ReaderConfig, source: Source) -> Objective:
    """Return the cross-entropy of the digit, from ink placed in a picture, made noisy, and brought back to MNIST's form."""
    digits = source.labels
    sizes = np.array(list(SCALES.values()))

    def objective(model: nn.Module, generator: np.random.Generator) -> torch.Tensor:
        rows = generator.integers(len(digits), size=config.optimisation.batch)
        scales = torch.from_numpy(generator.choice(sizes, len(rows))).float()
        varied = scales * torch.from_numpy(generator.uniform(0.95, 1.05, len(rows))).float()
        ink = placed(source.ink[rows], varied, torch.from_numpy(generator.uniform(-3, 3, (len(rows), 2))).float())[:, 0]
        # Half of the noise is smooth, so that what a decoder leaves of a stroke is read too.
        coarse = functional.interpolate(normal(generator, (len(rows), 1, SIZE // 4, SIZE // 4)), scale_factor=4)[:, 0]
        deviation = torch.from_numpy(generator.uniform(0, config.noise, (len(rows), 1, 1))).float()
        ink = (ink + deviation * (normal(generator, ink.shape) + coarse) / 2**0.5).clamp(0, 1)
        return functional.cross_entropy(model(as_mnist(ink, middle_of(ink), scales)), torch.from_numpy(digits[rows]))

    return objective


def _colour_and_ink(
    pictures: torch.Tensor, edge: torch.Tensor, background: torch.Tensor, palette: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index [N] of the colour that explains a picture best, -1 if none does, and the ink [N, 32, 32] with it."""
    deviation = pictures - edge[:, :, None, None]
    errors, inks = [], []
    for index, colour in enumerate(palette):
        direction = (colour - edge)[:, :, None, None]
        ink = ((deviation * direction).sum(1) / direction.square().sum(1).clamp(min=1e-6)).clamp(0, 1)
        error = (deviation - ink[:, None] * direction).square().sum((1, 2, 3))
        errors.append(torch.where(background == index, torch.inf, error))  # ink of this colour would show nothing
        inks.append(ink)
    error, best = torch.stack(errors, dim=1).min(dim=1)
    ink = torch.stack(inks, dim=1)[torch.arange(len(pictures)), best]
    return torch.where(error < deviation.square().sum((1, 2, 3)) / 2, best, -1), ink
