"""Sliders around a reader's own piecewise polynomial, and a button that runs it on three parties."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..approximations.piecewise_costs import Prices
from ..engine import LocalCluster
from ..errors import CipherDMError
from ..records import MEASUREMENTS, read_record
from .pareto import pareto_points
from .piecewise import DEGREES, REACHES, SEGMENTS, TARGETS, Choice, FitPicture, Outcome, outcome
from .style import GREY, PALETTE, Shown

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


class PiecewiseFitter:
    """Controls for function, range, segments and degree; curve, error and costs that follow; a button to measure.

    Display it as the last line of a cell. Without a kernel the cell shows the figure. `rivals` are functions to compare with,
    for each function in `TARGETS`; `run` is the button's action, the only one that runs on parties.
    """

    def __init__(self, prices: Prices, rivals: Mapping[str, Sequence[Row]], run: Run = run_on_parties):
        self._prices, self._rivals, self._run = prices, rivals, run
        names = [(target.title, name) for name, target in TARGETS.items()]
        wide = {"layout": {"width": "330px"}, "style": {"description_width": "85px"}}
        self.function = widgets.Dropdown(options=names, value="silu", description="function", **wide)
        halves = {"step": 0.5, "readout_format": ".1f"}
        self.reach = widgets.FloatSlider(6, min=REACHES[0], max=REACHES[1], description="range to", **halves, **wide)
        self.segments = widgets.IntSlider(2, *SEGMENTS, description="segments", **wide)
        self.degree = widgets.IntSlider(4, *DEGREES, description="degree", **wide)
        self.ends = widgets.Checkbox(value=True, description="segments for what lies outside the range", indent=False)
        self.button = widgets.Button(description="Run on three parties", icon="play", layout={"width": "190px"})
        self.status = widgets.HTML()
        self.measured: Row | None = None
        self.outcome = outcome(self.choice, prices)
        self._picture = FitPicture(self.outcome)
        self._image, self._rows = widgets.HTML(), widgets.HTML()
        self._show()
        for control in self._controls:
            control.observe(self._changed, names="value")
        self.button.on_click(self._pressed)
        left = widgets.VBox([self.function, self.reach, self.segments])
        right = widgets.VBox([self.degree, self.ends, widgets.HBox([self.button, self.status])])
        self.widget = widgets.VBox([widgets.HBox([left, right]), self._image, self._rows])

    @property
    def choice(self) -> Choice:
        """Position of the controls."""
        return Choice(*(control.value for control in self._controls))

    @property
    def html(self) -> tuple[str, str]:
        """Contents of the page: the figure, and the lines below it."""
        return self._image.value, self._rows.value

    def figure(self) -> Figure:
        """Draw the figure as it is now, for readers without a kernel."""
        return FitPicture(self.outcome).figure

    def run(self) -> pd.DataFrame:
        """Measure the function on three parties, as the button does; returns the result below the prediction.

        The values are spread evenly over the part of the figure where the function is meant to be right.
        """
        x = np.linspace(*self.outcome.choice.covered, 10_000, dtype=np.float32)
        self.measured = self._run(self.outcome, x)
        rows = self._show_rows()
        return pd.DataFrame([astuple(row)[1:] for row in rows], [row.name for row in rows], _HEAD)

    @property
    def _controls(self) -> tuple[widgets.Widget, ...]:
        return self.function, self.reach, self.segments, self.degree, self.ends

    def _changed(self, _) -> None:
        self.outcome, self.measured = outcome(self.choice, self._prices), None
        self.status.value = ""
        self._show()

    def _pressed(self, _) -> None:
        self.button.disabled = True
        self.status.value = "Three parties start and compute ..."
        try:
            self.run()
            self.status.value = "Done, see the table."
        except CipherDMError as error:
            self.status.value = escape(str(error))
        finally:
            self.button.disabled = False

    def _show(self) -> None:
        text = self._picture.show(self.outcome).get_label()
        self._shown = Shown(self._picture.png(quick=True), text, self.outcome.summary)
        self._image.value = self._shown.html()
        self._show_rows()

    def _show_rows(self) -> list[Row]:
        """Show the table; return the rows of the reader's own function."""
        found = self.outcome
        mine = [Row("yours, predicted", found.max_error, found.bytes_per_element, found.sends)]
        mine += [self.measured] if self.measured else []
        self._rows.value = rows_html([*mine, *self._rivals.get(found.choice.function, ())], len(mine))
        return mine

    def _repr_mimebundle_(self, **_) -> dict[str, Any]:
        shown = self.widget._repr_mimebundle_()
        return dict(shown[0] if isinstance(shown, tuple) else shown) | self._shown._repr_mimebundle_()


def piecewise_fitter(measurements: Path = MEASUREMENTS, run: Run = run_on_parties) -> PiecewiseFitter:
    """Make the fitter from the checkout's records: prices from piecewise.json, rivals from activations.json.

    Raises CipherDMError if a record is missing.
    """
    names = ("piecewise", "activations")
    prices, activations = (read_record(measurements / f"{n}.json", f"cipherdm bench {n}") for n in names)
    rivals = {kind: rivals_of(activations, kind) for kind in TARGETS}
    return PiecewiseFitter(Prices.from_record(prices), rivals, run)


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
