"""GroupNorm and LayerNorm with an inverse square root by a line, or Newton's iteration from it, in place of SPU's.

Formula:  y = (x - mean) r(variance + eps) weight + bias, r being an `InverseSqrt`: A - B v, and Newton steps after it.
Domain:   variance + eps within the domain of r, which an owner takes from calibration. Outside it the result is scaled
          wrongly: r is too small on both sides, and negative beyond A/B.
Error:    that of r: a factor on a whole row. High/low = 4: 0.086 by the line alone, 0.0114 after one step.
Source:   Ba et al. 2016 (arXiv 1607.06450), Wu and He 2018 (arXiv 1803.08494) for the functions; the calibrated line is ours.
Cost:     all parties together, 100,000 elements, measured (`cipherdm bench activations`), without weight and bias:
          group_norm_line: 85 B an element, 31 sends;
          layer_norm_line: 106 B an element, 31 sends.
          FAST's group_norm (`fast`) has the line by class and step, and the gain in it; it truncates once.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import lax

from .direct import with_affine
from .inverse_sqrt import InverseSqrt


@dataclass(frozen=True)
class GroupNorm:
    """`Protocols.group_norm` with an approximate inverse root. For few groups: their squares come from one Gram matrix."""

    name: str
    inverse_sqrt: InverseSqrt

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, params, x, *, groups, eps):
        rows = x.reshape(x.shape[0] * groups, -1)
        count, width = rows.shape
        centred = rows - rows @ np.full((width, 1), 1 / width, np.float32)
        # The diagonal of one matrix product, truncated once a row, where squares are truncated one by one.
        gram = lax.dot_general(centred, centred * jnp.float32(1 / width), (((1,), (1,)), ((), ())))
        variance = gram.reshape(-1)[:: count + 1]
        y = centred * self.inverse_sqrt(variance + jnp.float32(eps))[:, None]
        return with_affine(params, y.reshape(x.shape))


@dataclass(frozen=True)
class LayerNorm:
    """`Protocols.layer_norm` with an approximate inverse root. For many short columns."""

    name: str
    inverse_sqrt: InverseSqrt

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, params, x, *, eps):
        batch, channels = x.shape[:2]
        columns = jnp.moveaxis(x.reshape(batch, channels, -1), 1, 0).reshape(channels, -1)
        mean_of = np.full((1, channels), 1 / channels, np.float32)
        centred = columns - mean_of @ columns
        variance = mean_of @ (centred * centred)
        y = centred * self.inverse_sqrt(variance + jnp.float32(eps))
        y = jnp.moveaxis(y.reshape(channels, batch, -1), 0, 1).reshape(x.shape)
        return with_affine(params, y)
