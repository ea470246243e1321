"""Exact products of matrices of ring words, from their digits, on the path that is fastest on this processor.

- `INT8`: digits of 8 bits on the processor's int8 units (VNNI or AMX, through PyTorch's oneDNN), with int32 accumulators.
- `FLOAT64`: floating-point matrix products, exact up to 2^53. Any processor does these well.
- `INTEGERS`: NumPy's integer products, whose words wrap around like the ring. The reference for reading and testing.

`choose_path` finds the fastest by a short trial, which also shows that the path is exact on this processor.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CipherDMError
from .digits import Digits, Format
from .rounds import whole_bytes


@dataclass(frozen=True)
class Path:
    """One way to compute products.

    Attributes:
        name: name in reports.
        digit, total, base: see `Format`.
        multiply: function (left, right, out) that sets out [M, N] to the exact product of digits left [M, K] and right [N, K].
    """

    name: str
    digit: type[np.number]
    total: type[np.number]
    base: int
    multiply: Callable[[np.ndarray, np.ndarray, np.ndarray], None]

    def form(self, bits: int) -> Format:
        """Return the format of digits for the ring of so many bits, in whole bytes.

        Raises CipherDMError if there is no such ring.
        """
        if not 1 <= bits <= 64:
            raise CipherDMError(f"a ring has 1 to 64 bits here, not {bits}")
        return Format(8 * whole_bytes(bits), self.digit, self.total, self.base)


def _int8(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    if left.shape[1] == 1:
        # PyTorch (2.13) takes a right operand of one contiguous row for one that it has already transposed, and writes nothing.
        np.multiply(left, right.T, out=out, dtype=np.int32)
    else:
        torch._int_mm(torch.from_numpy(left), torch.from_numpy(right).t(), out=torch.from_numpy(out))


def _float64(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    torch.mm(torch.from_numpy(left), torch.from_numpy(right).t(), out=torch.from_numpy(out))


def _integers(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    np.matmul(left, right.T, out=out)


INT8 = Path("int8", np.int8, np.int32, 8, _int8)
# As few digits as leave room for long sums: three for a word of 64 bits.
FLOAT64 = Path("float64", np.float64, np.float64, 22, _float64)
INTEGERS = Path("integers", np.uint64, np.uint64, 64, _integers)
PATHS = (INT8, FLOAT64, INTEGERS)
ROWS = 512  # rows of the result that are computed at a time
BLOCK = 1 << 18  # results that are computed at a time; many, to keep the matrix units busy
STRIP = 1 << 15  # results that are summed at a time; few, so they stay in the processor's cache


def product(path: Path, left: Digits, right: Digits, out: np.ndarray | None = None) -> np.ndarray:
    """Multiply left [M, K] by right [K, N] in the ring of their digits, as uint64 words [M, N] with any bits above it.

    Args:
        out: array for the result, with any strides; a new one by default.

    Raises:
        CipherDMError: the operands are not a left and a right one of the same digits and inner dimension.
    """
    _check(path, left, right)
    form = left.form
    if out is None:
        out = np.empty((left.rows, right.rows), np.uint64)
    height = max(1, min(left.rows, ROWS))
    width = min(right.rows, BLOCK // height)
    room = np.empty(form.count * height * width, form.total)
    for row in range(0, left.rows, height):
        for column in range(0, right.rows, width):
            rows, columns = slice(row, row + height), slice(column, column + width)
            target = out[rows, columns]
            terms = room[: form.count * target.size].reshape(form.count, *target.shape)
            for index, (a, b) in enumerate(zip(left.parts, right.parts, strict=True)):
                _multiply(path, form, a[rows], b[columns], terms)
                _sum(form, terms, target, add=index > 0)
    return out


def matrix_product(path: Path, a: np.ndarray, b: np.ndarray, bits: int = 64) -> np.ndarray:
    """Multiply a [M, K] by b [K, N], uint64 words, modulo 2^bits; the result may have any bits above.

    Raises CipherDMError if the arrays have other types, or shapes that do not fit.
    """
    form = path.form(bits)
    return product(path, Digits.left(form, a), Digits.right(form, b.T))


def _multiply(path: Path, form: Format, left: np.ndarray, right: np.ndarray, terms: np.ndarray) -> None:
    """Fill terms [count, M, N]: for each s, the sum of products of s + 1 digits from each side."""
    size = left.shape[1] // form.count
    for s in range(form.count):
        path.multiply(left[:, : (s + 1) * size], right[:, (form.count - 1 - s) * size :], terms[s])


def _sum(form: Format, terms: np.ndarray, target: np.ndarray, add: bool) -> None:
    """Set target [M, N] to the sum over s of B^s terms[s], or add this sum to it, by Horner's rule."""
    step = max(1, STRIP // target.shape[1]) if target.size else 1
    for first in range(0, target.shape[0], step):
        strip = slice(first, first + step)
        total = None
        for s in reversed(range(form.count)):
            term = terms[s, strip]
            if total is None:
                total = term.astype(_width(form, s))  # a copy, of words that wrap around
            else:
                total = total.astype(_width(form, s), copy=False)
                total <<= form.base
                total += term if term.dtype.kind == "i" else term.astype(np.int64)
        words = total.astype(np.uint64, copy=False)
        if add:
            target[strip] += words
        else:
            target[strip] = words


def _width(form: Format, s: int) -> type[np.integer]:
    """Return the type for the sum of terms s, s + 1, ...: 32 bits where they only reach the upper 32 bits of a result."""
    if form.total is np.uint64:
        return np.uint64
    return np.int32 if form.total is np.int32 and form.bits - s * form.base <= 32 else np.int64


def _check(path: Path, left: Digits, right: Digits) -> None:
    for operand, side in ((left, "left"), (right, "right")):
        if operand.side != side:
            raise CipherDMError(
                f"the {side} operand's digits are in the order of a {operand.side} one; make them with Digits.{side}"
            )
        if (operand.form.digit, operand.form.base) != (path.digit, path.base):
            raise CipherDMError(
                f"an operand's digits are not those of the path {path.name!r}; make them with its formats"
            )
    if left.form != right.form:
        raise CipherDMError("the two operands are of different rings; convert one of them")
    if left.sizes != right.sizes:
        raise CipherDMError(f"inner dimensions {sum(left.sizes)} and {sum(right.sizes)} of a matrix product differ")


SHAPE = (64, 512, 64)  # rows, inner dimension and columns of the product that is timed
SMALL = (24, 96, 24)  # likewise of the product that is compared with the reference
REPETITIONS = 3
SLOW = 0.05  # seconds after which a path is not tried again


@dataclass(frozen=True)
class Trial:
    """Result of the trial.

    Attributes:
        path: fastest path that is exact.
        rates: multiply-adds of words of 64 bits a second on one core, splitting into digits included, by the path's name.
        refused: names of paths whose products were wrong on this processor.
    """

    path: Path
    rates: Mapping[str, float]
    refused: tuple[str, ...]

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in self.rates.items())
        refused = f"; not exact here: {', '.join(self.refused)}" if self.refused else ""
        return f"{self.path.name} (G multiply-adds/s: {rates}{refused})"


