"""Mish, x tanh(log(1 + exp(x))), by piecewise polynomials.

Formula:  0 for x < -6; -0.55684445 - 0.18375535 x - 0.01572019 x^2 on [-6, -2);
          0.07559242 + 0.54902050 x + 0.20152583 x^2 - 0.00735309 x^4 + 0.00010786 x^6 on [-2, 6]; x for x > 6.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.1275 (at 6); rms 0.0549 for x ~ N(0, 1.5^2).
Source:   CipherDM (arXiv 2409.05414), coefficients as in its released code, where this function raises when called.
Cost:     all parties together, measured (`cipherdm bench activations`): mish_cipherdm: 728 B an element, 61 sends.
"""

from math import inf

from .piecewise import PiecewisePolynomial

mish_published = PiecewisePolynomial(
    name="mish_cipherdm",
    domain=(-inf, inf),
    breakpoints=(-6.0, -2.0, 6.0),
    coefficients=(
        (0.0,),
        (-0.55684445, -0.18375535, -0.01572019),
        (0.07559242, 0.54902050, 0.20152583, 0.0, -0.00735309, 0.0, 0.00010786),
        (0.0, 1.0),
    ),
)
