"""2Quad, a quadratic in the place of softmax's exponential, for models that are trained or distilled with it.

Formula:  (s_i + 5)^2 / sum over j of (s_j + 5)^2.
Domain:   scores above -5, as a function of its own: below, smaller scores weigh more again. It is near softmax only where
          all scores are near each other.
Error:    at most 0.8 on 1,000 rows of 100 scores ~ N(0, 1.5^2), as a softmax.
Source:   MPCFormer (Li et al., ICLR 2023).
Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`): softmax_2quad: 117 B an
          element, 171 sends.
"""

import jax.numpy as jnp

from .rows import normalised

SHIFT = 5.0


def softmax_2quad(scores):
    """Over the last axis of `scores`, of any shape."""
    shifted = scores + jnp.float32(SHIFT)
    return normalised(shifted * shifted)
