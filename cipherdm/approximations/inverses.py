"""1/sqrt(v), as GroupNorm and LayerNorm need it, and 1/v, as a softmax needs it, by Newton's iteration from a calibrated start.

Both start from a line A - B v of smallest maximum relative error on a range [low, high]: `inverse_sqrt_line` and
`reciprocal_line` give A and B.
"""

from dataclasses import dataclass
from math import sqrt

import jax.numpy as jnp

from .approximation import Approximation


@dataclass(frozen=True)
class InverseSqrt(Approximation):
    """1/sqrt(v) on its domain, by a line and `steps` Newton steps after it. All constants are public.

    A model's owner who calibrates layer by layer computes A and B per layer, shares them, and has the parties compute
    A - B v, one multiplication.

    Formula:  y <- y (3 - v y^2) / 2. The first step from a known y_0 is affine in v: y_1 = A - B v with A = 3 y_0 / 2 and
              B = y_0^3 / 2. If all v lie in [low, high], the line of smallest maximum relative error is a little better
              than the one from any y_0: `inverse_sqrt_line`.
    Domain:   low <= v <= high. A step converges for 0 < v y^2 < 3; from the line that is
              0 < v < A/B = low + sqrt(low high) + high. Beyond A/B the start is negative, and the result has the wrong
              sign or diverges.
    Error:    relative, by high/low; each step turns a relative error e into about 3 e^2 / 2:
              high/low  line    1 step  2 steps
              1.5       0.0077  0.0001  0.0000
              2         0.0223  0.0007  0.0000
              4         0.0860  0.0114  0.0002
              8         0.1823  0.0529  0.0041
    Source:   Newton's method. The line with A and B calibrated per layer and shared by the model's owner is ours.
    """

    steps: int = 0

    def __call__(self, v):
        a, b = inverse_sqrt_line(*self.domain)
        start = jnp.float32(a) - jnp.float32(b) * v
        return inverse_sqrt_newton(v, start, self.steps) if self.steps else start


def inverse_sqrt_line(low: float, high: float) -> tuple[float, float]:
    """Return A and B with the smallest maximum relative error of A - B v to 1/sqrt(v) on [low, high]."""
    # The relative error (A - B v) sqrt(v) - 1 is equal at both ends if A/B is this, and largest at v = A/(3B) between.
    ratio = low + sqrt(low * high) + high
    at_ends = (ratio - low) * sqrt(low)
    largest = 2 * ratio / 3 * sqrt(ratio / 3)
    b = 2 / (at_ends + largest)
    return ratio * b, b


def inverse_sqrt_newton(v, start, steps: int = 1):
    """Return 1/sqrt(v) by `steps` Newton steps from `start`, an array that broadcasts with v."""
    half_v, y = v * jnp.float32(0.5), start  # halved once, because each product with a public number is truncated
    for _ in range(steps):
        y = y * (jnp.float32(1.5) - half_v * (y * y))
    return y


@dataclass(frozen=True)
class Reciprocal(Approximation):
    """1/v on its domain, by a line and `steps` Newton steps after it. All constants are public.

    Formula:  y <- y (2 - v y), from y_1 = A - B v of smallest maximum relative error on [low, high].
    Domain:   low <= v <= high. From the line it converges for 0 < v < A/B = low + high, and diverges beyond.
    Error:    relative, by high/low; each step turns a relative error e into e^2:
              high/low  line    1 step  2 steps
              1.5       0.0204  0.0004  0.0000
              2         0.0588  0.0035  0.0000
              4         0.2195  0.0482  0.0023
              8         0.4336  0.1880  0.0354
    Source:   Newton's method; the line with calibrated A and B is ours.
    """

    steps: int = 1

    def __call__(self, v):
        a, b = reciprocal_line(*self.domain)
        y = jnp.float32(a) - jnp.float32(b) * v
        for _ in range(self.steps):
            y = y * (jnp.float32(2) - v * y)
        return y


def reciprocal_line(low: float, high: float) -> tuple[float, float]:
    """Return A and B with the smallest maximum relative error of A - B v to 1/v on [low, high]."""
    # The relative error (A - B v) v - 1 is equal at both ends if A/B = low + high, and largest halfway.
    b = 2 / (low * high + (low + high) ** 2 / 4)
    return (low + high) * b, b
