"""SiLU, x / (1 + exp(-x)), by piecewise polynomials, with the exact x/2 in the middle.

Formula:  0 for x < -8; -0.3067541139982155 - 0.0819767021525476 x - 0.0055465625580307 x^2 on [-8, -4);
          0.0085064025895951 + 0.5 x + 0.228143084172827 x^2 - 0.011113046708173 x^4 + 0.0002743776353465 x^6 on
          [-4, 4); x from 4 on.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0719 (at 4); rms 0.0067 for x ~ N(0, 1.5^2).
Source:   the LLaMA example of SPU.
Cost:     all parties together, measured (`cipherdm bench activations`): silu_llama: 728 B an element, 61 sends.
"""

from math import inf

from .piecewise import PiecewisePolynomial

silu_llama = PiecewisePolynomial(
    name="silu_llama",
    domain=(-inf, inf),
    breakpoints=(-8.0, -4.0, 4.0),
    coefficients=(
        (0.0,),
        (-0.3067541139982155, -0.0819767021525476, -0.0055465625580307),
        (0.0085064025895951, 0.5, 0.228143084172827, 0.0, -0.011113046708173, 0.0, 0.0002743776353465),
        (0.0, 1.0),
    ),
)
