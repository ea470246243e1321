"""Functions made of polynomials on segments, the form of most published activations, in few rounds and few truncations."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..errors import CipherDMError
from .approximation import Approximation


@dataclass(frozen=True)
class PiecewisePolynomial(Approximation):
    """A polynomial on each segment between breakpoints, the first and last segment without end.

    On secret shares, one call compares x with all breakpoints, one sum of powers gives all segments, and one call selects:
    as many rounds for five segments as for two. A segment that is 0 or x itself needs no powers. Values that a segment
    takes outside of it may overflow: they are multiplied by a 0 bit, which in the ring is exact.

    Attributes:
        breakpoints: ascending points. Each belongs to the segment on its right.
        coefficients: coefficients of 1, x, x^2, ... for each segment. There is one more segment than breakpoints.
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
        """Select among values at x [N] the one of the segment that x is in, by one comparison and one selection."""
        below = x[None, :] < jnp.float32(np.array(self.breakpoints)[:, None])
        # In a segment is what is below its right end but not below its left one; on shared bits xor is free.
        inside = jnp.concatenate([below[:1], jnp.logical_xor(below[1:], below[:-1]), jnp.logical_not(below[-1:])])
        bits = jnp.concatenate([inside[i : i + 1] for i in self._selected])
        values = jnp.concatenate(values).reshape(len(values), -1)
        chosen = jnp.where(bits, values, jnp.zeros_like(values))
        # Added one by one: jnp.sum starts from a public zero, which costs a conversion.
        total = chosen[0]
        for row in range(1, len(values)):
            total = total + chosen[row]
        return total

    def _select(self, x, *values):
        """Select as `_select_in_one` does, a segment at a time, from the right."""
        of_segment = dict(zip(self._selected, values, strict=True))
        total = of_segment.get(len(self.breakpoints), jnp.zeros_like(x))
        for i, end in reversed(list(enumerate(self.breakpoints))):
            total = jnp.where(x < jnp.float32(end), of_segment.get(i, jnp.zeros_like(x)), total)
        return total

    def _segments(self, x) -> list:
        """Return the polynomial of each segment at all of x [N]."""
        # Zeros that are as secret as x, so that constants can be selected like everything else.
        values = [x if is_identity(c) else (x - x) + jnp.float32(c[0]) for c in self.coefficients]
        used, curved = self.used_powers, self.curved
        if curved:
            table = [[_coefficient(self.coefficients[i], k) for k in used] for i in curved]
            by_exponent = powers(x, used)
            sums = weighted_sums([by_exponent[k] for k in used], table)
            for row, i in enumerate(curved):
                values[i] = sums[row] + jnp.float32(self.coefficients[i][0])
        return values

    @property
    def curved(self) -> list[int]:
        """Segments that are neither constant nor x itself."""
        return [i for i, c in enumerate(self.coefficients) if any(c[1:]) and not is_identity(c)]

    @property
    def used_powers(self) -> list[int]:
        """Powers from 1 on that `curved` segments have a coefficient for."""
        curved = [self.coefficients[i] for i in self.curved]
        return [k for k in range(1, self.degree + 1) if any(_coefficient(segment, k) for segment in curved)]

    @property
    def _selected(self) -> list[int]:
        """Segments that are not zero, or the first: nothing selected is 0."""
        return [i for i, segment in enumerate(self.coefficients) if any(segment)] or [0]

    @property
    def degree(self) -> int:
        """Highest power in any segment."""
        return max(len(segment) for segment in self.coefficients) - 1


def activation(name: str, breakpoints: tuple[float, ...], *segments: tuple[float, ...]) -> PiecewisePolynomial:
    """Return a function that is 0 below the first breakpoint, polynomials between them, and x from the last one on."""
    return PiecewisePolynomial(name, (-inf, inf), breakpoints, ((0.0,), *segments, (0.0, 1.0)))


