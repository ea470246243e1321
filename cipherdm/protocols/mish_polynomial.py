"""Mish by one polynomial on a calibrated range: no comparison, two or three multiplications.

Formula:  a polynomial of degree 4 or 6, evaluated as `knuth` says. Mish less a line is not even, so all powers are there.
Domain:   |x| <= bound. Beyond, the polynomial leaves Mish without limit: at degree 4 it falls, at 6 it grows.
Error:    minimax fits; "at most" is on the domain, rms for x ~ N(0, 1.5^2) clipped to it:
          bound  degree 4: max, rms  degree 6: max, rms
          3          0.0298  0.0214      0.0066  0.0047
          4          0.0667  0.0473      0.0212  0.0151
          5          0.1092  0.0772      0.0433  0.0306
          6          0.1528  0.1080      0.0698  0.0494
          8          0.2376  0.1668      0.1277  0.0903
Source:   ours.
Cost:     all parties together, measured (`cipherdm bench activations`):
          mish_degree4_bound6: 132 B an element, 21 sends;
          mish_degree4_bound6_folded: 104 B an element, 16 sends;
          mish_degree6_bound6: 184 B an element, 29 sends;
          mish_degree6_bound6_folded: 156 B an element, 24 sends.
"""

from functools import lru_cache

from . import exact
from .knuth import KnuthPolynomial, fitted


@lru_cache
def mish_polynomial(bound: float, degree: int = 6, spread: float | None = None) -> KnuthPolynomial:
    """The polynomial for |x| <= bound; with `spread`, weighted for x ~ N(0, spread^2) instead of minimax."""
    return fitted(exact.mish, bound, degree, degree, spread, "mish")
