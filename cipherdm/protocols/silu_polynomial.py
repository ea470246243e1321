"""SiLU by one polynomial on a calibrated range: no comparison, two or three multiplications.

Formula:  x/2 + a polynomial of degree 4, 6 or 8 in x, of which only even powers are there, evaluated as `knuth` says.
          (SiLU(x) - x/2 is an even function.)
Domain:   |x| <= bound. Beyond, the polynomial leaves SiLU without limit: at degrees 4 and 8 it falls, at 6 it grows.
Error:    minimax fits; "at most" is on the domain, rms for x ~ N(0, 1.5^2) clipped to it:
          bound  degree 4: max, rms  degree 6: max, rms  degree 8: max, rms
          3          0.0124  0.0089      0.0020  0.0014      0.0003  0.0002
          4          0.0348  0.0247      0.0082  0.0058      0.0019  0.0014
          5          0.0678  0.0479      0.0205  0.0145      0.0062  0.0044
          6          0.1073  0.0758      0.0387  0.0274      0.0141  0.0100
          8          0.1944  0.1365      0.0879  0.0621      0.0405  0.0286
Source:   ours; the form x/2 + even is that of PUMA and of SPU's LLaMA example.
Cost:     all parties together, measured (`cipherdm bench activations`):
          silu_degree4_bound6: 132 B an element, 21 sends;
          silu_degree4_bound6_folded: 104 B an element, 16 sends;
          silu_degree6_bound6: 184 B an element, 29 sends;
          silu_degree6_bound6_folded: 156 B an element, 24 sends;
          silu_degree8_bound6: 212 B an element, 34 sends;
          silu_degree8_bound6_folded: 156 B an element, 24 sends.
"""

from functools import lru_cache

from . import exact
from .fitting import even_plus_half
from .knuth import KnuthPolynomial, fitted


@lru_cache
def silu_polynomial(bound: float, degree: int = 8, spread: float | None = None) -> KnuthPolynomial:
    """The polynomial for |x| <= bound; with `spread`, weighted for x ~ N(0, spread^2) instead of minimax."""
    return fitted(exact.silu, bound, degree, even_plus_half(degree), spread, "silu")
