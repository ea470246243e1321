"""Softmax of scores with a public bound: no maximum, no clip.

Formula:  e_i = exp(s_i), softmax_i = e_i / sum of e, with exp = `exp_bounded(bound)`, or `exp_limit(bound)` in
          `softmax_limit`. exp is positive on its domain, and no shift is needed for values that fixed point can hold.
Domain:   |s| <= bound, and N exp(bound) below 2^26 for rows of N scores. Subtracting any one public or secret number from a
          row changes nothing, so a bound on half of each row's spread is enough if that number is known. A calibrated
          `Reciprocal` needs the mean of each row's exponentials inside its domain.
Error:    at most 2% of each probability: 1% from each exponential, of the numerator and in the sum.
          The reciprocal, if one is given, adds its own.
Source:   ours.
Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`):
          softmax_limit4: 613 B an element, 248 sends;
          softmax_bounded4: 301 B an element, 200 sends;
          softmax_bounded4_folded: 273 B an element, 195 sends;
          softmax_bounded4_calibrated: 291 B an element, 92 sends;
          softmax_bounded4_calibrated_folded: 263 B an element, 87 sends.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from .approximation import Approximation
from .exp_bounded import exp_bounded
from .exp_limit import exp_limit
from .reciprocal import Reciprocal
from .rows import normalised


@dataclass(frozen=True)
class BoundedSoftmax:
    """Softmax over the last axis with an exponential that is right on a bounded range.

    Attributes:
        name: as of an `Approximation`.
        exponential: its domain is the scores'.
        reciprocal: of the mean of a row's exponentials; SPU's division by the sum if there is none.
    """

    name: str
    exponential: Approximation
    reciprocal: Reciprocal | None = None

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def domain(self) -> tuple[float, float]:
        """The interval that all scores must lie in."""
        return self.exponential.domain

    @property
    def input_scale(self) -> float:
        """What `of_scaled` wants the scores multiplied by; the owner folds it into the query projection."""
        return self.exponential.input_scale

    def __call__(self, scores):
        return self._normalised(self.exponential(scores))

    def of_scaled(self, scaled):
        """softmax(s) from scaled = input_scale * s."""
        return self._normalised(self.exponential.of_scaled(scaled))

    def _normalised(self, exponentials):
        if self.reciprocal is None:
            return normalised(exponentials)
        # The mean, because the reciprocal of a long row's sum would keep few of its bits in fixed point, and its slope none.
        count = exponentials.shape[-1]
        rows = exponentials.reshape(-1, count)
        mean = rows @ np.full((count, 1), 1 / count, np.float32)
        weights = rows * (self.reciprocal(mean) * jnp.float32(1 / count))
        return weights.reshape(exponentials.shape)


def softmax_bounded(bound: float, tolerance: float = 0.01, reciprocal: Reciprocal | None = None) -> BoundedSoftmax:
    """By a quartic and squarings, each exponential with a relative error below `tolerance`."""
    name = f"softmax_bounded{bound:g}".replace(".", "_") + ("_calibrated" if reciprocal else "")
    return BoundedSoftmax(name, exp_bounded(bound, tolerance), reciprocal)


def softmax_limit(bound: float, tolerance: float = 0.01) -> BoundedSoftmax:
    """By the limit form, each exponential with a relative error below `tolerance`."""
    return BoundedSoftmax(f"softmax_limit{bound:g}".replace(".", "_"), exp_limit(bound, tolerance))
