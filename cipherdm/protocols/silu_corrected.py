"""SiLU, x / (1 + exp(-x)), on CipherDM's segments, with polynomials that are fitted to it.

Formula:  0 for x < -6; a quadratic on [-6, -2); a + b x + c x^2 + d x^4 + e x^6 on [-2, 6); x from 6 on. The coefficients
          are those of smallest maximum error on each segment among multiples of 2^-18, which fixed point holds exactly.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0394 (at 1.9); rms 0.0265 for x ~ N(0, 1.5^2). The powers set the limit: with x^3 and x^5
          in the middle segment it would be 0.015, at the outer breakpoints.
Source:   ours, in the form of CipherDM (arXiv 2409.05414). `fit_minimax` gives these coefficients; a test does so again.
Cost:     all parties together, measured (`cipherdm bench activations`): silu_corrected: 728 B an element, 61 sends.
"""

from math import inf

from .piecewise import PiecewisePolynomial

silu_corrected = PiecewisePolynomial(
    name="silu_corrected",
    domain=(-inf, inf),
    breakpoints=(-6.0, -2.0, 6.0),
    coefficients=(
        (0.0,),
        (-0.5150527954101562, -0.16518402099609375, -0.01369476318359375),
        (
            0.039363861083984375,
            0.4998588562011719,
            0.19242477416992188,
            0.0,
            -0.005657196044921875,
            0.0,
            7.2479248046875e-05,
        ),
        (0.0, 1.0),
    ),
)
