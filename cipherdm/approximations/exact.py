"""The exact functions in NumPy and double precision, to which approximations are fitted and compared."""

import numpy as np
from scipy import special


def silu(x):
    """Return x / (1 + exp(-x))."""
    return x * special.expit(x)


def mish(x):
    """Return x tanh(log(1 + exp(x)))."""
    return x * np.tanh(np.logaddexp(0, x))


def gelu(x):
    """Return x times the normal distribution function at x."""
    return x * special.ndtr(x)


def softmax(scores):
    """Return the softmax over the last axis."""
    return special.softmax(scores, axis=-1)


def inverse_sqrt(x):
    """Return 1 / sqrt(x)."""
    return 1 / np.sqrt(x)


def normalised_rows(x):
    """Return x [N, width] with mean 0 and variance 1 over the last axis."""
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def reciprocal(x):
    """Return 1 / x."""
    return 1 / x
