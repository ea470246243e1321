"""What softmaxes share: the division by a row's sum, and the subtraction of its maximum."""

from dataclasses import dataclass

import jax.numpy as jnp

from .approximation import Approximation


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
