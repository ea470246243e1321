"""exp(x), and the polynomials that stand for it in a softmax on shares.

CipherDM's and PUMA's are for scores minus their row's maximum, x <= 0; `exp_limit` and `exp_bounded` for scores that the
model's owner has bounded, |x| <= bound.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, log2

import jax.numpy as jnp
import numpy as np
from scipy import special

from ..errors import CipherDMError
from .approximation import Approximation
from .fitting import fit_minimax
from .knuth import KnuthPolynomial
from .piecewise import PiecewisePolynomial, products_of, weighted_sum

LOWEST = -14.0  # where CipherDM and PUMA clip; exp(-14) is below 2^-20, and SPU has 18 fraction bits


@dataclass(frozen=True)
class ChebyshevExp(Approximation):
    """A sum of coefficients[k] T_k(t) on [-14, 0], with eight coefficients, and 0 below -14."""

    coefficients: tuple[float, ...]

    def __call__(self, x):
        t = x.reshape(-1) * jnp.float32(-2 / LOWEST) + jnp.float32(1)
        polynomial = weighted_sum(_chebyshev_basis(t), self.coefficients[1:], self.coefficients[0]).reshape(x.shape)
        return jnp.where(x > jnp.float32(LOWEST), polynomial, jnp.zeros_like(x))


def _chebyshev_basis(t):
    """Return T_1(t) to T_7(t) of a flat t; T_0 is 1."""
    # By 2 T_m T_n = T_(m+n) + T_|m-n| instead of T_(k+1) = 2 t T_k - T_(k-1): the same six multiplications, in three calls
    # instead of six. Doubling is an addition, so that nothing is truncated for it.
    one = jnp.ones_like(t)
    t2 = _twice(t * t) - one
    tt2, t2t2 = products_of([(t, t2), (t2, t2)])
    t3, t4 = _twice(tt2) - t, _twice(t2t2) - one
    t2t3, t3t3, t3t4 = products_of([(t2, t3), (t3, t3), (t3, t4)])
    return t, t2, t3, t4, _twice(t2t3) - t, _twice(t3t3) - one, _twice(t3t4) - t


def _twice(x):
    return x + x


exp_cipherdm = ChebyshevExp(
    "exp_cipherdm",
    (-inf, 0.0),
    (0.14021878, 0.27541278, 0.22122865, 0.14934221, 0.0907736, 0.04369614, 0.02087868, 0.00996535),
)
"""exp(x) for x <= 0 by a Chebyshev polynomial of degree 7 on [-14, 0].

Formula:  exp(x) = sum over k of c_k T_k(t), t = 2 (x + 14) / 14 - 1, for x > -14; 0 below.
Domain:   x <= 0. Above 0 the polynomial is evaluated outside of its interval and grows fast.
Error:    at most 0.0485 (at 0, where it gives 0.9515). The published coefficients are not those of exp, see
          `exp_corrected`. The published polynomial is negative on 68% of [-14, 0].
Source:   CipherDM (arXiv 2409.05414), coefficients as in its released code.
"""

exp_corrected = ChebyshevExp(
    "exp_corrected", (-inf, 0.0), tuple(float(special.ive(k, 7) * (1 if k == 0 else 2)) for k in range(8))
)
"""exp(x) for x <= 0 by the Chebyshev polynomial of degree 7 that CipherDM's is meant to be.

Formula:  that of `exp_cipherdm`, with c_k the first eight terms of the Chebyshev series of exp on [-14, 0]:
          c_0 = exp(-7) I_0(7), c_k = 2 exp(-7) I_k(7), I_k the modified Bessel functions.
Domain:   x <= 0. Above 0 the polynomial is evaluated outside of its interval and grows fast.
Error:    at most 0.0055 (at 0). The polynomial that interpolates exp in the Chebyshev nodes (c = 0.15374, 0.28458,
          0.22617, 0.15533, 0.09299, 0.04891, 0.02257, 0.00838) has 0.0073.
Source:   ours, in the form of CipherDM (arXiv 2409.05414).
"""


@dataclass(frozen=True)
class ExpLimit(Approximation):
    """The limit form (1 + x/2^squarings)^(2^squarings), and 0 below `lowest` if that is finite.

    Attributes:
        squarings: number of squarings.
        lowest: point below which the result is 0; -inf for no comparison.
    """

    squarings: int
    lowest: float = -inf

    @property
    def input_scale(self) -> float:
        """Factor by which the input of `of_scaled` is to be multiplied."""
        return 2.0**-self.squarings

    def __call__(self, x):
        y = self.of_scaled(x * jnp.float32(self.input_scale))
        return y if self.lowest == -inf else jnp.where(x > jnp.float32(self.lowest), y, jnp.zeros_like(x))

    def of_scaled(self, z):
        """Return the limit form from z = input_scale * x, never clipped."""
        y = z + jnp.float32(1)
        for _ in range(self.squarings):
            y = y * y
        return y


exp_puma = ExpLimit("exp_puma", (-inf, 0.0), squarings=5, lowest=LOWEST)
"""exp(x) for x <= 0 by five squarings.

