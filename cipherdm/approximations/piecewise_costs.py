"""What a PiecewisePolynomial costs on shares: its operations counted, and each priced from a record of measurements.

Formula:  bytes an element = 108 comparisons + 64 selections + 52 products + 28 sums,
          sends = 32 if anything is compared + 8 for each level of products + 5 if anything is summed,
          all parties together. The numbers are those that `cipherdm bench piecewise` measures; nothing here holds them.
Source:   ours. The counts follow `PiecewisePolynomial`'s evaluation, operation by operation.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from ..errors import CipherDMError
from .piecewise import PiecewisePolynomial, _coefficient, _half, _is_identity

_TOLERANCE = 1e-6  # the counts explain a record exactly, or they are wrong


@dataclass(frozen=True)
class Counts:
    """The operations of one evaluation, for each element, and how deep they are.

    Attributes:
        comparisons: one for each breakpoint.
        selections: one for each segment that is not 0, if there are breakpoints.
        products: of two secrets, one for each power from 2 on.
        sums: of powers with public coefficients, one for each segment that is neither constant nor x itself.
        levels: how many products wait for each other.
    """

    comparisons: int
    selections: int
    products: int
    sums: int
    levels: int

    @classmethod
    def of(cls, function: PiecewisePolynomial) -> "Counts":
        """The counts of a function."""
        segments = function.coefficients
        curved = [s for s in segments if any(s[1:]) and not _is_identity(s)]
        used = {k for k in range(1, function.degree + 1) if any(_coefficient(s, k) for s in curved)}
        exponents = _with_factors(used)
        chosen = sum(any(s) for s in segments) or 1
        return cls(
            comparisons=len(function.breakpoints),
            selections=chosen if function.breakpoints else 0,
            products=len(exponents - {1}),
            sums=len(curved),
            levels=len({_half(k) for k in exponents if k > 1}),
        )

    @property
    def bytes_row(self) -> tuple[int, int, int, int]:
        """What bytes are proportional to: comparisons, selections, products, sums."""
        return astuple(self)[:4]

    @property
    def sends_row(self) -> tuple[int, int, int]:
        """What sends are proportional to: whether there is a choice, levels of products, whether there is a sum."""
        return int(self.comparisons > 0), self.levels, int(self.sums > 0)


@dataclass(frozen=True)
class Prices:
    """What each operation costs, all parties together: bytes an element, and sends whatever the number of elements.

    Attributes:
        comparison, selection, product, sum: bytes an element.
        choice, level, closing: sends of all comparisons and selections together, of a level of products, and of all sums.
    """

    comparison: float
    selection: float
    product: float
    sum: float
    choice: float
    level: float
    closing: float

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Prices":
        """The prices that explain every row of data/measurements/piecewise.json.

        Raises CipherDMError if none do: the evaluation, or SPU, has changed since it was measured.
        """
        rows = record["rows"]
        counts = [Counts(**row["counts"]) for row in rows]
        bytes_each = _solve([c.bytes_row for c in counts], [row["bytes"] / row["elements"] for row in rows], "bytes")
        sends = _solve([c.sends_row for c in counts], [row["sends"] for row in rows], "sends")
        return cls(*bytes_each, *sends)

    def bytes_per_element(self, function: PiecewisePolynomial) -> float:
        """Predicted bytes of all parties for each element."""
        row = Counts.of(function).bytes_row
        return float(np.dot((self.comparison, self.selection, self.product, self.sum), row))

    def sends(self, function: PiecewisePolynomial) -> int:
        """Predicted messages of all parties, for any number of elements."""
        return round(float(np.dot((self.choice, self.level, self.closing), Counts.of(function).sends_row)))


def _with_factors(exponents: set[int]) -> set[int]:
    """The exponents and all that `powers` computes on the way to them."""
    needed = set(exponents)
    for k in range(max(needed, default=1), 1, -1):
        if k in needed:
            needed |= {_half(k), k - _half(k)}
    return needed


def _solve(rows: list[tuple[int, ...]], measured: list[float], unit: str) -> list[float]:
    matrix, target = np.array(rows, float), np.array(measured)
    found, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=None)
    if rank < matrix.shape[1] or np.abs(matrix @ found - target).max() > _TOLERANCE * max(1, np.abs(target).max()):
        raise CipherDMError(
            f"the {unit} in the record of piecewise polynomials do not follow from their operations: measure again with "
            "`cipherdm bench piecewise`, and compare `Counts` with `PiecewisePolynomial` if that does not help."
        )
    return [float(np.round(value, 9)) for value in found]
