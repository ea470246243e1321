"""What softmaxes share: the division by a row's sum, and the subtraction of its maximum."""

# FROM cipherdm.protocols.softmax_cipherdm:
# Softmax as CipherDM published it: subtract the row's maximum, exp by Chebyshev polynomial, divide by the row's sum.
#
# Formula:  e_i = exp(s_i - max s), softmax_i = e_i / sum of e, with exp of `exp_chebyshev`.
# Domain:   rows in which most scores are near the maximum.
# Error:    no bound. The polynomial is negative on most of [-14, 0], so a row's sum can come near zero or be negative,
#           and the quotient is then arbitrarily far from a probability. On a row of equal scores it is exact.
# Source:   CipherDM (arXiv 2409.05414), as in its released code, where a default argument leaves it switched off.
# Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`): softmax_cipherdm: 776 B an
#           element, 488 sends.

# FROM cipherdm.protocols.softmax_corrected:
# CipherDM's softmax with the Chebyshev polynomial that belongs to exp.
#
# Formula:  e_i = exp(s_i - max s), softmax_i = e_i / sum of e, with exp of `exp_corrected`.
# Domain:   rows of N scores with a sum of exponentials well above 0.0055 N.
# Error:    no bound for long rows. exp is off by up to 0.0055 either way, so the sum of N of them is off by up to 0.0055 N,
#           which for N above 180 can cancel the 1 that the largest score gives.
# Source:   ours, in the form of CipherDM (arXiv 2409.05414).
# Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`): softmax_corrected: 776 B an
#           element, 488 sends.

# FROM cipherdm.protocols.softmax_puma:
# Softmax as PUMA has it: subtract the row's maximum, exp by its limit form with a clip, divide by the row's sum.
#
# Formula:  e_i = exp(s_i - max s), softmax_i = e_i / sum of e, with exp = `exp_puma`.
# Domain:   all scores whose differences fixed point can hold.
# Error:    at most 0.08 on 1,000 rows of 100 scores ~ N(0, 1.5^2). No exponential is negative, so every row sums to 1 or more.
# Source:   PUMA (Dong et al., arXiv 2307.12533).
# Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`): softmax_puma: 696 B an
#           element, 499 sends.

# FROM cipherdm.protocols.softmax_2quad:
# 2Quad, a quadratic in the place of softmax's exponential, for models that are trained or distilled with it.
#
# Formula:  (s_i + 5)^2 / sum over j of (s_j + 5)^2.
# Domain:   scores above -5, as a function of its own: below, smaller scores weigh more again. It is near softmax only where
#           all scores are near each other.
# Error:    at most 0.8 on 1,000 rows of 100 scores ~ N(0, 1.5^2), as a softmax.
# Source:   MPCFormer (Li et al., ICLR 2023).
# Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`): softmax_2quad: 117 B an
#           element, 171 sends.

# FROM cipherdm.protocols.softmax_bounded:
# Softmax of scores with a public bound: no maximum, no clip.
#
# Formula:  e_i = exp(s_i), softmax_i = e_i / sum of e, with exp = `exp_bounded(bound)`, or `exp_limit(bound)` in
#           `softmax_limit`. exp is positive on its domain, and no shift is needed for values that fixed point can hold.
# Domain:   |s| <= bound, and N exp(bound) below 2^26 for rows of N scores. Subtracting any one public or secret number from a
#           row changes nothing, so a bound on half of each row's spread is enough if that number is known. A calibrated
#           `Reciprocal` needs the mean of each row's exponentials inside its domain.
# Error:    at most 2% of each probability: 1% from each exponential, of the numerator and in the sum.
#           The reciprocal, if one is given, adds its own.
# Source:   ours.
# Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`):
#           softmax_limit4: 613 B an element, 248 sends;
#           softmax_bounded4: 301 B an element, 200 sends;
#           softmax_bounded4_folded: 273 B an element, 195 sends;
#           softmax_bounded4_calibrated: 291 B an element, 92 sends;
#           softmax_bounded4_calibrated_folded: 263 B an element, 87 sends.

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from .approximation import Approximation
from .exp import exp_bounded, exp_cipherdm, exp_corrected, exp_limit, exp_puma
from .inverses import Reciprocal


@dataclass(frozen=True)
class ShiftedSoftmax:
    """Softmax over the last axis, of scores minus their maximum, with an exponential that is right for x <= 0.

    Attributes:
        name: as of an `Approximation`.
        exponential: for x <= 0.
    """

    name: str
    exponential: Approximation

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, scores):
        return normalised(self.exponential(scores - jnp.max(scores, axis=-1, keepdims=True)))


def normalised(exponentials):
    """Each divided by the sum over the last axis. SPU computes one reciprocal a row (see `compile_program`)."""
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


softmax_cipherdm = ShiftedSoftmax("softmax_cipherdm", exp_cipherdm)

softmax_corrected = ShiftedSoftmax("softmax_corrected", exp_corrected)

softmax_puma = ShiftedSoftmax("softmax_puma", exp_puma)

SHIFT = 5.0


def softmax_2quad(scores):
    """Over the last axis of `scores`, of any shape."""
    shifted = scores + jnp.float32(SHIFT)
    return normalised(shifted * shifted)


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