Formula:  (1 + x/32)^32, and 0 for x < -14.
Domain:   x <= 0.
Error:    at most 0.0085 (at -2).
Source:   the limit that defines exp; PUMA (Dong et al., arXiv 2307.12533) with the clip.
"""


exp_nimbus = PiecewisePolynomial("exp_nimbus", (-inf, 0.0), (-3.9,), ((0.0,), (0.97090, 0.83181, 0.26333, 0.02918)))
"""exp(x) for x <= 0 by a polynomial of degree 3, with its error spread as scores of trained models are.

Formula:  0.97090 + 0.83181 x + 0.26333 x^2 + 0.02918 x^3 for x >= -3.9; 0 below.
Domain:   x <= 0.
Error:    at most 0.0291 (at 0).
Source:   Nimbus (Li et al., NeurIPS 2024, arXiv 2411.15707).
"""


def exp_limit(bound: float, tolerance: float = 0.01) -> ExpLimit:
    """Return the limit form for |x| <= bound, with the fewest squarings that keep the relative error below `tolerance`.

    Formula:  (1 + x/2^k)^(2^k).
    Domain:   |x| <= bound.
    Error:    relative, about x^2 / 2^(k+1); below 1% by default.
    Source:   the limit that defines exp; without a clip, for scores that the model's owner has bounded: ours.
    """
    squarings = ceil(log2(bound * bound / (2 * tolerance)))
    return ExpLimit(f"exp_limit_bound{bound:g}".replace(".", "_"), (-float(bound), float(bound)), max(squarings, 1))


_DEGREE = 4  # in Knuth's form two multiplications, as many as two squarings

# Products have 36 fraction bits until they are truncated, which is right for up to 62 bits: so up to 2^26.
_LARGEST = 26 * np.log(2)


@dataclass(frozen=True)
class ExpBounded(Approximation):
    """A polynomial of x/2^squarings, squared that many times."""

    polynomial: KnuthPolynomial
    squarings: int

    @property
    def input_scale(self) -> float:
        """Factor by which the input of `of_scaled` is to be multiplied."""
        return self.polynomial.input_scale / 2**self.squarings

    def __call__(self, x):
        return self.of_scaled(x * jnp.float32(self.input_scale))

    def of_scaled(self, z):
        """Return exp(x) from z = input_scale * x; the owner folds the scale into the attention's query projection."""
        y = self.polynomial.of_scaled(z)
        for _ in range(self.squarings):
            y = y * y
        return y


@lru_cache
def exp_bounded(bound: float, tolerance: float = 0.01) -> ExpBounded:
    """Return exp for |x| <= bound, with the fewest squarings that keep the relative error below `tolerance`.

    Formula:  p(x/2^j)^(2^j), p the quartic with the smallest maximum relative error to exp on |x| <= bound/2^j,
              evaluated as `knuth` says: 2 + j multiplications.
    Domain:   |x| <= bound.
    Error:    relative, which is what counts in a softmax; secure evaluation adds about 2^-18 of the largest value:
              bound     j  maximum
              1         0  0.0005
              2         1  0.0010
              3         1  0.0073
              4         2  0.0020
              6         3  0.0010
              8         3  0.0040
    Source:   ours.

    Raises CipherDMError for a bound above 18.7, whose exponential does not fit into SPU's fixed-point numbers.
    """
    if not 0 < bound <= _LARGEST:
        raise CipherDMError(
            f"exp up to {bound:g} does not fit into fixed-point numbers; give a bound of 0 to {_LARGEST:.1f}."
        )
    name = f"exp_bounded{bound:g}".replace(".", "_")
    squarings = 0
    while True:
        end = bound / 2**squarings
        fit = fit_minimax(np.exp, (-end, end), (_DEGREE,), name=name, relative=True)
        polynomial = KnuthPolynomial(name, fit.domain, fit.coefficients[0])
        # Each squaring doubles a relative error, so that of the quartic is raised to the power 2^j.
        if (1 + polynomial.max_error(np.exp, -end, end, relative=True)) ** 2**squarings <= 1 + tolerance:
            return ExpBounded(name, (-float(bound), float(bound)), polynomial, squarings)
        squarings += 1
