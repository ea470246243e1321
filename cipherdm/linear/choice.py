"""Which path this processor multiplies fastest on, found by a short trial, which also shows that the path is exact here."""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .paths import FLOAT64, INT8, INTEGERS, Path
from .products import matrix_product

SHAPE = (256, 1024, 256)  # rows, inner dimension and columns of the trial's product
SMALL = (24, 96, 24)  # and of the one that is compared with the reference
REPETITIONS = 3


@dataclass(frozen=True)
class Trial:
    """What the trial found for one ring.

    Attributes:
        path: the fastest path that is exact.
        rates: by path's name, multiply-adds of ring words in a second of one core, the splitting into digits included.
        refused: names of paths whose products were wrong on this processor.
    """

    path: Path
    rates: Mapping[str, float]
    refused: tuple[str, ...]

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in self.rates.items())
        refused = f"; not exact here: {', '.join(self.refused)}" if self.refused else ""
        return f"{self.path.name} (G multiply-adds/s: {rates}{refused})"


def choose_path(word: type[np.unsignedinteger] = np.uint64) -> Path:
    """The fastest exact path for words of type np.uint64 or np.uint32, by `trial`."""
    return trial(word).path


@functools.cache
def trial(word: type[np.unsignedinteger] = np.uint64) -> Trial:
    """Multiply once on every path. The first call in a process takes a fraction of a second; later ones return its result.

    It limits PyTorch to one thread, here and from then on: three parties on one machine would be in each other's way.

    Raises:
        CipherDMError: for another type of words.
    """
    torch.set_num_threads(1)
    INTEGERS.form(word)  # refuses other types of words
    paths = (INT8, FLOAT64)
    refused = tuple(path.name for path in paths if not is_exact(path, word))
    rates = {path.name: measured_rate(path, word, SHAPE) for path in paths if path.name not in refused}
    # Integer arithmetic is far behind the others and always right: it counts only if neither of them is.
    best = max((path for path in paths if path.name in rates), key=lambda path: rates[path.name], default=INTEGERS)
    return Trial(best, rates, refused)


def is_exact(path: Path, word: type[np.unsignedinteger]) -> bool:
    """Whether a product of words with extreme digits is right.

    Some processors add pairs of int8 products in 16 bits, where the largest do not fit; there PyTorch's product is wrong.
    """
    rows, inner, columns = SMALL
    a, b = _words(word, (rows, inner)), _words(word, (inner, columns))
    try:
        return bool(np.array_equal(matrix_product(path, a, b), matrix_product(INTEGERS, a, b)))
    except RuntimeError:  # PyTorch has no such product on this processor
        return False


def measured_rate(path: Path, word: type[np.unsignedinteger], shape: tuple[int, int, int]) -> float:
    """Multiply-adds of ring words in a second of this thread's processor time, of a product of (rows, inner, columns)."""
    rows, inner, columns = shape
    a, b = _words(word, (rows, inner)), _words(word, (inner, columns))
    seconds = []
    for _ in range(REPETITIONS):
        start = time.thread_time()
        matrix_product(path, a, b)
        seconds.append(time.thread_time() - start)
    return rows * inner * columns / min(seconds)


def _words(word: type[np.unsignedinteger], shape: tuple[int, int]) -> np.ndarray:
    """Uniform words, every third one with all digits at one end of their range."""
    words = np.random.default_rng(0).integers(0, np.iinfo(word).max, shape, dtype=word, endpoint=True)
    flat = words.reshape(-1)
    size = np.dtype(word).itemsize
    flat[::6] = int.from_bytes(b"\x7f" * size, "little")
    flat[3::6] = -int.from_bytes(b"\x80" * size, "little") % (1 << 8 * size)
    return words
