"""GeLU, x times the normal distribution function at x, by piecewise polynomials.

Formula:  0 for x < -4; -0.5054031199708174 - 0.42226581151983866 x - 0.11807612951181953 x^2 - 0.011034134030615728 x^3
          on [-4, -1.95); 0.008526321541038084 + 0.5 x + 0.3603292692789629 x^2 - 0.037688200365904236 x^4
          + 0.0018067462606141187 x^6 on [-1.95, 3); x from 3 on.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0199 (at 3); rms 0.0056 for x ~ N(0, 1.5^2).
Source:   PUMA (Dong et al., arXiv 2307.12533).
Cost:     all parties together, measured (`cipherdm bench activations`): gelu_puma: 780 B an element, 61 sends.
"""

from math import inf

from .piecewise import PiecewisePolynomial

gelu_puma = PiecewisePolynomial(
    name="gelu_puma",
    domain=(-inf, inf),
    breakpoints=(-4.0, -1.95, 3.0),
    coefficients=(
        (0.0,),
        (-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728),
        (0.008526321541038084, 0.5, 0.3603292692789629, 0.0, -0.037688200365904236, 0.0, 0.0018067462606141187),
        (0.0, 1.0),
    ),
)
