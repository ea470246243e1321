"""Polynomials of degree 4, 6 and 8 with two, three and three multiplications, and otherwise only additions of constants.

Knuth's adaptation of coefficients (The Art of Computer Programming, volume 2, section 4.6.4). On shares, adding a public
constant is free and multiplying by one is not, because the product must be truncated. Scaling the input makes the
polynomial monic (up to sign), and then no other constant is multiplied with:

- degree 4: w = z (z + a); (w + b)(w + z + c) + d.
- degree 6: z = (x + a0) x + a1; w = (x + a2) z + a3; (w + z + a4) w + a5.
- degree 8, for a line plus an even polynomial: u = z^2; the quartic in u of degree 4 above, plus z. Its output comes
  out scaled.

The owner of a model folds the input scale into the layer before and the output scale into the layer after, in plaintext.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import jax.numpy as jnp
import numpy as np

from ..errors import CipherDMError
from .approximation import Approximation
from .fitting import Form, fit_minimax, fit_weighted


@dataclass(frozen=True)
class KnuthPolynomial(Approximation):
    """A polynomial of degree 4 or 6, or of degree 8 with no odd power but x, with adapted coefficients.

    Attributes:
        coefficients: coefficients of 1, x, x^2, ..., x^degree.
    """

    coefficients: tuple[float, ...]

    def __post_init__(self):
        odd = self.coefficients[3::2]
        if self.degree not in (4, 6, 8) or self.coefficients[-1] == 0 or (self.degree == 8 and any(odd)):
            raise CipherDMError(f"{self.name}: a polynomial of degree 4, 6 or 8 is needed, at degree 8 even but for x.")

    def __call__(self, x):
        y = self.of_scaled(x * jnp.float32(self.input_scale))
        return y if self.output_scale == 1 else y * jnp.float32(1 / self.output_scale)

    def of_scaled(self, z):
        """Return output_scale * self(x) from z = input_scale * x."""
        if self.degree == 8:
            even = _quartic(z * z, self._constants)
            return z + even if self._sign > 0 else z - even
        y = (_quartic if self.degree == 4 else _sextic)(z, self._constants)
        return y if self._sign > 0 else -y

    @property
    def degree(self) -> int:
        """Highest power."""
        return len(self.coefficients) - 1

    @property
    def input_scale(self) -> float:
        """Factor by which the input of `of_scaled` is to be multiplied."""
        if self.degree == 8:  # scaled by this, the coefficients of z and of z^8 have one magnitude
            return float(abs(self.coefficients[8] / self.coefficients[1]) ** (1 / 7))
        return float(abs(self.coefficients[-1]) ** (1 / self.degree))

    @property
    def output_scale(self) -> float:
        """Factor by which `of_scaled` multiplies the function: 1 for degrees 4 and 6."""
        return self.input_scale / self.coefficients[1] if self.degree == 8 else 1.0

    @property
    def _sign(self) -> int:
        # The adapted forms begin with +z^degree; the other sign is a negation at the end, which is free on shares.
        return 1 if self.coefficients[-1] * self.output_scale > 0 else -1

    @cached_property
    def _constants(self) -> tuple[float, ...]:
        scaled = np.array(self.coefficients) / self.input_scale ** np.arange(self.degree + 1)
        monic = scaled * self.output_scale * self._sign
        if self.degree == 8:
            return adapt_quartic(monic[::2])
        return adapt_quartic(monic) if self.degree == 4 else adapt_sextic(monic)


def _quartic(z, constants):
    a, b, c, d = map(jnp.float32, constants)
    w = z * (z + a)
    return (w + b) * (w + z + c) + d


def _sextic(x, constants):
    a0, a1, a2, a3, a4, a5 = map(jnp.float32, constants)
    z = (x + a0) * x + a1
    w = (x + a2) * z + a3
    return (w + z + a4) * w + a5


def adapt_quartic(p) -> tuple[float, ...]:
    """Return the constants a to d of the form in this module's docstring, from p[0] + p[1] z + ... + z^4."""
    a = (p[3] - 1) / 2
    total = p[2] - a * a - a  # b + c
    b = p[1] - total * a
    c = total - b
    return a, b, c, p[0] - b * c


def adapt_sextic(p) -> tuple[float, ...]:
    """Return the constants a0 to a5 of the form in this module's docstring, from p[0] + p[1] x + ... + x^6.

    With w = x^3 + e x^2 + f x + g and z + a4 = x^2 + a0 x + h, comparing coefficients leaves a cubic equation for f.
    """
    e = (p[5] - 1) / 2
    first = p[4] - e * e - e  # a0 = first - 2 f
    second = p[3] - e * first  # h = second - 2 g - f
    # g = f^2 - (first - e) f + third, which the coefficient of x turns into the cubic.
    g = np.polynomial.Polynomial([p[2] - e * second, e - first, 1])
    f = np.polynomial.Polynomial([0, 1])
    roots = (first * g + second * f - 2 * f * g - f * f - p[1]).roots()
    candidates = [_sextic_from_root(root.real, p, e, first, second, g) for root in roots if abs(root.imag) < 1e-9]
    return min(candidates, key=lambda constants: max(map(abs, constants)))  # small constants lose the fewest bits


def _sextic_from_root(f, p, e, first, second, g_of) -> tuple[float, ...]:
    g = g_of(f)
    a0, h = first - 2 * f, second - 2 * g - f
    a2 = e - a0
    a1 = f - a0 * a2
    return a0, a1, a2, g - a1 * a2, h - a1, p[0] - g * g - h * g


@lru_cache
def fit_knuth(
    kind: str, function: Callable, bound: float, degree: int, spread: float | None, form: Form | None = None
) -> KnuthPolynomial:
    """Return a polynomial fitted to `function` on [-bound, bound].

    The weighted fit has the smaller mean and the larger maximum error: it is for activations that seldom come near the
    bound.

    Args:
        kind: beginning of the polynomial's name.
        function: exact function, in NumPy.
        bound: largest |x|.
        degree: 4, 6, or 8.
        spread: width of the normal density by which errors are weighted; None for the smallest maximum error.
        form: powers that may be used; all of them by default.
    """
    ends, name = (-float(bound), float(bound)), f"{kind}_degree{degree}_bound{bound:g}".replace(".", "_")
    if spread is None:
        fit = fit_minimax(function, ends, (form or degree,), name=name)
    else:
        x = np.linspace(*ends, 2001)
        density = np.exp(-np.square(x / spread) / 2)
        name += f"_spread{spread:g}".replace(".", "_")
        fit = fit_weighted(function, x, ends, (form or degree,), weights=density, name=name)
    return KnuthPolynomial(name, ends, fit.coefficients[0])
