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
    table = np.asarray(coefficients, np.float32)
    flat = [array.reshape(-1) for array in arrays]
    return on_shares_or_cpu(lambda *terms: _sums_as_product(table, terms), lambda *terms: _sums(table, terms), *flat)


def _sums_as_product(table, terms):
    # Concatenated flat and reshaped, not stacked: XLA splits the product of a constant with a concatenation along the
    # contracted axis into one product for each part, and every one of them would be truncated.
    return lax.dot_general(table, jnp.concatenate(terms).reshape(len(terms), -1), (((1,), (0,)), ((), ())))


def _sums(table, terms):
    return jnp.stack([sum(c * term for c, term in zip(row, terms, strict=True)) for row in table])


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
    flat = [side for pair in pairs for side in pair]
    return list(on_shares_or_cpu(_products_in_one, _products, *flat))


def _products_in_one(*sides):
    left, right = (jnp.concatenate(sides[start::2]).reshape(len(sides) // 2, -1) for start in (0, 1))
    return tuple(left * right)


def _products(*sides):
    return tuple(left * right for left, right in zip(sides[::2], sides[1::2], strict=True))


def on_shares_or_cpu(on_shares, on_cpu, *arrays):
    """`on_shares(*arrays)`, or in plaintext `on_cpu(*arrays)`, which computes the same.

    XLA's CPU backend computes a concatenation of products anew for each element that it puts out; the products apart
    take less time there, and would be a call each on shares.
    """
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=on_shares)


def _half(k: int) -> int:
    """The largest power of two below k > 1."""
    return 1 << ((k - 1).bit_length() - 1)
