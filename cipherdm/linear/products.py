"""Exact products of matrices of ring words, from their digits."""

import numpy as np

from ..errors import CipherDMError
from .digits import Digits, Format
from .paths import Path

ROWS = 512  # of the results that are summed at a time
BLOCK = 1 << 18  # results that are summed at a time. More make better use of the products, fewer of the cache.


def product(path: Path, left: Digits, right: Digits, out: np.ndarray | None = None) -> np.ndarray:
    """left [M, K] times right [K, N] modulo 2^64 or 2^32, as ring words [M, N].

    Args:
        out: where to put the result, with any strides.

    Raises:
        CipherDMError: if the operands are not a left and a right one of the same digits and inner dimension.
    """
    _check(path, left, right)
    if out is None:
        out = np.empty((left.rows, right.rows), left.form.word)
    width = BLOCK // max(1, min(left.rows, ROWS))
    for row in range(0, left.rows, ROWS):
        for column in range(0, right.rows, width):
            rows, columns = slice(row, row + ROWS), slice(column, column + width)
            pairs = zip(left.parts, right.parts, strict=True)
            terms = [_words(path, left.form, a[rows], b[columns]) for a, b in pairs]
            out[rows, columns] = terms[0] if len(terms) == 1 else np.add.reduce(terms, dtype=left.form.word)
    return out


def matrix_product(path: Path, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [M, K] times b [K, N], arrays of ring words (uint64 or uint32), modulo 2^64 or 2^32.

    Raises:
        CipherDMError: for arrays of other types or of shapes that do not fit.
    """
    form = path.form(a.dtype.type)
    return product(path, Digits.left(form, a), Digits.right(form, b.T))


def _words(path: Path, form: Format, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of one part: sum over s of B^s times the sum of the products of s + 1 digits, by Horner's rule."""
    count = form.count
    size = left.shape[1] // count
    total = None
    for s in reversed(range(count)):
        exact = path.multiply(left[:, : (s + 1) * size], right[:, (count - 1 - s) * size :])
        if total is None:
            total = exact.astype(_accumulator(form, s), copy=False)
        else:
            total = total.astype(_accumulator(form, s), copy=False)
            total <<= form.base
            total += exact if exact.dtype.kind == "i" else exact.astype(np.int64)
    return total.astype(form.word, copy=False)


def _accumulator(form: Format, s: int) -> type[np.integer]:
    """Terms that reach only the highest 32 bits of a result are summed in words of 32 bits, which are twice as fast."""
    if form.count == 1:
        return form.word
    return np.int32 if form.bits - s * form.base <= 32 and form.digit is np.int8 else np.int64


def _check(path: Path, left: Digits, right: Digits) -> None:
    for operand, side in ((left, "left"), (right, "right")):
        if operand.side != side:
            raise CipherDMError(
                f"the {side} operand's digits are in the order of a {operand.side} one; make them with Digits.{side}"
            )
        if operand.form not in path.forms:
            raise CipherDMError(
                f"an operand's digits are not those of the path {path.name!r}; make them with its formats"
            )
    if left.form != right.form:
        raise CipherDMError("the two operands are of different rings; convert one of them")
    if left.sizes != right.sizes:
        raise CipherDMError(f"inner dimensions {sum(left.sizes)} and {sum(right.sizes)} of a matrix product differ")
