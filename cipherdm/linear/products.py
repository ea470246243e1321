"""Exact products of matrices of ring words, from their digits."""

import numpy as np

from ..errors import CipherDMError
from .digits import Digits, Format
from .paths import Path

ROWS = 512  # of the results that are computed at a time
BLOCK = 1 << 18  # results that are computed at a time; large, for the matrix units
STRIP = 1 << 15  # results that are summed at a time; small, for the processor's cache


def product(path: Path, left: Digits, right: Digits, out: np.ndarray | None = None) -> np.ndarray:
    """left [M, K] times right [K, N] modulo 2^64 or 2^32, as ring words [M, N].

    Args:
        out: where to put the result, with any strides.

    Raises:
        CipherDMError: if the operands are not a left and a right one of the same digits and inner dimension.
    """
    _check(path, left, right)
    form = left.form
    if out is None:
        out = np.empty((left.rows, right.rows), form.word)
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


def matrix_product(path: Path, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [M, K] times b [K, N], arrays of ring words (uint64 or uint32), modulo 2^64 or 2^32.

    Raises:
        CipherDMError: for arrays of other types or of shapes that do not fit.
    """
    form = path.form(a.dtype.type)
    return product(path, Digits.left(form, a), Digits.right(form, b.T))


def _multiply(path: Path, form: Format, left: np.ndarray, right: np.ndarray, terms: np.ndarray) -> None:
    """Fill terms [count, M, N]: for each s, the sum of the products of s + 1 digits of each side."""
    size = left.shape[1] // form.count
    for s in range(form.count):
        path.multiply(left[:, : (s + 1) * size], right[:, (form.count - 1 - s) * size :], terms[s])


def _sum(form: Format, terms: np.ndarray, target: np.ndarray, add: bool) -> None:
    """Set target [M, N], or add to it, the sum over s of B^s terms[s], by Horner's rule."""
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
        words = total.astype(form.word, copy=False)
        if add:
            target[strip] += words
        else:
            target[strip] = words


def _width(form: Format, s: int) -> type[np.integer]:
    """Of the words for the sum of terms s, s + 1, ... Where they reach only the upper 32 bits of a result, 32 bits do."""
    if form.count == 1:
        return form.word
    return np.int32 if form.total is np.int32 and form.bits - s * form.base <= 32 else np.int64


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