def choose_path() -> Path:
    """Return the fastest exact path, by `trial`."""
    return trial().path


@functools.cache
def trial() -> Trial:
    """Multiply on each fast path. The first call in a process takes a fraction of a second; later calls return its result.

    It limits PyTorch to one thread for the rest of the process, since three parties on one machine would disturb each other.
    """
    torch.set_num_threads(1)
    paths = (INT8, FLOAT64)
    refused = tuple(path.name for path in paths if not is_exact(path))
    rates = {path.name: measured_rate(path, SHAPE) for path in paths if path.name not in refused}
    # Integer products are always right but far slower, so they are used only if both others are wrong.
    best = max((path for path in paths if path.name in rates), key=lambda path: rates[path.name], default=INTEGERS)
    return Trial(best, rates, refused)


def is_exact(path: Path) -> bool:
    """Return whether a product of words with extreme digits is right.

    Some processors add pairs of int8 products in 16 bits, where the largest do not fit, so PyTorch's product is wrong there.
    """
    rows, inner, columns = SMALL
    a, b = _words((rows, inner)), _words((inner, columns))
    try:
        return bool(np.array_equal(matrix_product(path, a, b), matrix_product(INTEGERS, a, b)))
    except RuntimeError:  # PyTorch has no such product on this processor
        return False


def measured_rate(path: Path, shape: tuple[int, int, int], bits: int = 64) -> float:
    """Return multiply-adds of words of so many bits per second of processor time, for a product of (rows, inner, columns)."""
    rows, inner, columns = shape
    a, b = _words((rows, inner)), _words((inner, columns))
    seconds = []
    for _ in range(REPETITIONS):
        start = time.thread_time()
        matrix_product(path, a, b, bits)
        seconds.append(time.thread_time() - start)
        if seconds[-1] > SLOW:
            break
    return rows * inner * columns / min(seconds)


def _words(shape: tuple[int, int]) -> np.ndarray:
    """Return uniform words, but every third one with all digits at one end of their range."""
    words = np.random.default_rng(0).integers(0, np.iinfo(np.uint64).max, shape, dtype=np.uint64, endpoint=True)
    flat = words.reshape(-1)
    flat[::6] = int.from_bytes(b"\x7f" * 8, "little")
    flat[3::6] = -int.from_bytes(b"\x80" * 8, "little") % (1 << 64)
    return words
