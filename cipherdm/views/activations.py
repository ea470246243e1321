"""Figures of approximations: the curve with its error below it, a piecewise polynomial's segments, a softmax's row sums."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..approximations.approximation import Approximation
from ..approximations.piecewise import PiecewisePolynomial
from ..approximations.piecewise_costs import Counts
from .style import GREY, HATCHED, PALETTE, describe, new_figure

_POINTS = 801
_LINES = ("-", "--", "-.", ":")


def approximation_figure(
    functions: Approximation | Sequence[Approximation],
    reference: Callable,
    low: float,
    high: float,
    *,
    relative: bool = False,
    title: str | None = None,
) -> Figure:
    """Draw approximations, up to four, and the exact function above, their signed errors below, from low to high.

    The parts outside the domain of any of them are hatched, and the title then begins with "Incorrect". With `relative`,
    errors are shares of the value. The title consists of the functions' names unless one is given.
    """
    functions = [functions] if isinstance(functions, Approximation) else list(functions)
    x = np.linspace(low, high, _POINTS, dtype=np.float32)
    exact = reference(x.astype(np.float64))
    figure = new_figure(7.2, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(x, exact, color="black", linewidth=1.2, label="exact")
    told = []
    for function, colour, line in zip(functions, PALETTE, _LINES, strict=False):
        values = np.asarray(function(x), np.float64)
        error = (values - exact) / (np.abs(exact) if relative else 1)
        above.plot(x, values, color=colour, linestyle=line, linewidth=2, alpha=0.8, label=function.name)
        below.plot(x, error, color=colour, linestyle=line, linewidth=1.4)
        worst = int(np.abs(error).argmax())
        told.append(f"{function.name} is off by at most {abs(error[worst]):.2g}, at {x[worst]:.3g}")
    domain = max(f.domain[0] for f in functions), min(f.domain[1] for f in functions)
    wrong = _hatch_outside((above, below), domain, low, high)
    # Far outside, errors would leave nothing to see of the curve.
    span = np.ptp(exact)
    above.set_ylim(max(above.get_ylim()[0], exact.min() - span), min(above.get_ylim()[1], exact.max() + span))
    below.axhline(0, color=GREY, linewidth=0.8)
    below.set(xlabel="x", ylabel="error, of the value" if relative else "error")
    above.set_ylabel("value")
    above.legend(fontsize=9)
    text = title or ", ".join(function.name for function in functions)
    outside = f" outside [{domain[0]:g}, {domain[1]:g}]"
    above.set_title(f"Incorrect{outside}: {text}" if wrong else text)
    return describe(
        figure,
        f"Two plots over x from {low:g} to {high:g}. Above, the exact function and its approximations; below, their "
        f"{'relative ' if relative else ''}errors. {'; '.join(told)}."
        + (f" Hatched{outside}, where the values are incorrect." if wrong else ""),
    )


def segments_figure(
    function: PiecewisePolynomial, low: float, high: float, reference: Callable | None = None
) -> Figure:
    """Draw each segment of a piecewise polynomial in its own colour, dotted where it is not chosen.

    On shares every polynomial is computed at every x, and comparisons choose; the title counts these operations.
    `reference` is drawn in black if given.
    """
    x = np.linspace(low, high, _POINTS)
    figure = new_figure(7.2, 3.8)
    axis = figure.subplots()
    chosen = np.asarray(function(x.astype(np.float32)))
    if reference is not None:
        axis.plot(x, reference(x), color="black", linewidth=1, label="exact")
    index = np.searchsorted(np.array(function.breakpoints), x, side="right")
    told = []
    for i in np.unique(index):
        here, coefficients = index == i, function.coefficients[i]
        colour, text = PALETTE[i % len(PALETTE)], _polynomial(coefficients)
        values = np.polynomial.polynomial.polyval(x, coefficients)
        axis.plot(x, np.where(here, np.nan, values), color=colour, linestyle=":", linewidth=1)
        axis.plot(x[here], values[here], color=colour, linewidth=3, alpha=0.8, label=text)
        told.append(f"from {x[here][0]:.3g} to {x[here][-1]:.3g} {text}")
    for edge in function.breakpoints:
        axis.axvline(edge, color=GREY, linewidth=0.8, linestyle="--")
    wrong = _hatch_outside((axis,), function.domain, low, high)
    room = 0.3 * max(np.ptp(chosen), 1e-6)
    axis.set(xlabel="x", ylabel="value", xlim=(low, high), ylim=(chosen.min() - room, chosen.max() + room))
    axis.legend(fontsize=8)
    counts, beginning = counts_in_words(function), "Incorrect where hatched: " if wrong else ""
    axis.set_title(f"{beginning}{function.name}, {counts}", fontsize=10)
    return describe(
        figure,
        f"{function.name} in segments: {'; '.join(told)}. An evaluation takes {counts}."
        + (" Hatched where it is incorrect." if wrong else ""),
    )


def row_sums_figure(scores: np.ndarray, exponentials: Sequence[Approximation]) -> Figure:
    """Draw the denominators of a softmax over scores [rows, N], as up to four approximations give them, against the exact ones.

    Each row's maximum is subtracted first. A sum at or below zero, in the hatched half, makes its whole row meaningless.
    """
    shifted = (scores - scores.max(axis=1, keepdims=True)).astype(np.float32)
    exact = np.exp(shifted.astype(np.float64)).sum(axis=1)
    figure = new_figure(6.4, 4.0)
    axis = figure.subplots()
    told = []
    for exponential, colour, marker in zip(exponentials, PALETTE[1:], "o^sD", strict=False):
        sums = np.asarray(exponential(shifted), np.float64).sum(axis=1)
        axis.plot(exact, sums, marker, color=colour, markersize=4, alpha=0.6, linestyle="", label=exponential.name)
        extent = f"from {sums.min():.2g} to {sums.max():.2g}"
        told.append(f"{exponential.name} {extent}, {np.mean(sums <= 0):.0%} not positive")
    ends = exact.min(), exact.max()
    axis.plot(ends, ends, color="black", linewidth=1, label="right")
    axis.axhspan(min(axis.get_ylim()[0], -1), 0, alpha=0.5, **HATCHED)
    axis.margins(y=0)
    axis.set(xlabel="exact sum of a row's exponentials", ylabel="sum of the approximations")
    axis.set_title(f"Denominators of softmax, rows of {scores.shape[1]}: incorrect where hatched")
    axis.legend(fontsize=9)
    return describe(
        figure,
        f"Scatter plot of {len(scores)} rows: sums of approximate exponentials against exact sums, which go from "
        f"{ends[0]:.2g} to {ends[1]:.2g}. {'; '.join(told)}. Sums below zero are hatched as incorrect.",
    )


def counts_in_words(function: PiecewisePolynomial) -> str:
    """Return the operations of one evaluation at one x, as "3 comparisons, 3 selections, 3 products, 2 sums"."""
    counts = zip(Counts.of(function).bytes_row, ("comparison", "selection", "product", "sum"), strict=True)
    return ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for n, name in counts)


def _hatch_outside(axes: Sequence[Axes], domain: tuple[float, float], low: float, high: float) -> bool:
    """Hatch the parts of [low, high] outside of the domain; returns whether there are any."""
    ends = (low, min(domain[0], high)), (max(domain[1], low), high)
    outside = [(left, right) for left, right in ends if left < right]
    for axis in axes:
        axis.set_xlim(low, high)
        for left, right in outside:
            axis.axvspan(left, right, alpha=0.5, zorder=0, **HATCHED)
    return bool(outside)


def _polynomial(coefficients: Sequence[float]) -> str:
    """Write a polynomial as "0.5 + 0.25 x + 0.125 x^2", with three digits each."""
    powers = ["", " x", *(f" x^{k}" for k in range(2, len(coefficients)))]
    terms = [
        f"{'-' if c < 0 else '+'} {abs(c):.3g}{power}" for c, power in zip(coefficients, powers, strict=False) if c
    ]
    text = " ".join(terms)
    return "x" if text == "+ 1 x" else text.removeprefix("+ ") or "0"