def clamp(bound: float) -> PiecewisePolynomial:
    """Return the clamp to [-bound, bound], which keeps an approximation inside its domain.

    Formula:  -bound for x < -bound, x on [-bound, bound), bound above.
    Domain:   all x; in fixed point as long as the comparisons are right.
    Error:    none.
    Source:   the definition; both comparisons in one call, and both selections.
    """
    end = float(bound)
    name = f"clamp{bound:g}".replace(".", "_")
    return PiecewisePolynomial(name, (-inf, inf), (-end, end), ((-end,), (0.0, 1.0), (end,)))


def _coefficient(segment: tuple[float, ...], power: int) -> float:
    return segment[power] if power < len(segment) else 0.0


def is_identity(segment: tuple[float, ...]) -> bool:
    """Return True if a segment is x itself."""
    return segment[:2] == (0, 1) and not any(segment[2:])


def weighted_sum(arrays, coefficients, constant=0.0):
    """Return constant + sum of coefficients[i] * arrays[i]; arrays of one shape, the rest numbers."""
    row = np.asarray(coefficients, np.float32)[None, :]
    return weighted_sums(arrays, row)[0].reshape(arrays[0].shape) + jnp.float32(constant)


def weighted_sums(arrays, coefficients):
    """Return [M, N] sums over i of coefficients[:, i] times arrays[i], the arrays of one shape and N elements each."""
    # One dot product, because in fixed point that is truncated once, where a sum of products is truncated once for each
    # term. The coefficients stand on the left: few rows times many columns is the fast orientation on SPU.
    table = np.asarray(coefficients, np.float32)
    flat = [array.reshape(-1) for array in arrays]
    return on_shares_or_cpu(lambda *terms: _sums_as_product(table, terms), lambda *terms: _sums(table, terms), *flat)


def _sums_as_product(table, terms):
    # Concatenated flat and reshaped, not stacked: XLA splits the product of a constant with a concatenation along the
    # contracted axis into one product for each part, and every one of them would be truncated.
    return lax.dot_general(table, jnp.concatenate(terms).reshape(len(terms), -1), (((1,), (0,)), ((), ())))


def _sums(table, terms):
    return jnp.stack([sum(c * term for c, term in zip(row, terms, strict=True)) for row in table])


def powers(x, exponents: Iterable[int]) -> dict:
    """Return x to each of the positive exponents, by exponent, for a flat x [N].

    x^k is x^h x^(k-h), h the largest power of two below k. All k of one h are multiplied in one call, so degree 8 waits
    for three multiplications however many powers are asked for.
    """
    needed = with_factors(exponents)
    known = {1: x}
    for h in sorted({power_of_two_below(k) for k in needed if k > 1}):
        of_h = [k for k in sorted(needed) if k > 1 and power_of_two_below(k) == h]
        products = products_of([(known[h], known[k - h]) for k in of_h])
        known |= dict(zip(of_h, products, strict=True))
    return known


def with_factors(exponents: Iterable[int]) -> set[int]:
    """Return the exponents, 1, and all that `powers` computes on the way to them."""
    needed = set(exponents) | {1}
    for k in range(max(needed), 1, -1):
        if k in needed:
            needed |= {power_of_two_below(k), k - power_of_two_below(k)}
    return needed


def power_of_two_below(k: int) -> int:
    """Return the largest power of two below k > 1."""
    return 1 << ((k - 1).bit_length() - 1)


def products_of(pairs) -> list:
    """Return the elementwise product of each pair of flat arrays [N], in one call: as many rounds as one product."""
    if len(pairs) == 1:
        return [pairs[0][0] * pairs[0][1]]
    flat = [side for pair in pairs for side in pair]
    return list(on_shares_or_cpu(_products_in_one, _products, *flat))


def _products_in_one(*sides):
    left, right = (jnp.concatenate(sides[start::2]).reshape(len(sides) // 2, -1) for start in (0, 1))
    return tuple(left * right)


def _products(*sides):
    return tuple(left * right for left, right in zip(sides[::2], sides[1::2], strict=True))


def on_shares_or_cpu(on_shares, on_cpu, *arrays):
    """Return `on_shares(*arrays)`, or in plaintext `on_cpu(*arrays)`, which computes the same.

    XLA's CPU backend computes a concatenation of products anew for each element that it puts out; the products apart
    take less time there, and would be a call each on shares.
    """
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=on_shares)
