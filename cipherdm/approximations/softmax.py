"""Softmax over the last axis, and what stands for it on shares.

CipherDM's and PUMA's take scores below their row's maximum, which costs comparisons. `softmax_bounded` and `softmax_limit` are
for scores that the model's owner has bounded, and `softmax_2quad` is for models that are trained with it.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from .approximation import Approximation
from .exp import exp_bounded, exp_cipherdm, exp_corrected, exp_limit, exp_nimbus, exp_puma
from .inverses import Reciprocal


@dataclass(frozen=True)
class ShiftedSoftmax:
    """Softmax of scores minus their row's maximum: e_i = exp(s_i - max s), softmax_i = e_i / sum of e.

    Attributes:
        name: name as in `Approximation`.
        exponential: approximation of exp for x <= 0.
    """

    name: str
    exponential: Approximation

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, scores):
        return _normalised(self.exponential(scores - jnp.max(scores, axis=-1, keepdims=True)))


def _normalised(exponentials):
    """Divide each row by its sum. SPU computes one reciprocal per row (see `compile_program`)."""
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


softmax_cipherdm = ShiftedSoftmax("softmax_cipherdm", exp_cipherdm)
"""Softmax as CipherDM published it.

Formula:  that of `ShiftedSoftmax` with `exp_cipherdm`.
Domain:   rows in which most scores are near the maximum.
Error:    no bound. The polynomial is negative on most of [-14, 0], so a row's sum can come near zero or be negative,
          and the quotient is then arbitrarily far from a probability. On a row of equal scores it is exact.
Source:   CipherDM (arXiv 2409.05414), as in its released code, where a default argument leaves it switched off.
"""

softmax_corrected = ShiftedSoftmax("softmax_corrected", exp_corrected)
"""CipherDM's softmax with the Chebyshev polynomial that belongs to exp.

Formula:  that of `ShiftedSoftmax` with `exp_corrected`.
Domain:   rows of N scores with a sum of exponentials well above 0.0055 N.
Error:    no bound for long rows. exp is off by up to 0.0055 either way, so the sum of N of them is off by up to 0.0055 N,
          which for N above 180 can cancel the 1 that the largest score gives.
Source:   ours, in the form of CipherDM (arXiv 2409.05414).
"""

softmax_puma = ShiftedSoftmax("softmax_puma", exp_puma)
"""Softmax as PUMA has it, with a limit form that is clipped.

Formula:  that of `ShiftedSoftmax` with `exp_puma`.
Domain:   all scores whose differences fixed point can hold.
Error:    at most 0.08 on 1,000 rows of 100 scores ~ N(0, 1.5^2). No exponential is negative, so every row sums to 1 or more.
Source:   PUMA (Dong et al., arXiv 2307.12533).
"""


softmax_nimbus = ShiftedSoftmax("softmax_nimbus", exp_nimbus)
"""Softmax as Nimbus has it, with a polynomial of degree 3 for the exponential.

