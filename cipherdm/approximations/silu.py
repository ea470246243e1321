"""SiLU, x / (1 + exp(-x)), and the polynomials that stand for it on shares."""

import jax.numpy as jnp

from . import exact
from .fitting import even_plus_half
from .knuth import KnuthPolynomial, fit_knuth
from .piecewise import activation

silu_cipherdm = activation(
    "silu_cipherdm",
    (-6.0, -2.0, 6.0),
    (-0.52212664, -0.16910363, -0.01420163),
    (0.03453821, 0.49379432, 0.19784596, 0.0, -0.00602401, 0.0, 0.00008032),
)
"""SiLU by piecewise polynomials.

Formula:  0 for x < -6; -0.52212664 - 0.16910363 x - 0.01420163 x^2 on [-6, -2);
          0.03453821 + 0.49379432 x + 0.19784596 x^2 - 0.00602401 x^4 + 0.00008032 x^6 on [-2, 6); x from 6 on.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0749 (at 6); rms 0.0234 for x ~ N(0, 1.5^2).
Source:   CipherDM (arXiv 2409.05414), coefficients as in its released code.
"""

silu_corrected = activation(
    "silu_corrected",
    (-6.0, -2.0, 6.0),
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
)
"""SiLU on CipherDM's segments, with polynomials that are fitted to it.

Formula:  0 for x < -6; a quadratic on [-6, -2); a + b x + c x^2 + d x^4 + e x^6 on [-2, 6); x from 6 on. The coefficients
          have the smallest maximum error on each segment among multiples of 2^-18, which fixed point holds exactly.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0394 (at 1.9); rms 0.0265 for x ~ N(0, 1.5^2). The powers set the limit: with x^3 and x^5
          in the middle segment it would be 0.015, at the outer breakpoints.
Source:   ours, in the form of CipherDM (arXiv 2409.05414). `fit_minimax` gives these coefficients; a test does so again.
"""

silu_llama = activation(
    "silu_llama",
    (-8.0, -4.0, 4.0),
    (-0.3067541139982155, -0.0819767021525476, -0.0055465625580307),
    (0.0085064025895951, 0.5, 0.228143084172827, 0.0, -0.011113046708173, 0.0, 0.0002743776353465),
)
"""SiLU by piecewise polynomials, with the exact x/2 in the middle.

Formula:  0 for x < -8; -0.3067541139982155 - 0.0819767021525476 x - 0.0055465625580307 x^2 on [-8, -4);
          0.0085064025895951 + 0.5 x + 0.228143084172827 x^2 - 0.011113046708173 x^4 + 0.0002743776353465 x^6 on
          [-4, 4); x from 4 on.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0719 (at 4); rms 0.0067 for x ~ N(0, 1.5^2).
Source:   the LLaMA example of SPU.
"""

_SIGMOID = (0.493529, 0.302851, -0.0680862, 0.0067479, -0.00024728)

silu_bumblebee = activation(
    "silu_bumblebee",
    (-8.0, 0.0, 8.0),
    (0.0, 1 - _SIGMOID[0], _SIGMOID[1], -_SIGMOID[2], _SIGMOID[3], -_SIGMOID[4]),
    (0.0, *_SIGMOID),
)
"""SiLU as x times a polynomial for the sigmoid.

Formula:  x p(x) on [0, 8), x (1 - p(-x)) on [-8, 0), 0 for x < -8, x from 8 on, where
          p(x) = 0.493529 + 0.302851 x - 0.0680862 x^2 + 0.0067479 x^3 - 0.00024728 x^4.
Domain:   all x; in fixed point as long as the comparisons are right.
Error:    at most 0.0098 (at -8); rms 0.0043 for x ~ N(0, 1.5^2). On shares at most 0.1: x^5, up to 32768, multiplies the
          rounding of its coefficient to 18 fraction bits.
Source:   BumbleBee (Lu et al., NDSS 2025). There for two parties; written here with its products multiplied out.
"""


def silu_polynomial(bound: float, degree: int = 8, spread: float | None = None) -> KnuthPolynomial:
    """Return the polynomial for |x| <= bound; with `spread`, weighted for x ~ N(0, spread^2) instead of minimax.

    It needs no comparison, and two or three multiplications.

    Formula:  x/2 + a polynomial of degree 4, 6 or 8 in x with even powers only, evaluated as `knuth` says.
              (SiLU(x) - x/2 is an even function.)
    Domain:   |x| <= bound. Beyond, the polynomial leaves SiLU without limit: at degrees 4 and 8 it falls, at 6 it grows.
    Error:    minimax fits; "max" is on the domain, rms for x ~ N(0, 1.5^2) clipped to it:
              bound  degree 4: max, rms  degree 6: max, rms  degree 8: max, rms
              3          0.0124  0.0089      0.0020  0.0014      0.0003  0.0002
              4          0.0348  0.0247      0.0082  0.0058      0.0019  0.0014
              5          0.0678  0.0479      0.0205  0.0145      0.0062  0.0044
              6          0.1073  0.0758      0.0387  0.0274      0.0141  0.0100
              8          0.1944  0.1365      0.0879  0.0621      0.0405  0.0286
    Source:   ours; the form x/2 + even is that of PUMA and of SPU's LLaMA example.
    """
    return fit_knuth("silu", exact.silu, bound, degree, spread, even_plus_half(degree))


def quad(x):
    """Return a quadratic of a float32 array, instead of SiLU, for models that are trained or distilled with it.

    Formula:  x^2 / 4 + x / 2 = ((x + 1) / 2)^2 - 1/4, SiLU's Taylor polynomial of degree 2 at 0.
    Domain:   all x, as a function of its own. It grows on both sides, where SiLU vanishes on the left.
    Error:    as a SiLU at most 2.072 (at 4) on [-4, 4]; rms 0.414 for x ~ N(0, 1.5^2).
    Source:   the idea is MPCFormer's (Li et al., ICLR 2023), which distils models into quadratics. FAST folds scale and
              shift into the normalisation before it, which leaves one square.
    """
    return x * (x + jnp.float32(2)) * jnp.float32(0.25)
