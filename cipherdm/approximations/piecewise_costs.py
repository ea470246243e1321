"""Cost of a PiecewisePolynomial on shares: its operations are counted, and each is priced from a record of measurements.

Formula:  bytes per element = a price for each comparison, selection, product and sum,
          sends = a price for comparing at all, for each level of products, and for summing at all,
          all parties together. `cipherdm bench piecewise` measures the prices; nothing here holds them.
Source:   ours. The counts follow `PiecewisePolynomial`'s evaluation, operation by operation.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from ..errors import CipherDMError
from .piecewise import PiecewisePolynomial, power_of_two_below, with_factors

_TOLERANCE = 1e-6  # the counts explain a record exactly, or they are wrong


@dataclass(frozen=True)
class Counts:
    """Operations of one evaluation, per element, and how deep they are.

    Attributes:
        comparisons: number of breakpoints.
        selections: number of segments that are not 0, if there are breakpoints.
        products: products of two secrets, one for each power from 2 on.
        sums: sums of powers with public coefficients, one for each segment that is neither constant nor x itself.
        levels: number of products that wait for each other.
    """

    comparisons: int
    selections: int
    products: int
    sums: int
    levels: int

    @classmethod
    def of(cls, function: PiecewisePolynomial) -> "Counts":
        """Return the counts of a function."""
        exponents = with_factors(function.used_powers)
        chosen = sum(any(segment) for segment in function.coefficients) or 1
        return cls(
            comparisons=len(function.breakpoints),
            selections=chosen if function.breakpoints else 0,
            products=len(exponents - {1}),
            sums=len(function.curved),
            levels=len({power_of_two_below(k) for k in exponents if k > 1}),
        )

    @property
    def bytes_row(self) -> tuple[int, int, int, int]:
        """Counts that bytes are proportional to: comparisons, selections, products, sums."""
        return astuple(self)[:4]

    @property
    def sends_row(self) -> tuple[int, int, int]:
        """Counts that sends are proportional to: 1 if there is a choice, levels of products, 1 if there is a sum."""
        return int(self.comparisons > 0), self.levels, int(self.sums > 0)


@dataclass(frozen=True)
class Prices:
    """Cost of each operation, all parties together: bytes per element, and sends whatever the number of elements.

    Attributes:
        comparison, selection, product, sum: bytes per element.
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
        """Return the prices that explain every row of data/measurements/piecewise.json.

        Raises CipherDMError if none do: the evaluation, or SPU, has changed since it was measured.
        """
        rows = record["rows"]
        counts = [Counts(**row["counts"]) for row in rows]
        bytes_each = _solve([c.bytes_row for c in counts], [row["bytes"] / row["elements"] for row in rows], "bytes")
        sends = _solve([c.sends_row for c in counts], [row["sends"] for row in rows], "sends")
        return cls(*bytes_each, *sends)

    def bytes_per_element(self, function: PiecewisePolynomial) -> float:
        """Return the predicted bytes of all parties per element."""
        row = Counts.of(function).bytes_row
        return float(np.dot((self.comparison, self.selection, self.product, self.sum), row))

    def sends(self, function: PiecewisePolynomial) -> int:
        """Return the predicted messages of all parties, for any number of elements."""
        return round(float(np.dot((self.choice, self.level, self.closing), Counts.of(function).sends_row)))


def _solve(rows: list[tuple[int, ...]], measured: list[float], unit: str) -> list[float]:
    matrix, target = np.array(rows, float), np.array(measured)
    found, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=None)
    if rank < matrix.shape[1] or np.abs(matrix @ found - target).max() > _TOLERANCE * max(1, np.abs(target).max()):
        raise CipherDMError(
            f"the {unit} in the record of piecewise polynomials do not follow from their operations: measure again with "
            "`cipherdm bench piecewise`, and compare `Counts` with `PiecewisePolynomial` if that does not help."
        )
    return [float(np.round(value, 9)) for value in found]
