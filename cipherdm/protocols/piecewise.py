"""Functions made of polynomials on segments, the form of most published activations."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ..errors import CipherDMError
from .approximation import Approximation
from .sums import on_shares_or_cpu, powers, weighted_sums


@dataclass(frozen=True)
class PiecewisePolynomial(Approximation):
    """A polynomial on each segment between breakpoints, the first and last segment without end.

    On secret shares, one call compares x with all breakpoints, one sum of powers gives all segments, and one call selects:
    as many rounds for five segments as for two. A segment that is 0 or x itself needs no powers. Values that a segment
    takes outside of it may overflow: they are multiplied by a 0 bit, which in the ring is exact.

    Attributes:
        breakpoints: ascending. Each belongs to the segment on its right.
        coefficients: for each segment those of 1, x, x^2, ... There is one more segment than breakpoints.
    """

    breakpoints: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...]

    def __post_init__(self):
        if len(self.coefficients) != len(self.breakpoints) + 1 or not all(self.coefficients):
            raise CipherDMError(
                f"{self.name}: {len(self.breakpoints)} breakpoints need {len(self.breakpoints) + 1} segments with "
                f"coefficients, got {[len(segment) for segment in self.coefficients]}."
            )
        if list(self.breakpoints) != sorted(set(self.breakpoints)) or not np.isfinite(self.breakpoints).all():
            raise CipherDMError(f"{self.name}: breakpoints must be finite and ascending, got {self.breakpoints}.")

    def __call__(self, x):
        flat = x.reshape(-1)
        segments = self._segments(flat)
        if not self.breakpoints:
            return segments[0].reshape(x.shape)
        selected = [segments[i] for i in self._selected]
        chosen = on_shares_or_cpu(self._select_in_one, self._select, flat, *selected)
        return chosen.reshape(x.shape)

    def _select_in_one(self, x, *values):
        """The value, of those at x [N], of the segment that x is in: one comparison and one selection for all of them."""
        below = x[None, :] < jnp.float32(np.array(self.breakpoints)[:, None])
        # In a segment is what is below its right end but not below its left one; on shared bits xor is free.
        inside = jnp.concatenate([below[:1], jnp.logical_xor(below[1:], below[:-1]), jnp.logical_not(below[-1:])])
        bits = jnp.concatenate([inside[i : i + 1] for i in self._selected])
        values = jnp.concatenate(values).reshape(len(values), -1)
        chosen = jnp.where(bits, values, jnp.zeros_like(values))
        total = chosen[0]
        for row in range(
            1, len(values)
        ):  # added one by one: jnp.sum starts from a public zero, which costs a conversion
            total = total + chosen[row]
        return total

    def _select(self, x, *values):
        """The same, a segment at a time, from the right."""
        of_segment = dict(zip(self._selected, values, strict=True))
        total = of_segment.get(len(self.breakpoints), jnp.zeros_like(x))
        for i, end in reversed(list(enumerate(self.breakpoints))):
            total = jnp.where(x < jnp.float32(end), of_segment.get(i, jnp.zeros_like(x)), total)
        return total

    def _segments(self, x) -> list:
        """The polynomial of each segment at all of x [N]."""
        # Zeros that are as secret as x, so that constants can be selected like everything else.
        values = [x if _is_identity(c) else (x - x) + jnp.float32(c[0]) for c in self.coefficients]
        curved = [i for i, c in enumerate(self.coefficients) if any(c[1:]) and not _is_identity(c)]
        if curved:
            used = [k for k in range(1, self.degree + 1) if any(_coefficient(self.coefficients[i], k) for i in curved)]
            table = [[_coefficient(self.coefficients[i], k) for k in used] for i in curved]
            by_exponent = powers(x, used)
            sums = weighted_sums([by_exponent[k] for k in used], table)
            for row, i in enumerate(curved):
                values[i] = sums[row] + jnp.float32(self.coefficients[i][0])
        return values

    @property
    def _selected(self) -> list[int]:
        """The segments that are not zero, or the first: nothing selected is 0."""
        return [i for i, segment in enumerate(self.coefficients) if any(segment)] or [0]

    @property
    def degree(self) -> int:
        """The highest power in any segment."""
        return max(len(segment) for segment in self.coefficients) - 1


def _coefficient(segment: tuple[float, ...], power: int) -> float:
    return segment[power] if power < len(segment) else 0.0


def _is_identity(segment: tuple[float, ...]) -> bool:
    return segment[:2] == (0, 1) and not any(segment[2:])
