"""A reader's own piecewise polynomial: the fit, its values as the ring has them, error, predicted cost, and its figure.

Quick enough to follow a slider: nothing is compiled, nothing runs on parties, and the figure is redrawn in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import inf

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..approximations import exact
from ..approximations.fitting import fit_weighted
from ..approximations.piecewise import PiecewisePolynomial, power_of_two_below
from ..approximations.piecewise_costs import Prices
from ..errors import CipherDMError
from .style import GREY, HATCHED, PALETTE, describe
from .widgets import MovingPicture

FRACTION_BITS = 18  # SPU's default
REACHES = (2.0, 9.0)  # products are right up to 2^26, and 9^8 is below that
SEGMENTS = (1, 6)
DEGREES = (1, 8)
WINDOW = 12.0  # how far pictures reach


@dataclass(frozen=True)
class Target:
    """A function to fit, with its name in figures and its exact values in NumPy."""

    title: str
    exact: Callable
    negative: bool = False  # True if it is needed for x <= 0 only, as the exponential in a softmax is


TARGETS = {
    "silu": Target("SiLU", exact.silu),
    "mish": Target("Mish", exact.mish),
    "gelu": Target("GeLU", exact.gelu),
    "exp": Target("exp", np.exp, negative=True),
}


@dataclass(frozen=True)
class Choice:
    """Position of the controls: a name in `TARGETS`, and how it is fitted.

    Attributes:
        reach: end of the range that polynomials are fitted on; it begins at -reach, and ends at 0 for exp.
        segments: number of segments, of equal width.
        ends: add segments outside of the range, 0 on the left and x on the right. Without them the range must be known.
    """

    function: str = "silu"
    reach: float = 6.0
    segments: int = 2
    degree: int = 4
    ends: bool = True

    def __post_init__(self):
        if self.function not in TARGETS:
            raise CipherDMError(f"no function is called {self.function!r}: there are {', '.join(TARGETS)}.")
        for name, (low, high) in (("reach", REACHES), ("segments", SEGMENTS), ("degree", DEGREES)):
            if not low <= getattr(self, name) <= high:
                raise CipherDMError(f"{name} must lie between {low} and {high}, got {getattr(self, name)}.")

    @property
    def target(self) -> Target:
        """Function to fit."""
        return TARGETS[self.function]

    @property
    def fitted(self) -> tuple[float, float]:
        """Range on which the polynomials are fitted."""
        return -self.reach, 0.0 if self.target.negative else self.reach

    @property
    def window(self) -> tuple[float, float]:
        """Range that a figure shows."""
        return -WINDOW, 0.0 if self.target.negative else WINDOW

    @property
    def covered(self) -> tuple[float, float]:
        """Part of the window where the function is meant to be right."""
        return self.window if self.ends else self.fitted


@dataclass(frozen=True)
class Outcome:
    """Result of a choice: the fitted function, and what it is predicted to cost all parties together.

    At x [N] over the window, `exact` [N] is the function to fit, and `values` [N] the fitted one in the ring's arithmetic.
    `max_error` is their largest difference on the covered part.
    """

    choice: Choice
    function: PiecewisePolynomial
    x: np.ndarray
    exact: np.ndarray
    values: np.ndarray
    max_error: float
    bytes_per_element: float
    sends: int

    @property
    def summary(self) -> str:
        """Result in words, on one line."""
        c = self.choice
        low, high = c.fitted
        count = f"{c.segments} segment{'s' if c.segments > 1 else ''} of degree {c.degree} on [{low:g}, {high:g}]"
        where = "everywhere" if c.ends else "there"
        return (
            f"{c.target.title} by {count}{' and open ends' if c.ends else ''}: largest error {self.max_error:.2g} {where}, "
            f"{self.bytes_per_element:,.0f} bytes an element, {self.sends} messages"
        )


@lru_cache(maxsize=512)
def fit(choice: Choice) -> PiecewisePolynomial:
    """Fit by least squares on each segment's Chebyshev points, which is quick and comes near the smallest maximum error.

    Coefficients are rounded as they are fitted, see `fit_minimax`; powers whose coefficient becomes 0 cost nothing.
    """
    edges = np.linspace(*choice.fitted, choice.segments + 1)
    nodes = np.cos(np.linspace(0, np.pi, 201))
    samples = [(low + high) / 2 + (high - low) / 2 * nodes for low, high in zip(edges, edges[1:], strict=False)]
    fitted = fit_weighted(
        choice.target.exact,
        np.concatenate(samples),
        edges,
        [choice.degree] * choice.segments,
        name=f"{choice.function}_{choice.segments}x{choice.degree}",
        outside=((0.0,), (0.0, 1.0)) if choice.ends and not choice.target.negative else None,
        fraction_bits=FRACTION_BITS,
    )
    if not (choice.ends and choice.target.negative):
        return fitted
    breakpoints, coefficients = (float(edges[0]), *fitted.breakpoints), ((0.0,), *fitted.coefficients)
    return PiecewisePolynomial(fitted.name, (-inf, 0.0), breakpoints, coefficients)


def outcome(choice: Choice, prices: Prices) -> Outcome:
    """Compute a choice's fit, its values and error in the ring's arithmetic, and its cost at these prices."""
    function = fit(choice)
    x = np.linspace(*choice.window, 601)
    expected, values = choice.target.exact(x), ring_values(function, x)
    low, high = choice.covered
    largest = float(np.abs(values - expected)[(x >= low) & (x <= high)].max())
    return Outcome(
        choice, function, x, expected, values, largest, prices.bytes_per_element(function), prices.sends(function)
    )


def ring_values(function: PiecewisePolynomial, x: np.ndarray) -> np.ndarray:
    """Evaluate function(x [N]) with every number rounded to the ring's fraction bits, as truncations on shares round it.

    A truncation on shares goes up or down at random where this rounds to nearest, so single values differ by a few 2^-18
    times the steepness of what follows. Numbers too large for the ring are not wrapped around.
    """
    x = _rounded(np.asarray(x, np.float64))
    powers = {1: x}
    for k in range(2, function.degree + 1):
        powers[k] = _rounded(powers[power_of_two_below(k)] * powers[k - power_of_two_below(k)])
    rows = [
        _rounded(sum((_rounded(c) * powers[k] for k, c in enumerate(segment[1:], 1) if c), np.zeros_like(x)))
        + _rounded(np.float64(segment[0]))
        for segment in function.coefficients
    ]
    chosen = np.searchsorted(_rounded(np.array(function.breakpoints, np.float64)), x, side="right")
    return np.choose(chosen, rows)


def _rounded(values):
    return np.round(values * 2.0**FRACTION_BITS) / 2.0**FRACTION_BITS


_ERRORS = (1e-6, 1e1)  # the range of the error axis


class FitPicture(MovingPicture):
    """Curve and segments above, error below on a logarithmic axis, hatched where incorrect; `show` another in place."""

    def __init__(self, outcome: Outcome):
        super().__init__(7.4, 4.6)
        self._curve = self.figure.add_axes((0.115, 0.42, 0.87, 0.5))
        self._below = self.figure.add_axes((0.115, 0.115, 0.87, 0.27))
        self._title = self.figure.text(0.55, 0.945, "", ha="center", fontsize=10)
        (self._exact,) = self._curve.plot([], [], color="black", linewidth=1.2, label="exact")
        (self._values,) = self._curve.plot([], [], color=PALETTE[0], linewidth=2.2, alpha=0.75, label="yours")
        (self._error,) = self._below.plot([], [], color=PALETTE[1], linewidth=1.4)
        self._largest = self._below.axhline(1, color=GREY, linewidth=0.9, linestyle="--")
        axes, dotted = (self._curve, self._below), {"color": GREY, "linewidth": 0.7, "linestyle": ":"}
        self._edges = [axis.vlines([], 0, 1, **dotted) for axis in axes]
        self._wrong = [
            [axis.add_patch(Rectangle((0, 0), 0, 0, alpha=0.45, **HATCHED)) for _ in range(2)] for axis in axes
        ]
        legend = self._curve.legend(loc="upper left", fontsize=9)
        self._curve.set_xticks([])
        self._below.set(xlabel="x", ylabel="error", ylim=np.log10(_ERRORS))
        self._below.set_yticks([-6, -4, -2, 0], ["0.000001", "0.0001", "0.01", "1"], fontsize=8)
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
            self._curve.set_yticks([0, 0.5, 1] if choice.target.negative else [0, 4, 8, 12])
            self._below.set(xlim=(low, high), xticks=np.linspace(low, high, 7))
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
        self._title.set_text(
            f"{choice.segments} x degree {choice.degree}{' and open ends' if choice.ends else ', incorrect where hatched'}: "
            f"largest error {outcome.max_error:.2g}, {outcome.bytes_per_element:,.0f} B an element, {outcome.sends} messages"
        )
        begin, end = choice.fitted
        wrong = "" if choice.ends else f" Hatched outside [{begin:g}, {end:g}], where it is incorrect."
        return describe(
            self.figure,
            f"Two plots over x. Above, {choice.target.title} and the piecewise polynomial fitted to it. Below, the "
            f"absolute error on a logarithmic axis. {outcome.summary}.{wrong}",
        )
