"""Sums of secret arrays with public coefficients."""

import jax.numpy as jnp
import numpy as np
from jax import lax


def weighted_sum(arrays, coefficients, constant=0.0):
    """constant + sum of coefficients[i] * arrays[i]; arrays of one shape, the rest numbers.

    Written as one dot product, because in fixed point that is truncated once, where a sum of products is truncated once
    for each term. The coefficients stand on the left: few rows times many columns is the fast orientation on SPU.
    """
    # Concatenated flat and reshaped, not stacked: XLA splits the product of a constant with a concatenation along the
    # contracted axis into one product for each part, and every one of them would be truncated.
    terms = jnp.concatenate([array.reshape(-1) for array in arrays]).reshape(len(arrays), -1)
    row = np.asarray(coefficients, np.float32)[None, :]
    total = lax.dot_general(row, terms, (((1,), (0,)), ((), ()))).reshape(arrays[0].shape)
    return total + jnp.float32(constant)
