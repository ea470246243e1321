"""Polynomials of a secret number with public coefficients, from sums and products alone."""

from collections.abc import Callable, Sequence

from ..errors import CipherDMError
from .parties import ThreeParties
from .shares import Shared
from .truncation import truncate


def polynomial(
    parties: ThreeParties,
    coefficients: Sequence[float],
    x: Shared,
    truncation: Callable[[ThreeParties, Shared, int], Shared] = truncate,
) -> Shared:
    """Evaluate c_0 + c_1 x + ... + c_d x^d by Horner's rule, from the inside: ((c_d x + c_{d-1}) x + ...) x + c_0.

    This takes d truncations and d - 1 products of secrets, one after the other. Each step adds an error of about one unit,
    which later steps multiply. A product has twice the fraction bits f of x, so with `truncate` intermediate values must
    stay below 2^(l - 2 - 2f).

    Args:
        coefficients: c_0, c_1, ..., at least one; rounded to units.
        truncation: `truncate` or `truncate_local`.

    Raises:
        CipherDMError: there are no coefficients, or the ring has no room for twice the fraction bits.
    """
    if not len(coefficients):
        raise CipherDMError("a polynomial needs a coefficient; give at least c_0")
    *lower, leading = (float(coefficient) for coefficient in coefficients)
    if not lower:
        return x * 0 + leading
    with parties.transcript.operation("polynomial"):
        result = truncation(parties, x * leading, x.fraction_bits) + lower.pop()
        while lower:
            result = truncation(parties, parties.multiply(result, x), x.fraction_bits) + lower.pop()
    return result
