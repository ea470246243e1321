"""Glyphs as data sets of the form that MNIST has: `Source.of(glyph_digits())` is what sd-mini's pictures are composed from."""

import string
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from cipherdm.datasets import Digits
from cipherdm.errors import CipherDMError

from ..sd_mini.pictures import MNIST_SIZE
from .bend import bend
from .render import CHARACTERS, faces, pen_paths

Faces = Literal["all", "train", "held-out"]

HELD_OUT = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic", "cmss10")
"""Faces that play the private data when settings are tuned: a family with serifs and all of its weights, and one without."""

# Each class is a string of the characters that show it. By hand, a one is often a single stroke, as is an I without serifs.
DIGITS = ("0", "1I", *"23456789")
# As in EMNIST, both cases of a letter are one class.
LETTERS = tuple(map("".join, zip(string.ascii_uppercase, string.ascii_lowercase, strict=True)))

_BATCH = 250


def glyph_digits(count: int = 60_000, *, part: Faces = "all", seed: int = 0) -> Digits:
    """Return `count` bent digits of fonts, each as frequent as the others, with labels 0 to 9.

    `part` chooses the faces: all, those held out, or the others. Raises CipherDMError for another part, and for a `count`
    below one.
    """
    return _drawn(DIGITS, count, part, seed)


def glyph_letters(count: int = 60_000, *, part: Faces = "all", seed: int = 0) -> Digits:
    """Return `count` bent letters with labels 0 (A and a) to 25, otherwise as `glyph_digits`."""
    return _drawn(LETTERS, count, part, seed)


def glyph_letters_and_digits(count: int = 60_000, *, part: Faces = "all", seed: int = 0) -> Digits:
    """Return `count` bent characters with labels 0 to 9 for digits and 10 to 35 for letters, otherwise as `glyph_digits`."""
    return _drawn(DIGITS + LETTERS, count, part, seed)


def glyph_batch(
    classes: Sequence[str], labels: np.ndarray, generator: np.random.Generator, *, part: Faces = "all"
) -> torch.Tensor:
    """Return fresh images [B, 1, 28, 28] in [-1, 1] for labels [B], positions in `classes`, which are strings of CHARACTERS."""
    chosen = [CHARACTERS.index(classes[label][generator.integers(len(classes[label]))]) for label in labels]
    paths = pen_paths()[generator.choice(_rows(part), len(labels)), chosen]
    return bend(torch.from_numpy(paths), generator)


def _rows(part: Faces) -> np.ndarray:
    held_out = np.isin(faces(), HELD_OUT)
    chosen = {"all": np.ones_like(held_out), "train": ~held_out, "held-out": held_out}
    if part not in chosen:
        raise CipherDMError(f"There is no part {part!r} of the fonts. Use {', '.join(map(repr, chosen))}.")
    return np.flatnonzero(chosen[part])


def _drawn(classes: Sequence[str], count: int, part: Faces, seed: int) -> Digits:
    if count < 1:
        raise CipherDMError(f"{count} glyphs cannot be drawn. Ask for one or more.")
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % len(classes))
    images = np.empty((count, 1, MNIST_SIZE, MNIST_SIZE), np.float32)
    for start in range(0, count, _BATCH):
        rows = slice(start, start + _BATCH)
        images[rows] = glyph_batch(classes, labels[rows], generator, part=part)
    return Digits(images, labels)
