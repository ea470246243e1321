"""exp(x) for x <= 0 by a Chebyshev polynomial of degree 7 on [-14, 0].

Formula:  exp(x) = sum over k of c_k T_k(t), t = 2 (x + 14) / 14 - 1, for x > -14; 0 below.
Domain:   x <= 0. Above 0 the polynomial is evaluated outside of its interval and grows fast.
Error:    at most 0.0485 (at 0, where it gives 0.9515). The published coefficients are not those of exp, see
          `exp_corrected`. The published polynomial is negative on 68% of [-14, 0].
Source:   CipherDM (arXiv 2409.05414), coefficients as in its released code.
Cost:     all parties together, measured (`cipherdm bench activations`): exp_cipherdm: 540 B an element, 66 sends.
"""

from dataclasses import dataclass
from math import inf

import jax.numpy as jnp

from .approximation import Approximation
from .sums import products_of, weighted_sum

PUBLISHED = (0.14021878, 0.27541278, 0.22122865, 0.14934221, 0.0907736, 0.04369614, 0.02087868, 0.00996535)
LOWEST = -14.0


@dataclass(frozen=True)
class ChebyshevExp(Approximation):
    """sum of coefficients[k] T_k(t) on [-14, 0], eight coefficients, and 0 below -14."""

    coefficients: tuple[float, ...]

    def __call__(self, x):
        t = x.reshape(-1) * jnp.float32(-2 / LOWEST) + jnp.float32(1)
        polynomial = weighted_sum(_chebyshev_basis(t), self.coefficients[1:], self.coefficients[0]).reshape(x.shape)
        return jnp.where(x > jnp.float32(LOWEST), polynomial, jnp.zeros_like(x))


exp_published = ChebyshevExp("exp_cipherdm", (-inf, 0.0), PUBLISHED)


def _chebyshev_basis(t):
    """T_1(t) to T_7(t) of a flat t; T_0 is 1.

    By 2 T_m T_n = T_(m+n) + T_|m-n| instead of T_(k+1) = 2 t T_k - T_(k-1): the same six multiplications, in three calls
    instead of six. Doubling is an addition, so that nothing is truncated for it.
    """
    one = jnp.ones_like(t)
    t2 = _twice(t * t) - one
    tt2, t2t2 = products_of([(t, t2), (t2, t2)])
    t3, t4 = _twice(tt2) - t, _twice(t2t2) - one
    t2t3, t3t3, t3t4 = products_of([(t2, t3), (t3, t3), (t3, t4)])
    return t, t2, t3, t4, _twice(t2t3) - t, _twice(t3t3) - one, _twice(t3t4) - t


def _twice(x):
    return x + x
