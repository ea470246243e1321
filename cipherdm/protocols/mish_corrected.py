"""Mish, x tanh(log(1 + exp(x))), on CipherDM's segments, with polynomials that are fitted to it.

Formula:  0 for x < -6; a quadratic on [-6, -2); a + b x + c x^2 + d x^4 + e x^6 on [-2, 6); x from 6 on. The coefficients
          are those of smallest maximum error on each segment among multiples of 2^-18, which fixed point holds exactly.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0810 (at 1.6); rms 0.0536 for x ~ N(0, 1.5^2). The powers set the limit: with x^3 and x^5
          in the middle segment it would be 0.015.
Source:   ours, in the form of CipherDM (arXiv 2409.05414). `fit_minimax` gives these coefficients; a test does so again.
Cost:     all parties together, measured (`cipherdm bench activations`): mish_corrected: 728 B an element, 61 sends.
"""

from math import inf

from .piecewise import PiecewisePolynomial

mish_corrected = PiecewisePolynomial(
    name="mish_corrected",
    domain=(-inf, inf),
    breakpoints=(-6.0, -2.0, 6.0),
    coefficients=(
        (0.0,),
        (-0.5472373962402344, -0.17837142944335938, -0.015018463134765625),
        (
            0.07633590698242188,
            0.5529632568359375,
            0.20185089111328125,
            0.0,
            -0.007381439208984375,
            0.0,
            0.0001068115234375,
        ),
        (0.0, 1.0),
    ),
)
