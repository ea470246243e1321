"""The last part of a denoising step: the sample of the next one, a combination of arrays with public factors."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..protocols.fixed import Fixed

COEFFICIENT_BITS = 14  # of the schedule's coefficients


@dataclass(frozen=True)
class SchedulerStep:
    """(coefficients, prediction, step, sample, eps[, noise][, last_sample, last_eps]) to the next sample.

    `Schedule` has the formula. One dot product, so that on shares it is truncated once and not once a term. A multistep
    schedule also returns sample and eps, for the next step to remember.

    With several branches, eps and last_eps hold the model's output for each prompt, one after the other, and coefficients
    a column for each of them (`guided_coefficients`).
    """

    clip: float | None
    value_bits: int | None = None
    ring: bool = False
    multistep: bool = False
    branches: int = 1
    __name__ = "scheduler"

    def __call__(self, coefficients, prediction, step, sample, eps, *rest):
        row = select_row(coefficients, step)
        noise = [select_row(rest[0], step)] if len(rest) % 2 else []
        memory = [rest[-2], *self._of_branches(rest[-1])] if self.multistep else []
        arrays = [sample, *self._of_branches(eps), *noise, *memory]
        # The factors of what is there: of the columns [sample, eps, noise, last_sample, last_eps].
        chosen = [index for index in range(len(row)) if index != self.branches + 1 or noise][: len(arrays)]
        factors = [row[index] for index in chosen]
        if self.value_bits is not None:
            result = self._on_fixed(factors, select_row(prediction, step), arrays)
        else:
            if self.clip is not None:
                estimate = _combine(select_row(prediction, step), *arrays[:2])
                arrays[1] = jnp.clip(estimate, -jnp.float32(self.clip), jnp.float32(self.clip))
            result = _combine(jnp.stack(factors), *arrays)
        return (result, sample, eps) if self.multistep else result

    def _of_branches(self, outputs) -> list:
        """The outputs [branches * B, ...] for each branch; all of them if there is one."""
        return [outputs] if self.branches == 1 else jnp.split(outputs, self.branches)

    def _on_fixed(self, factors, prediction, arrays):
        bits, ring = self.value_bits, self.ring
        factors = [Fixed.load(factor, COEFFICIENT_BITS, ring) for factor in factors]
        prediction = Fixed.load(prediction, COEFFICIENT_BITS, ring)
        sample, estimate, *others = (Fixed.load(array, bits, ring) for array in arrays)
        if self.clip is not None:
            estimate = (prediction[0] * sample + prediction[1] * estimate).truncated(bits)
            bound = np.array(self.clip * 2**bits, np.int32) if ring else np.float32(self.clip)
            estimate = estimate.with_array(jnp.clip(estimate.array, -bound, bound))
        result = factors[0] * sample + factors[1] * estimate
        for factor, array in zip(factors[2:], others, strict=True):
            result = result + factor * array
        return result.truncated(bits).store()


def select_row(table, step):
    """Row `step`, a public scalar, of a table [steps, ...]."""
    return lax.dynamic_index_in_dim(table, step, axis=0, keepdims=False)


def _combine(factors, *arrays):
    stacked = jnp.stack([array.reshape(-1) for array in arrays])
    return jnp.matmul(factors[None, :], stacked).reshape(arrays[0].shape)