Formula:  that of `ShiftedSoftmax` with `exp_nimbus`.
Domain:   all scores whose differences fixed point can hold.
Error:    at most 0.2 on 1,000 rows of 100 scores ~ N(0, 1.5^2). Scores more than 3.9 below the maximum have no weight.
Source:   Nimbus (Li et al., NeurIPS 2024, arXiv 2411.15707).
"""


@dataclass(frozen=True)
class BoundedSoftmax:
    """Softmax with an exponential that is right on a bounded range: no maximum, no clip.

    Formula:  e_i = exp(s_i), softmax_i = e_i / sum of e. exp is positive on its domain, and no shift is needed for values
              that fixed point can hold.
    Domain:   |s| <= bound, and N exp(bound) below 2^26 for rows of N scores. Subtracting any one public or secret number
              from a row changes nothing, so a bound on half of each row's spread is enough if that number is known. A
              calibrated `Reciprocal` needs the mean of each row's exponentials inside its domain.
    Error:    at most 2% of each probability: 1% from each exponential, of the numerator and in the sum. The reciprocal, if
              one is given, adds its own.
    Source:   ours.

    Attributes:
        name: name as in `Approximation`.
        exponential: approximation of exp; its domain is the scores'.
        reciprocal: approximation of 1/v for the mean v of a row's exponentials; SPU divides by the sum if there is none.
    """

    name: str
    exponential: Approximation
    reciprocal: Reciprocal | None = None

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def domain(self) -> tuple[float, float]:
        """Interval that all scores must lie in."""
        return self.exponential.domain

    @property
    def input_scale(self) -> float:
        """Factor by which the scores for `of_scaled` are to be multiplied; the owner folds it into the query projection."""
        return self.exponential.input_scale

    def __call__(self, scores):
        return self._normalised(self.exponential(scores))

    def masked(self, scores, mask):
        """Return the weights of scores with a mask as `TwoQuad` takes it. Scores of padding must lie in the domain too."""
        return self._normalised(self.exponential(scores) * _kept(mask))

    def of_scaled(self, scaled):
        """Return softmax(s) from scaled = input_scale * s."""
        return self._normalised(self.exponential.of_scaled(scaled))

    def _normalised(self, exponentials):
        if self.reciprocal is None:
            return _normalised(exponentials)
        # The mean, because the reciprocal of a long row's sum would keep few of its bits in fixed point, and its slope none.
        count = exponentials.shape[-1]
        rows = exponentials.reshape(-1, count)
        mean = rows @ np.full((count, 1), 1 / count, np.float32)
        weights = rows * (self.reciprocal(mean) * jnp.float32(1 / count))
        return weights.reshape(exponentials.shape)


def softmax_bounded(bound: float, reciprocal: Reciprocal | None = None) -> BoundedSoftmax:
    """Return the softmax for |s| <= bound by `exp_bounded`, each exponential with a relative error below 1%."""
    name = f"softmax_bounded{bound:g}".replace(".", "_") + ("_calibrated" if reciprocal else "")
    return BoundedSoftmax(name, exp_bounded(bound), reciprocal)


def softmax_limit(bound: float) -> BoundedSoftmax:
    """Return the softmax for |s| <= bound by `exp_limit`, each exponential with a relative error below 1%."""
    return BoundedSoftmax(f"softmax_limit{bound:g}".replace(".", "_"), exp_limit(bound))


_SHIFT = 5.0  # MPCFormer's, which makes nearly all scores positive


PADDING = -32.0
"""Added to the scores of what is no token. Their exponentials are below SPU's last bit, 2^-18, unless all scores are as low."""


@dataclass(frozen=True)
class TwoQuad:
    """(s_i + 5)^2 over their sum. `masked` takes a mask of 0 for tokens and PADDING for what is none, whose weight is 0."""

    __name__ = "softmax_2quad"

    def __call__(self, scores):
        shifted = scores + jnp.float32(_SHIFT)
        return _normalised(shifted * shifted)

    def masked(self, scores, mask):
        """Return the weights of scores with a mask that broadcasts to them."""
        shifted = (scores + jnp.float32(_SHIFT)) * _kept(mask)
        return _normalised(shifted * shifted)


def _kept(mask):
    """1 where a mask is 0, and 0 where it is PADDING."""
    return mask * jnp.float32(-1 / PADDING) + jnp.float32(1)


softmax_2quad = TwoQuad()
"""2Quad of scores of any shape: a quadratic instead of the exponential, for models that are trained with it.

Formula:  (s_i + 5)^2 / sum over j of (s_j + 5)^2.
Domain:   scores above -5, as a function of its own: below, smaller scores weigh more again. It is near softmax only
          where all scores are near each other.
Error:    at most 0.8 on 1,000 rows of 100 scores ~ N(0, 1.5^2), as a softmax.
Source:   MPCFormer (Li et al., ICLR 2023).
"""
