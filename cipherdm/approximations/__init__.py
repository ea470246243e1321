"""Approximations of nonlinear functions on shares, by function, and the forms that they are written in."""

from . import exact
from .approximation import Approximation
from .exp import exp_bounded, exp_cipherdm, exp_corrected, exp_limit, exp_puma
from .fitting import fit_minimax, fit_weighted
from .gelu import gelu_polynomial, gelu_puma, gelu_quad
from .inverses import InverseSqrt, Reciprocal
from .knuth import KnuthPolynomial
from .mish import mish_cipherdm, mish_corrected, mish_polynomial
from .piecewise import PiecewisePolynomial, clamp
from .piecewise_costs import Counts, Prices
from .silu import quad, silu_bumblebee, silu_cipherdm, silu_corrected, silu_llama, silu_polynomial
from .softmax import softmax_2quad, softmax_bounded, softmax_cipherdm, softmax_corrected, softmax_limit, softmax_puma
