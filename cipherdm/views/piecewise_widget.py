"""Sliders around a reader's own piecewise polynomial, and a button that runs it on three parties."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..approximations.piecewise_costs import Prices
from ..engine import LocalCluster
from ..records import MEASUREMENTS, read_record
from .pareto import pareto_points
from .piecewise import DEGREES, REACHES, SEGMENTS, TARGETS, Choice, FitPicture, Outcome, outcome
from .style import GREY, PALETTE, Shown
from .widgets import Control, Explorer, slider, switch

_HEAD = ("largest error", "bytes an element", "messages")


@dataclass(frozen=True)
class Row:
    """Line below the figure: a function's name, largest error, bytes per element and messages."""

    name: str
    error: float
    bytes_per_element: float
    sends: int


Run = Callable[[Outcome, np.ndarray], Row]
"""Evaluates an outcome's function at x [N] on three parties."""


def measured_on(cluster: LocalCluster, found: Outcome, x: np.ndarray) -> Row:
    """Evaluate an outcome's function at x [N] on a cluster's parties."""
    values, cost = cluster.session().run_once(found.function, x)
    error = float(np.abs(values - found.choice.target.exact(x)).max())
    return Row("measured on three parties", error, cost.bytes / len(x), cost.sends)


def run_on_parties(found: Outcome, x: np.ndarray) -> Row:
    """Evaluate an outcome's function at x [N] on three parties on this machine, started for this alone."""
    with LocalCluster() as cluster:
        return measured_on(cluster, found, x)


class PiecewiseFitter(Explorer):
    """Controls for function, range, segments and degree; curve, error and costs that follow; a button to measure.

    `rivals` are functions to compare with, for each function in `TARGETS`; `measure` is the button's action, the only one
    that runs on parties.
    """

    def __init__(self, prices: Prices, rivals: Mapping[str, Sequence[Row]], measure: Run = run_on_parties):
        self._prices, self._rivals, self._measure = prices, rivals, measure
        self.measured: Row | None = None
        self._fit = FitPicture(outcome(Choice(), prices))
        reaches = np.arange(REACHES[0], REACHES[1] + 0.5, 0.5).tolist()
        controls = {
            "function": Control("function", list(TARGETS), "silu", [each.title for each in TARGETS.values()], "choice"),
            "reach": Control("range to", reaches, 6.0, [f"{reach:g}" for reach in reaches]),
            "segments": slider("segments", 2, *SEGMENTS),
            "degree": slider("degree", 4, *DEGREES),
            "ends": switch("segments for what lies outside the range", True),
        }
        super().__init__(controls, self._predict, action=("run on three parties", self._evaluate))

    @property
    def choice(self) -> Choice:
        """Position of the controls."""
        return Choice(**self.values)

    @property
    def outcome(self) -> Outcome:
        """The fitted function, its error and its predicted cost."""
        return outcome(self.choice, self._prices)

    def run(self) -> pd.DataFrame:
        """Measure the function on three parties, as the button does; returns the result below the prediction.

        The values are spread evenly over the part of the figure where the function is meant to be right.
        """
        super().run()
        rows = self._mine(self.outcome)
        return pd.DataFrame([astuple(row)[1:] for row in rows], [row.name for row in rows], _HEAD)

    def _predict(self, **_: Any) -> Shown:
        self.measured = None
        return self._drawn(self.outcome)

    def _evaluate(self, **_: Any) -> Shown:
        found = self.outcome
        self.measured = self._measure(found, np.linspace(*found.choice.covered, 10_000, dtype=np.float32))
        return self._drawn(found)

    def _drawn(self, found: Outcome) -> Shown:
        mine, text = self._mine(found), self._fit.show(found).get_label()
        table = rows_html([*mine, *self._rivals.get(found.choice.function, ())], len(mine))
        return Shown(self._fit.png(quick=True), text, found.summary, table)

    def _mine(self, found: Outcome) -> list[Row]:
        predicted = Row("yours, predicted", found.max_error, found.bytes_per_element, found.sends)
        return [predicted, self.measured] if self.measured else [predicted]


def piecewise_fitter(measurements: Path = MEASUREMENTS, measure: Run = run_on_parties) -> PiecewiseFitter:
    """Make the fitter from the checkout's records: prices from piecewise.json, rivals from activations.json.

    Raises CipherDMError if a record is missing.
    """
    names = ("piecewise", "activations")
    prices, activations = (read_record(measurements / f"{n}.json", f"cipherdm bench {n}") for n in names)
    rivals = {kind: rivals_of(activations, kind) for kind in TARGETS}
    return PiecewiseFitter(Prices.from_record(prices), rivals, measure)


def rivals_of(record: Mapping[str, Any], kind: str) -> tuple[Row, ...]:
    """Find the direct and published functions of a kind and our last one, the most exact, in activations.json."""
    costs = [pareto_points(record, kind, cost) for cost in ("bytes", "sends")]
    rows = []
    for by_bytes, by_sends in zip(*costs, strict=True):
        if by_bytes.family in ("direct", "published"):
            rows.append(Row(by_bytes.label, by_bytes.error, by_bytes.cost, int(by_sends.cost)))
        elif by_bytes.family == "ours, scales folded":
            name = f"ours: {by_bytes.label}, scales folded, |x| ≤ {by_bytes.bound:g}"
            name += " (error as a share of the value)" if by_bytes.relative else ""
            ours = Row(name, by_bytes.error, by_bytes.cost, int(by_sends.cost))
    return (*rows, ours)


def rows_html(rows: Sequence[Row], mine: int) -> str:
    """Write an HTML table with bars for each row's costs, the first `mine` rows in the reader's own colour."""
    most_bytes, most_sends = max(r.bytes_per_element for r in rows) or 1, max(r.sends for r in rows) or 1
    lines = []
    for index, row in enumerate(rows):
        colour, weight = (PALETTE[0], "bold") if index < mine else (GREY, "normal")
        cells = [escape(row.name), f"{row.error:.2g}"]
        cells.append(_bar(row.bytes_per_element / most_bytes, f"{row.bytes_per_element:,.0f}", colour))
        cells.append(_bar(row.sends / most_sends, f"{row.sends:,}", colour))
        lines.append(f'<tr style="font-weight:{weight}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th style="text-align:left">{text}</th>' for text in ("", *_HEAD))
    return f'<table style="line-height:1.5;border-spacing:12px 0;white-space:nowrap"><tr>{head}</tr>{"".join(lines)}</table>'


def _bar(share: float, text: str, colour: str) -> str:
    width = max(round(170 * share), 1)  # pixels
    return f'<div style="display:inline-block;height:10px;width:{width}px;background:{colour};margin-right:6px"></div>{text}'
