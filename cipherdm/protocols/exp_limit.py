"""exp(x) as (1 + x/2^k)^(2^k), by k squarings.

Formula:  (1 + x/2^k)^(2^k); PUMA: k = 5, and 0 for x < -14.
Domain:   PUMA's: x <= 0. Without the clip |x| <= bound: the relative error is about x^2 / 2^(k+1).
Error:    at most 0.0085 (at -2) for PUMA's. `exp_limit(bound)` takes the smallest k with a relative error below 1%.
Source:   the limit that defines exp; PUMA (Dong et al., arXiv 2307.12533) with the clip. Without the clip, for scores that
          the model owner has bounded: ours.
Cost:     all parties together, measured (`cipherdm bench activations`):
          exp_puma: 460 B an element, 77 sends;
          exp_limit_bound4: 548 B an element, 85 sends.
"""

from dataclasses import dataclass
from math import ceil, inf, log2

import jax.numpy as jnp

from .approximation import Approximation


@dataclass(frozen=True)
class ExpLimit(Approximation):
    """(1 + x/2^squarings)^(2^squarings), and 0 below `lowest` if that is finite.

    Attributes:
        squarings: k above.
        lowest: where the result becomes 0; -inf for no comparison.
    """

    squarings: int
    lowest: float = -inf

    @property
    def input_scale(self) -> float:
        """What `of_scaled` wants x multiplied by."""
        return 2.0**-self.squarings

    def __call__(self, x):
        y = self.of_scaled(x * jnp.float32(self.input_scale))
        return y if self.lowest == -inf else jnp.where(x > jnp.float32(self.lowest), y, jnp.zeros_like(x))

    def of_scaled(self, z):
        """The limit form from z = input_scale * x, never clipped."""
        y = z + jnp.float32(1)
        for _ in range(self.squarings):
            y = y * y
        return y


exp_puma = ExpLimit("exp_puma", (-inf, 0.0), squarings=5, lowest=-14.0)


def exp_limit(bound: float, tolerance: float = 0.01) -> ExpLimit:
    """The limit form for |x| <= bound with the fewest squarings that keep the relative error below `tolerance`."""
    squarings = ceil(log2(bound * bound / (2 * tolerance)))
    return ExpLimit(f"exp_limit_bound{bound:g}".replace(".", "_"), (-float(bound), float(bound)), max(squarings, 1))
