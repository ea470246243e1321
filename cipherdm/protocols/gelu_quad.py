"""Quad, a quadratic in the place of GeLU, for models that are trained or distilled with it.

Formula:  0.5 + 0.25 x + 0.125 x^2.
Domain:   all x, as a function of its own. It is a poor GeLU: 0.5 at 0, and it grows on both sides.
Error:    at most 1.5001 (at -4) on [-4, 4]; rms 0.5002 for x ~ N(0, 1.5^2).
Source:   MPCFormer (Li et al., ICLR 2023).
Cost:     all parties together, measured (`cipherdm bench activations`): gelu_quad: 80 B an element, 13 sends.
"""

from math import inf

from .piecewise import PiecewisePolynomial

gelu_quad = PiecewisePolynomial(
    name="gelu_quad", domain=(-inf, inf), breakpoints=(), coefficients=((0.5, 0.25, 0.125),)
)
