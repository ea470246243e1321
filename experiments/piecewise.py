"""Piecewise polynomials over a grid of segments and degrees: bytes and messages of each on three parties.

Both are equal at every run, so no time is recorded. They do not depend on the coefficients, except on which of them are 0, so
each point of the grid is measured once, with coefficients made up here.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal

import numpy as np
import pandas as pd

from cipherdm.approximations.piecewise import PiecewisePolynomial
from cipherdm.approximations.piecewise_costs import Counts, Prices
from cipherdm.approximations.silu import silu_cipherdm
from cipherdm.engine import LocalCluster
from cipherdm.errors import CipherDMError
from cipherdm.progress import Progress, ProgressBar

from .commands import RecordOption, finish, record_path, silent
from .target import Check, Command, Records, Target

ELEMENTS = 1_000
_END, _WIDEST = 1.5, 2.0  # the outer breakpoints and the outermost values: near enough to 0 for powers to stay small
Ends = Literal["none", "zero", "zero and x"]
"""Function outside the segments: none (the range is known), 0 on the left (exp), or 0 and x (SiLU, Mish, GeLU)."""


@dataclass(frozen=True)
class Point:
    """A point of the grid."""

    segments: int  # polynomials side by side, without the ends
    degree: int  # of each
    ends: Ends
    even: bool = False  # whether there are only x and the even powers

    def function(self) -> PiecewisePolynomial:
        """Return a piecewise polynomial of this form."""
        sizes = [1 / 2**k if not self.even or k == 1 or k % 2 == 0 else 0.0 for k in range(self.degree + 1)]
        inner = tuple(tuple((0.3 + 0.1 * i) * size for size in sizes) for i in range(self.segments))
        edges = tuple(float(edge) for edge in np.linspace(-_END, _END, self.segments + 1))
        name = f"piecewise_{self.segments}x{self.degree}"
        if self.ends == "none":
            return PiecewisePolynomial(name, (-_END, _END), edges[1:-1], inner)
        if self.ends == "zero":
            return PiecewisePolynomial(name, (-inf, _END), edges[:-1], ((0.0,), *inner))
        return PiecewisePolynomial(name, (-inf, inf), edges, ((0.0,), *inner, (0.0, 1.0)))


def grid() -> tuple[Point, ...]:
    """Return every point: all ends, and for degrees 4, 6, 8 also the even form."""
    return tuple(
        Point(count, degree, ends, even)
        for ends in ("none", "zero", "zero and x")
        for count in range(1, 7)
        for degree in range(1, 9)
        for even in ((False, True) if degree in (4, 6, 8) else (False,))
    )


def run(
    cluster: LocalCluster,
    points: Sequence[Point] | None = None,
    elements: int = ELEMENTS,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every point once and return the record. Raises CipherDMError if a result is not the function's value."""
    points = grid() if points is None else points
    x = np.linspace(-_WIDEST, _WIDEST, elements, dtype=np.float32)
    rows = []
    for done, point in enumerate(points):
        function = point.function()
        progress(done, len(points), f"{function.name} ends={point.ends}")
        values, cost = cluster.session().run_once(function, x)
        _check(function, x, values)
        costs = {"elements": elements, "bytes": cost.bytes, "sends": cost.sends}
        rows.append(asdict(point) | costs | {"counts": asdict(Counts.of(function))})
    return {"benchmark": "piecewise", "rows": rows}


def table(record: dict[str, Any]) -> pd.DataFrame:
    """Return the record's rows as a table, with bytes per element."""
    frame = pd.DataFrame(record["rows"]).drop(columns="counts")
    frame.insert(frame.columns.get_loc("sends"), "bytes_per_element", frame["bytes"] / frame["elements"])
    return frame


def _check(function: PiecewisePolynomial, x: np.ndarray, values: np.ndarray) -> None:
    expected = np.asarray(function(x))
    # Beside a breakpoint the rounding of x to fixed point may choose the other segment.
    clear = np.abs(x[:, None] - np.array([*function.breakpoints, inf])).min(axis=1) > 1e-4
    error = float(np.abs(values - expected)[clear].max())
    if error > 1e-2:
        raise CipherDMError(
            f"{function.name} came back from the parties with an error of {error:.3g}: compare `PiecewisePolynomial` "
            "with its plaintext values before measuring what it costs."
        )


def measure(record: RecordOption = None) -> None:
    """Measure piecewise polynomials over a grid of segments and degrees on three parties: bytes and messages of each."""
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        found = run(cluster, progress=bar)
    finish(record_path(record, "piecewise"), found, table(found))


def _counted(records: Records) -> float:
    return float(Prices.from_record(records["piecewise"]).bytes_per_element(silu_cipherdm))


TARGET = Target(
    "piecewise",
    "Cost of piecewise polynomials",
    "bytes and messages of a piecewise polynomial follow from counting its operations",
    "ours",
    (Command("piecewise", ("bench", "piecewise")),),
    (Check("bytes an element, SiLU published, by counting", 728, 0, _counted, 0, 0),),
    order=200,
)
