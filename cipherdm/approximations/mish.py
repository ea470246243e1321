"""Mish, x tanh(log(1 + exp(x))), and the polynomials that stand for it on shares."""

from . import exact
from .knuth import KnuthPolynomial, fit_knuth
from .piecewise import activation

mish_cipherdm = activation(
    "mish_cipherdm",
    (-6.0, -2.0, 6.0),
    (-0.55684445, -0.18375535, -0.01572019),
    (0.07559242, 0.54902050, 0.20152583, 0.0, -0.00735309, 0.0, 0.00010786),
)
"""Mish by piecewise polynomials.

Formula:  0 for x < -6; -0.55684445 - 0.18375535 x - 0.01572019 x^2 on [-6, -2);
          0.07559242 + 0.54902050 x + 0.20152583 x^2 - 0.00735309 x^4 + 0.00010786 x^6 on [-2, 6); x from 6 on.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.1275 (at 6); rms 0.0549 for x ~ N(0, 1.5^2).
Source:   CipherDM (arXiv 2409.05414), coefficients as in its released code, where this function raises when called.
"""

mish_corrected = activation(
    "mish_corrected",
    (-6.0, -2.0, 6.0),
    (-0.5472373962402344, -0.17837142944335938, -0.015018463134765625),
    (0.07633590698242188, 0.5529632568359375, 0.20185089111328125, 0.0, -0.007381439208984375, 0.0, 0.0001068115234375),
)
"""Mish on CipherDM's segments, with polynomials that are fitted to it.

Formula:  0 for x < -6; a quadratic on [-6, -2); a + b x + c x^2 + d x^4 + e x^6 on [-2, 6); x from 6 on. The coefficients
          have the smallest maximum error on each segment among multiples of 2^-18, which fixed point holds exactly.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0810 (at 1.6); rms 0.0536 for x ~ N(0, 1.5^2). The powers set the limit: with x^3 and x^5
          in the middle segment it would be 0.015.
Source:   ours, in the form of CipherDM (arXiv 2409.05414). `fit_minimax` gives these coefficients; a test does so again.
"""


def mish_polynomial(bound: float, degree: int = 6, spread: float | None = None) -> KnuthPolynomial:
    """Return the polynomial for |x| <= bound; with `spread`, weighted for x ~ N(0, spread^2) instead of minimax.

    It needs no comparison, and two or three multiplications.

    Formula:  a polynomial of degree 4 or 6, evaluated as `knuth` says. Mish less a line is not even, so it has all powers.
    Domain:   |x| <= bound. Beyond, the polynomial leaves Mish without limit: at degree 4 it falls, at 6 it grows.
    Error:    minimax fits; "max" is on the domain, rms for x ~ N(0, 1.5^2) clipped to it:
              bound  degree 4: max, rms  degree 6: max, rms
              3          0.0298  0.0214      0.0066  0.0047
              4          0.0667  0.0473      0.0212  0.0151
              5          0.1092  0.0772      0.0433  0.0306
              6          0.1528  0.1080      0.0698  0.0494
              8          0.2376  0.1668      0.1277  0.0903
    Source:   ours.
    """
    return fit_knuth("mish", exact.mish, bound, degree, spread)
