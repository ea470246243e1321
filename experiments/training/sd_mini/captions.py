"""The captions of sd-mini: a closed grammar of digits with a size, a colour, a place and a background."""

import itertools
from dataclasses import dataclass

import numpy as np

from cipherdm.errors import CipherDMError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Red, green and blue, 0 to 255. Far apart, so that a reader cannot take one for another.
COLOURS = {
    "black": (16, 16, 16),
    "white": (244, 244, 244),
    "red": (216, 40, 40),
    "green": (36, 160, 72),
    "blue": (40, 72, 216),
    "yellow": (240, 208, 48),
}

SIZES = ("small", "large")

# Right and down from the middle, in units of the largest shift that keeps a digit of that size inside the picture.
PLACES = {
    "in the middle": (0, 0),
    "at the top left": (-1, -1),
    "at the top right": (1, -1),
    "at the bottom left": (-1, 1),
    "at the bottom right": (1, 1),
}


@dataclass(frozen=True)
class Caption:
    """Content of an image; with no `place` the digit may be anywhere. Raises CipherDMError for words that there are not."""

    size: str
    colour: str
    digit: int
    background: str
    place: str | None = None

    def __post_init__(self) -> None:
        choices = {
            "size": SIZES,
            "colour": COLOURS,
            "digit": range(10),
            "background": COLOURS,
            "place": (None, *PLACES),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise CipherDMError(f"A caption has no {name} {value!r}. There are: {', '.join(map(repr, known))}.")
        if self.colour == self.background:
            raise CipherDMError(
                f"A {self.colour} digit on a {self.background} background cannot be seen. Choose two different colours."
            )

    @property
    def text(self) -> str:
        """The caption in words, for example "a small red seven at the top left on a blue background"."""
        place = "" if self.place is None else f" {self.place}"
        return f"a {self.size} {self.colour} {DIGITS[self.digit]}{place} on a {self.background} background"


def all_captions() -> tuple[Caption, ...]:
    """Return the 3,600 captions in a fixed order: 2 sizes, 30 pairs of colours, 10 digits, 5 places or none."""
    parts = itertools.product(SIZES, itertools.permutations(COLOURS, 2), range(10), (None, *PLACES))
    return tuple(Caption(size, colour, digit, background, place) for size, (colour, background), digit, place in parts)


def vocabulary() -> tuple[str, ...]:
    """Return all words of all captions, sorted."""
    return tuple(sorted({word for caption in all_captions() for word in caption.text.split()}))


def balanced_captions(count: int, seed: int = 0) -> tuple[Caption, ...]:
    """Return captions in which each digit, size, pair of colours and place (or none) is as frequent as its others."""
    generator = np.random.default_rng(seed)
    columns = []
    for choices in (SIZES, list(itertools.permutations(COLOURS, 2)), (None, *PLACES)):
        rounds = [generator.permutation(len(choices)) for _ in range(-(-count // len(choices)))]
        columns.append([choices[index] for index in np.concatenate(rounds)[:count]])
    return tuple(
        Caption(size, colour, index % 10, background, place)
        for index, (size, (colour, background), place) in enumerate(zip(*columns, strict=True))
    )
