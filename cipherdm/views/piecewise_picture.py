"""The picture beside the sliders: curve, segments and error, redrawn in place so that it follows a moving slider."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .moving import MovingPicture
from .piecewise_fit import Outcome
from .style import GREY, PALETTE, describe

_ERRORS = (1e-6, 1e1)  # the range of the error axis
_BLUE, _ORANGE = PALETTE[0], PALETTE[1]


class FitPicture(MovingPicture):
    """A figure of an outcome, that can show another one without being built anew."""

    def __init__(self, outcome: Outcome):
        super().__init__(7.4, 4.6)
        self._curve = self.figure.add_axes((0.115, 0.42, 0.87, 0.5))
        self._below = self.figure.add_axes((0.115, 0.115, 0.87, 0.27))
        self._title = self.figure.text(0.55, 0.945, "", ha="center", fontsize=10)
        (self._exact,) = self._curve.plot([], [], color="black", linewidth=1.2, label="exact")
        (self._values,) = self._curve.plot([], [], color=_BLUE, linewidth=2.2, alpha=0.75, label="yours")
        (self._error,) = self._below.plot([], [], color=_ORANGE, linewidth=1.4)
        self._largest = self._below.axhline(1, color=GREY, linewidth=0.9, linestyle="--")
        self._edges = [
            axis.vlines([], 0, 1, color=GREY, linewidth=0.7, linestyle=":") for axis in (self._curve, self._below)
        ]
        self._wrong = [[self._hatched(axis) for _ in range(2)] for axis in (self._curve, self._below)]
        legend = self._curve.legend(loc="upper left", fontsize=9)
        self._curve.set_xticks([])
        self._below.set(xlabel="x", ylabel="error", ylim=np.log10(_ERRORS))
        powers = range(-6, 2, 2)
        self._below.set_yticks(list(powers), ["0.000001", "0.0001", "0.01", "1"], fontsize=8)
        moving = [*self._wrong[0], *self._wrong[1], *self._edges, self._exact, self._values, self._error, self._largest]
        self._moves([*moving, legend, self._title])
        self._function = None
        self.show(outcome)

    def show(self, outcome: Outcome) -> Figure:
        """Show an outcome; returns the figure, with its description."""
        choice = outcome.choice
        low, high = choice.window
        if choice.function != self._function:
            self._function, self._background = choice.function, None
            bottom, top = (-0.25, 1.25) if choice.target.negative else (-2.0, 12.5)
            self._curve.set(xlim=(low, high), ylim=(bottom, top), ylabel=f"{choice.target.title}(x)")
            ticks = np.linspace(low, high, 7)
            self._curve.set_yticks([0, 0.5, 1] if choice.target.negative else [0, 4, 8, 12])
            self._below.set(xlim=(low, high), xticks=ticks)
        self._exact.set_data(outcome.x, outcome.exact)
        self._values.set_data(outcome.x, outcome.values)
        error = np.clip(np.abs(outcome.values - outcome.exact), *_ERRORS)
        self._error.set_data(outcome.x, np.log10(error))
        self._largest.set_ydata([np.log10(max(outcome.max_error, _ERRORS[0]))] * 2)
        edges = np.linspace(*choice.fitted, choice.segments + 1)
        for axis, lines, patches in zip((self._curve, self._below), self._edges, self._wrong, strict=True):
            bottom, top = axis.get_ylim()
            lines.set_segments([[(edge, bottom), (edge, top)] for edge in edges])
            for patch, (left, right) in zip(patches, ((low, choice.fitted[0]), (choice.fitted[1], high)), strict=True):
                patch.set(x=left, width=right - left, y=bottom, height=top - bottom)
                patch.set_visible(not choice.ends and right > left)
        self._title.set_text(_title(outcome))
        return describe(self.figure, _description(outcome))

    @staticmethod
    def _hatched(axis) -> Rectangle:
        return axis.add_patch(
            Rectangle((0, 0), 0, 0, facecolor="#dddddd", alpha=0.45, hatch="///", edgecolor=GREY, linewidth=0)
        )


def fit_figure(outcome: Outcome) -> Figure:
    """The curve and its segments above, its error below on a logarithmic axis; hatched where it is incorrect."""
    return FitPicture(outcome).figure


def _title(outcome: Outcome) -> str:
    c = outcome.choice
    return (
        f"{c.segments} x degree {c.degree}{' and open ends' if c.ends else ', incorrect where hatched'}: "
        f"largest error {outcome.max_error:.2g}, {outcome.bytes_per_element:,.0f} B an element, {outcome.sends} messages"
    )


def _description(outcome: Outcome) -> str:
    low, high = outcome.choice.fitted
    wrong = "" if outcome.choice.ends else f" Hatched outside [{low:g}, {high:g}], where it is incorrect."
    return (
        f"Two plots over x. Above, {outcome.choice.target.title} and the piecewise polynomial fitted to it. Below, the "
        f"absolute error on a logarithmic axis. {outcome.summary}.{wrong}"
    )
