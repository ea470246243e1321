"""Pictures for captions: a digit of MNIST, scaled, moved and coloured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from cipherdm.datasets import Digits

from .captions import COLOURS, PLACES, Caption

SIZE = 32  # pixels, height and width
MNIST_SIZE = 28
MASS = 14.5  # where MNIST has a digit's centre of mass, in pixels from the upper left corner: the middle of pixel 14
SCALES = {"small": 0.75, "large": 1.15}  # of MNIST's digits, which are about 20 pixels high
_SPREAD = 0.05  # the scale varies by this share,
_JITTER = 1.0  # and the place by so many pixels each way
_MARGIN = 1.5  # pixels between a digit at the side and the edge

Drawn = Callable[[np.random.Generator, int], tuple[torch.Tensor, np.ndarray]]
"""(generator, count) to fresh pictures [count, C, 32, 32] in [-1, 1], and the number [count] of what each shows."""


@dataclass(frozen=True)
class Source:
    """Digits to compose pictures from: `ink` [N, 1, 28, 28] in [0, 1], and the rows that show each digit."""

    ink: torch.Tensor
    rows: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, digits: Digits) -> "Source":
        """Make a source from images in [-1, 1], as `load_mnist` gives them."""
        rows = tuple(np.flatnonzero(digits.labels == digit) for digit in range(10))
        return cls(torch.from_numpy((digits.images + 1) / 2), rows)

    @property
    def labels(self) -> np.ndarray:
        """The digit of each row, int64 [N]."""
        labels = np.zeros(len(self.ink), np.int64)
        for digit, rows in enumerate(self.rows):
            labels[rows] = digit
        return labels


def compose(source: Source, captions: Sequence[Caption], generator: np.random.Generator) -> torch.Tensor:
    """Return pictures [B, 3, 32, 32] in [-1, 1], one per caption, its digit drawn at random from `source`."""
    rows = [generator.choice(source.rows[caption.digit]) for caption in captions]
    return painted(source.ink[rows], captions, generator)


def painted(ink: torch.Tensor, captions: Sequence[Caption], generator: np.random.Generator) -> torch.Tensor:
    """Return pictures [B, 3, 32, 32] in [-1, 1] of digits' ink [B, 1, 28, 28], each as its caption says."""
    scales = np.array([SCALES[caption.size] for caption in captions])
    scales *= generator.uniform(1 - _SPREAD, 1 + _SPREAD, len(captions))
    # A place is drawn in any case: one caption shall not shift another's draws.
    drawn = [tuple(PLACES)[generator.integers(len(PLACES))] for _ in captions]
    places = zip(captions, drawn, strict=True)
    shifts = np.array([shift(caption.size, caption.place or place) for caption, place in places])
    shifts += generator.uniform(-_JITTER, _JITTER, (len(captions), 2))
    ink = placed(ink, torch.from_numpy(scales).float(), torch.from_numpy(shifts).float())
    colour, background = (
        torch.stack([rgb(getattr(caption, name)) for caption in captions])[:, :, None, None]
        for name in ("colour", "background")
    )
    return background + ink * (colour - background)


def captioned(source: Source, captions: Sequence[Caption]) -> Drawn:
    """Return what draws pictures of captions that are taken at random, and their places among `captions`."""

    def drawn(generator: np.random.Generator, count: int) -> tuple[torch.Tensor, np.ndarray]:
        rows = generator.integers(len(captions), size=count)
        return compose(source, [captions[row] for row in rows], generator), rows

    return drawn


def rgb(colour: str) -> torch.Tensor:
    """Return a colour's red, green and blue in [-1, 1], float32 [3]."""
    return torch.tensor(COLOURS[colour]) / 127.5 - 1


def shift(size: str, place: str) -> tuple[float, float]:
    """Return the offset in pixels, right and down of the middle, of a digit of a size at a place."""
    room = (SIZE - 20 * SCALES[size]) / 2 - _MARGIN
    right, down = PLACES[place]
    return right * room, down * room


def placed(ink: torch.Tensor, scales: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Return ink [B, 1, 28, 28] scaled by `scales` [B], its mass `shifts` [B, 2] right and down of the middle, [B, 1, 32, 32].

    Twice as many points as pixels are read, and averaged, so that no stroke of a small digit falls between two.
    """
    points = (torch.arange(2 * SIZE) + 0.5) / 2 - SIZE / 2  # from the middle, in pixels
    positions = (points - shifts[:, :, None]) / scales[:, None, None] + MASS - MNIST_SIZE / 2
    return functional.avg_pool2d(read_at(ink, positions / (MNIST_SIZE / 2)), 2)


def read_at(ink: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Read ink [B, 1, H, W] at `positions` [B, 2, N], right and down, -1 to 1 across the image: [B, 1, N, N]."""
    right, down = positions.unbind(1)
    count = positions.shape[-1]
    grid = torch.stack([right[:, None, :].expand(-1, count, -1), down[:, :, None].expand(-1, -1, count)], dim=-1)
    return functional.grid_sample(ink, grid, align_corners=False)
