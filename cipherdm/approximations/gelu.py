"""GeLU, x times the normal distribution function at x, and the polynomials that stand for it on shares."""

from math import inf

from . import exact
from .fitting import even_plus_half
from .knuth import KnuthPolynomial, fit_knuth
from .piecewise import PiecewisePolynomial, activation

gelu_puma = activation(
    "gelu_puma",
    (-4.0, -1.95, 3.0),
    (-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728),
    (0.008526321541038084, 0.5, 0.3603292692789629, 0.0, -0.037688200365904236, 0.0, 0.0018067462606141187),
)
"""GeLU by piecewise polynomials.

Formula:  0 for x < -4; -0.5054031199708174 - 0.42226581151983866 x - 0.11807612951181953 x^2 - 0.011034134030615728 x^3
          on [-4, -1.95); 0.008526321541038084 + 0.5 x + 0.3603292692789629 x^2 - 0.037688200365904236 x^4
          + 0.0018067462606141187 x^6 on [-1.95, 3); x from 3 on.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0199 (at 3); rms 0.0056 for x ~ N(0, 1.5^2).
Source:   PUMA (Dong et al., arXiv 2307.12533).
"""


gelu_nimbus = activation("gelu_nimbus", (-1.8, 0.5), (-0.006946478426716862, 0.32421075145645123, 0.17025471961795552))
"""GeLU by a quadratic in the middle, with its error spread as activations of trained models are.

Formula:  0 for x < -1.8; -0.006946478426716862 + 0.32421075145645123 x + 0.17025471961795552 x^2 on [-1.8, 0.5);
          x from 0.5 on.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.1700 (at 0.7517); rms 0.0798 for x ~ N(0, 1.5^2).
Source:   Nimbus (Li et al., NeurIPS 2024, arXiv 2411.15707).
"""


def gelu_polynomial(bound: float, degree: int = 8, spread: float | None = None) -> KnuthPolynomial:
    """Return the polynomial for |x| <= bound; with `spread`, weighted for x ~ N(0, spread^2) instead of minimax.

    It needs no comparison, and two or three multiplications.

    Formula:  x/2 + a polynomial of degree 4, 6 or 8 in x with even powers only, evaluated as `knuth` says.
              (GeLU(x) - x/2 is an even function.)
    Domain:   |x| <= bound. Beyond, the polynomial leaves GeLU without limit: at degrees 4 and 8 it falls, at 6 it grows.
    Error:    minimax fits; "max" is on the domain, rms for x ~ N(0, 1.5^2) clipped to it:
              bound  degree 4: max, rms  degree 6: max, rms  degree 8: max, rms
              3          0.0392  0.0283      0.0092  0.0067      0.0019  0.0014
              4          0.0854  0.0606      0.0304  0.0216      0.0098  0.0069
              5          0.1336  0.0946      0.0602  0.0426      0.0257  0.0182
              6          0.1792  0.1271      0.0926  0.0655      0.0471  0.0333
              8          0.2617  0.1854      0.1561  0.1106      0.0954  0.0674
    Source:   ours; the form x/2 + even is that of PUMA and of SPU's LLaMA example.
    """
    return fit_knuth("gelu", exact.gelu, bound, degree, spread, even_plus_half(degree))


gelu_quad = PiecewisePolynomial("gelu_quad", (-inf, inf), (), ((0.5, 0.25, 0.125),))
"""A quadratic instead of GeLU, for models that are trained or distilled with it.

Formula:  0.5 + 0.25 x + 0.125 x^2.
Domain:   all x, as a function of its own. It is a poor GeLU: 0.5 at 0, and it grows on both sides.
Error:    at most 1.5001 (at -4) on [-4, 4]; rms 0.5002 for x ~ N(0, 1.5^2).
Source:   MPCFormer (Li et al., ICLR 2023).
"""
