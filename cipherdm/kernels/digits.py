"""Ring words as signed digits, laid out so that a product modulo 2^k is a few products of narrow numbers.

A word a of k bits is a_0 + a_1 B + a_2 B^2 + ... modulo 2^k with digits between -B/2 and B/2 - 1, B = 2^base. The product
of two words is then the sum over s of B^s (a_0 b_s + a_1 b_(s-1) + ... + a_s b_0), and every s with B^s >= 2^k drops out.
So with digits of 8 bits a product modulo 2^64 takes 36 products of digits, and one modulo 2^32 takes 10.
For matrices each bracket is one ordinary product. Rows of a hold their digits side by side, [a_0 a_1 ...]. Rows of b (the
columns of the second matrix) hold them in falling order, [... b_1 b_0]. So the first s + 1 digits of a row of a meet the
last s + 1 of a row of b, without a copy.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from ..errors import CipherDMError

BLOCK = 1 << 15  # words that are split at a time; few, so intermediate results stay in the processor's cache


@dataclass(frozen=True)
class Format:
    """Format in which uint64 words of one ring are cut into digits; bits above the ring are ignored.

    Attributes:
        bits: bits of the ring, a multiple of 8, at most 64.
        digit: type of a digit; np.uint64 if words are not cut.
        total: type in which sums of products of digits are exact: np.int32, np.float64, or np.uint64, which wraps around.
        base: bits of a digit. The last digit may have fewer.
    """

    bits: int
    digit: type[np.number]
    total: type[np.number]
    base: int

    @cached_property
    def limit(self) -> int | None:
        """Longest inner dimension for which no accumulator can overflow or round; None if there is no limit."""
        if self.total is np.uint64:
            return None
        # A digit of w bits is at most 2^(w-1) in size, and an accumulator sums s + 1 products for each inner element.
        sizes = [1 << min(self.base, self.bits - place) - 1 for place in range(0, self.bits, self.base)]
        worst = max(sum(a * b for a, b in zip(sizes, sizes[s::-1], strict=False)) for s in range(self.count))
        return ((1 << 31) - 1 if self.total is np.int32 else 1 << 53) // worst

    @cached_property
    def count(self) -> int:
        """Number of digits of a word."""
        return -(-self.bits // self.base)

    def sizes(self, inner: int) -> tuple[int, ...]:
        """Cut an inner dimension into parts of nearly equal length, none above `limit`."""
        parts = 1 if self.limit is None else max(1, -(-inner // self.limit))
        bounds = [inner * part // parts for part in range(parts + 1)]
        return tuple(stop - start for start, stop in pairwise(bounds))

    def split(self, words: np.ndarray) -> np.ndarray:
        """Return the digits of words of any shape: `[count, *shape]`, the lowest first.

        Raises CipherDMError if the words have another type.
        """
        if words.dtype != np.uint64:
            raise CipherDMError(f"these digits are of uint64 words, not of {words.dtype}; convert the array")
        flat = np.ascontiguousarray(words).reshape(-1)
        if self.digit is np.uint64:
            return flat.reshape(1, *words.shape)
        planes = np.empty((self.count, flat.size), self.digit)
        cut = _bytes if self.digit is np.int8 else _fields
        for start in range(0, flat.size, BLOCK):
            cut(self, flat[start : start + BLOCK], planes[:, start : start + BLOCK])
        return planes.reshape(self.count, *words.shape)

    @cached_property
    def halves(self) -> np.uint64:
        """Word with B/2 at every digit. Adding it turns signed digits into unsigned ones, which are larger by B/2."""
        places = range(0, self.bits, self.base)
        return np.uint64(sum(1 << min(place + self.base, self.bits) - 1 for place in places))


def _bytes(form: Format, words: np.ndarray, digits: np.ndarray) -> None:
    """Write digits of eight bits: after adding `halves` and an XOR with it, they are the word's bytes."""
    halves = form.halves
    quads = ((words + halves) ^ halves).view(np.uint32).reshape(words.size, -1)  # the lower four bytes come first
    for index in range(form.count):
        quad, byte = divmod(index, 4)
        if byte == 0:
            column = quads[:, quad].copy()
        # Shifting and narrowing is much faster in NumPy than moving single bytes with a stride.
        digits[index] = (column >> np.uint32(8 * byte)).astype(np.uint8).view(np.int8)


def _fields(form: Format, words: np.ndarray, digits: np.ndarray) -> None:
    """Write digits of any width."""
    raised = words + form.halves
    for index in range(form.count):
        width = min(form.base, form.bits - index * form.base)
        field = (raised >> np.uint64(index * form.base)) & np.uint64((1 << width) - 1)
        digits[index] = field.astype(np.int64) - (1 << width - 1)


@dataclass(frozen=True)
class Digits:
    """Operand of a product, in digits; it can be used again.

    Attributes:
        form: format of the digits.
        side: "left" or "right". A right operand has the columns of the second matrix as its rows, and falling digits.
        parts: array [rows, count * size] for each part of the inner dimension.
    """

    form: Format
    side: str
    parts: tuple[np.ndarray, ...]

    @property
    def rows(self) -> int:
        """Number of rows of the left matrix, or of columns of the right one."""
        return self.parts[0].shape[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of each part of the inner dimension."""
        return tuple(part.shape[1] // self.form.count for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(part.nbytes for part in self.parts)

    @classmethod
    def left(cls, form: Format, words: np.ndarray) -> "Digits":
        """Return the digits of a left matrix [M, K]."""
        return cls._of(form, "left", words)

    @classmethod
    def right(cls, form: Format, words: np.ndarray) -> "Digits":
        """Return the digits of a right matrix, which is given transposed: [N, K]."""
        return cls._of(form, "right", words)

    @classmethod
    def _of(cls, form: Format, side: str, words: np.ndarray) -> "Digits":
        if words.ndim != 2:
            raise CipherDMError(f"a matrix has two axes, not {words.ndim}; reshape the array of shape {words.shape}")
        rows, inner = words.shape
        digits = cls.empty(form, side, rows, inner)
        step = max(1, BLOCK // max(1, inner))  # split words are still in the cache when they are copied
        for first in range(0, rows, step):
            digits.rows_from(first, first + step).fill(0, form.split(words[first : first + step]))
        return digits

    @classmethod
    def empty(cls, form: Format, side: str, rows: int, inner: int) -> "Digits":
        """Return empty space for the digits of `rows` rows of `inner` words, to be filled with `fill`."""
        parts = (np.empty((rows, form.count * size), form.digit) for size in form.sizes(inner))
        return cls(form, side, tuple(parts))

    def rows_from(self, start: int, stop: int) -> "Digits":
        """Return some of the rows, without a copy."""
        return Digits(self.form, self.side, tuple(part[start:stop] for part in self.parts))

    def fill(self, start: int, planes: np.ndarray) -> None:
        """Write words' digits to positions `start`, ... of the inner dimension.

        Args:
            planes: [count, ..., words]; the axes between are the rows, in order. It may be a view with any strides.
        """
        count, *rows, words = planes.shape
        ordered = np.moveaxis(planes if self.side == "left" else planes[::-1], 0, -2)  # [..., count, words]
        firsts = accumulate(self.sizes, initial=0)
        for first, size, part in zip(firsts, self.sizes, self.parts, strict=False):
            low, high = max(first, start), min(first + size, start + words)
            if low < high:
                target = part.reshape(*rows, count, size)
                target[..., low - first : high - first] = ordered[..., low - start : high - start]
