"""SiLU, x / (1 + exp(-x)), by piecewise polynomials.

Formula:  0 for x < -6; -0.52212664 - 0.16910363 x - 0.01420163 x^2 on [-6, -2);
          0.03453821 + 0.49379432 x + 0.19784596 x^2 - 0.00602401 x^4 + 0.00008032 x^6 on [-2, 6]; x for x > 6.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0749 (at 6); rms 0.0234 for x ~ N(0, 1.5^2).
Source:   CipherDM (arXiv 2409.05414), coefficients as in its released code.
Cost:     all parties together, measured (`cipherdm bench activations`): silu_cipherdm: 728 B an element, 61 sends.
"""

from math import inf

from .piecewise import PiecewisePolynomial

silu_published = PiecewisePolynomial(
    name="silu_cipherdm",
    domain=(-inf, inf),
    breakpoints=(-6.0, -2.0, 6.0),
    coefficients=(
        (0.0,),
        (-0.52212664, -0.16910363, -0.01420163),
        (0.03453821, 0.49379432, 0.19784596, 0.0, -0.00602401, 0.0, 0.00008032),
        (0.0, 1.0),
    ),
)
