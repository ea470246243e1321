"""The piecewise form of CipherDM's SiLU and Mish: zero, a quadratic, an even sextic plus a line, the identity."""

import jax.numpy as jnp

from .sums import weighted_sum


def piecewise(x, low, middle):
    """0 below -6; the quadratic `low` on [-6, -2); the polynomial `middle` on [-2, 6]; x above 6.

    `low` holds the coefficients of 1, x, x^2; `middle` those of 1, x, x^2, x^4, x^6. Elementwise on x of any shape.
    Each breakpoint is compared with once, and the powers share their multiplications.
    """
    x2 = x * x
    x4 = x2 * x2
    x6 = x4 * x2
    inner = weighted_sum((x, x2, x4, x6), middle[1:], middle[0])
    outer = weighted_sum((x, x2), low[1:], low[0])
    y = jnp.where(x < jnp.float32(-2), outer, inner)
    y = jnp.where(x < jnp.float32(-6), jnp.zeros_like(x), y)
    return jnp.where(x > jnp.float32(6), x, y)
