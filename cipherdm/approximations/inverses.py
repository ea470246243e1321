"""1/sqrt(v), as GroupNorm and LayerNorm need it, by Newton's iteration from a calibrated start.

Formula:  y <- y (3 - v y^2) / 2. The first step from a known y_0 is affine in v: y_1 = A - B v with A = 3 y_0 / 2 and
          B = y_0^3 / 2. If all v lie in [low, high], the affine function of smallest maximum relative error is a little
          better than the one from any y_0: `affine_start`.
Domain:   low <= v <= high. A step converges for 0 < v y^2 < 3; from the affine start that is 0 < v < A/B = low +
          sqrt(low high) + high. Beyond A/B the start is negative, and the
          result has the wrong sign or diverges.
Error:    relative, by high/low; each step turns a relative error e into about 3 e^2 / 2:
          high/low  affine  1 step  2 steps
          1.5       0.0077  0.0001  0.0000
          2         0.0223  0.0007  0.0000
          4         0.0860  0.0114  0.0002
          8         0.1823  0.0529  0.0041
Source:   Newton's method. The affine start with A and B calibrated per layer and shared by the model owner is ours.
Cost:     all parties together, measured (`cipherdm bench activations`):
          inverse_sqrt_steps0: 28 B an element, 5 sends;
          inverse_sqrt_steps1: 212 B an element, 34 sends;
          inverse_sqrt_steps2: 368 B an element, 58 sends.
"""

# FROM cipherdm.protocols.reciprocal:
# 1/v, as a softmax needs it, by Newton's iteration from a calibrated start.
#
# Formula:  y <- y (2 - v y), from y_1 = A - B v of smallest maximum relative error on [low, high].
# Domain:   low <= v <= high. From the affine start it converges for 0 < v < A/B = low + high, and diverges beyond.
# Error:    relative, by high/low; each step turns a relative error e into e^2:
#           high/low  affine  1 step  2 steps
#           1.5       0.0204  0.0004  0.0000
#           2         0.0588  0.0035  0.0000
#           4         0.2195  0.0482  0.0023
#           8         0.4336  0.1880  0.0354
# Source:   Newton's method; the affine start with calibrated A and B is ours.
# Cost:     all parties together, measured (`cipherdm bench activations`):
#           reciprocal_steps0: 28 B an element, 5 sends;
#           reciprocal_steps1: 132 B an element, 21 sends;
#           reciprocal_steps2: 236 B an element, 37 sends.

from dataclasses import dataclass
from math import sqrt

import jax.numpy as jnp

from .approximation import Approximation


def rsqrt_start(low: float, high: float) -> tuple[float, float]:
    """A and B with the smallest maximum relative error of A - B v to 1/sqrt(v) on [low, high]."""
    # The relative error (A - B v) sqrt(v) - 1 is equal at both ends if A/B is this, and largest at v = A/(3B) between.
    ratio = low + sqrt(low * high) + high
    at_ends = (ratio - low) * sqrt(low)
    largest = 2 * ratio / 3 * sqrt(ratio / 3)
    b = 2 / (at_ends + largest)
    return ratio * b, b


def rsqrt_step(y, half_v):
    """y (3 - v y^2) / 2, given v/2. Whoever makes v by a sum with public coefficients gets v/2 for nothing."""
    return y * (jnp.float32(1.5) - half_v * (y * y))


def rsqrt_newton(v, start, steps: int = 1):
    """1/sqrt(v) by `steps` Newton steps from `start`, an array that broadcasts with v."""
    half_v, y = v * jnp.float32(0.5), start
    for _ in range(steps):
        y = rsqrt_step(y, half_v)
    return y


@dataclass(frozen=True)
class InverseSqrt(Approximation):
    """1/sqrt(v) on its domain, by the affine start and `steps` Newton steps after it. All constants are public.

    A model owner who calibrates layer by layer computes A and B per layer with `rsqrt_start`, shares them, and has the
    parties compute A - B v, one multiplication, and `rsqrt_step` if that is not enough.
    """

    steps: int = 0

    def __call__(self, v):
        a, b = rsqrt_start(*self.domain)
        start = jnp.float32(a) - jnp.float32(b) * v
        return rsqrt_newton(v, start, self.steps) if self.steps else start


def reciprocal_start(low: float, high: float) -> tuple[float, float]:
    """A and B with the smallest maximum relative error of A - B v to 1/v on [low, high]."""
    # The relative error (A - B v) v - 1 is equal at both ends if A/B = low + high, and largest halfway.
    b = 2 / (low * high + (low + high) ** 2 / 4)
    return (low + high) * b, b


def reciprocal_step(y, v):
    """y (2 - v y)."""
    return y * (jnp.float32(2) - v * y)


@dataclass(frozen=True)
class Reciprocal(Approximation):
    """1/v on its domain, by the affine start and `steps` Newton steps after it. All constants are public."""

    steps: int = 1

    def __call__(self, v):
        a, b = reciprocal_start(*self.domain)
        y = jnp.float32(a) - jnp.float32(b) * v
        for _ in range(self.steps):
            y = reciprocal_step(y, v)
        return y
