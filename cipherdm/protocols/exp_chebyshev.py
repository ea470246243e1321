"""exp(x) for x <= 0 by a Chebyshev polynomial of degree 7 on [-14, 0].

Formula:  exp(x) = sum over k of c_k T_k(t), t = 2 (x + 14) / 14 - 1, for x > -14; 0 below.
Domain:   x <= 0. Above 0 the polynomial is evaluated outside of its interval and grows fast.
Error:    at most 0.0485 (at 0, where it gives 0.9515). The published coefficients are not those of exp: its
          interpolant in the Chebyshev nodes has error 0.0073, its truncated Chebyshev series 0.0055. The published
          polynomial is negative on 68% of [-14, 0].
Source:   CipherDM (arXiv 2409.05414), coefficients as in its released code.
"""

import jax.numpy as jnp

from .sums import weighted_sum

PUBLISHED = (0.14021878, 0.27541278, 0.22122865, 0.14934221, 0.0907736, 0.04369614, 0.02087868, 0.00996535)
LOWEST = -14.0


def exp_published(x):
    """The published polynomial, elementwise on x <= 0 of any shape."""
    return chebyshev_exp(x, PUBLISHED)


def chebyshev_exp(x, coefficients):
    """sum of coefficients[k] T_k(t) on [-14, 0], eight coefficients, and 0 below -14."""
    t = x * jnp.float32(-2 / LOWEST) + jnp.float32(1)
    polynomial = weighted_sum(_chebyshev_basis(t), coefficients[1:], coefficients[0])
    return jnp.where(x > jnp.float32(LOWEST), polynomial, jnp.zeros_like(x))


def _chebyshev_basis(t):
    """T_1(t) to T_7(t); T_0 is 1.

    By 2 T_m T_n = T_(m+n) + T_|m-n| instead of T_(k+1) = 2 t T_k - T_(k-1): the same six multiplications, but no more
    than three of them wait for each other. Doubling is an addition, so that nothing is truncated for it.
    """
    one = jnp.ones_like(t)
    t2 = _twice(t * t) - one
    t3 = _twice(t * t2) - t
    t4 = _twice(t2 * t2) - one
    t5 = _twice(t2 * t3) - t
    t6 = _twice(t3 * t3) - one
    t7 = _twice(t3 * t4) - t
    return t, t2, t3, t4, t5, t6, t7


def _twice(x):
    return x + x
