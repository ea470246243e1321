"""Powers of secret arrays, and sums of them with public coefficients, with few rounds and few truncations."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax import lax


def weighted_sum(arrays, coefficients, constant=0.0):
    """constant + sum of coefficients[i] * arrays[i]; arrays of one shape, the rest numbers."""
    row = np.asarray(coefficients, np.float32)[None, :]
    return weighted_sums(arrays, row)[0].reshape(arrays[0].shape) + jnp.float32(constant)


def weighted_sums(arrays, coefficients):
    """[M, N] sums over i of coefficients[:, i] times arrays[i], the arrays of one shape and N elements each.

    Written as one dot product, because in fixed point that is truncated once, where a sum of products is truncated once
    for each term. The coefficients stand on the left: few rows times many columns is the fast orientation on SPU.
    """
    # Concatenated flat and reshaped, not stacked: XLA splits the product of a constant with a concatenation along the
    # contracted axis into one product for each part, and every one of them would be truncated.
    terms = jnp.concatenate([array.reshape(-1) for array in arrays]).reshape(len(arrays), -1)
    return lax.dot_general(np.asarray(coefficients, np.float32), terms, (((1,), (0,)), ((), ())))


def powers(x, exponents: Iterable[int]) -> dict:
    """x to each of the positive exponents, by exponent, for a flat x [N].

    x^k is x^h x^(k-h), h the largest power of two below k. All k of one h are multiplied in one call, so degree 8 waits
    for three multiplications however many powers are asked for.
    """
    needed = set(exponents) | {1}
    for k in range(max(needed), 1, -1):
        if k in needed:
            needed |= {_half(k), k - _half(k)}
    known = {1: x}
    for h in sorted({_half(k) for k in needed if k > 1}):
        of_h = [k for k in sorted(needed) if k > 1 and _half(k) == h]
        products = products_of([(known[h], known[k - h]) for k in of_h])
        known |= dict(zip(of_h, products, strict=True))
    return known


def products_of(pairs) -> list:
    """The elementwise product of each pair of flat arrays [N], in one call: as many rounds as one product."""
    if len(pairs) == 1:
        return [pairs[0][0] * pairs[0][1]]
    left, right = (jnp.concatenate(side).reshape(len(pairs), -1) for side in zip(*pairs, strict=True))
    return list(left * right)


def _half(k: int) -> int:
    """The largest power of two below k > 1."""
    return 1 << ((k - 1).bit_length() - 1)
