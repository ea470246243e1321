"""Figures of fixed-point numbers: range and rounding, truncation and its failures, overflow, and the tree of carries."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from scipy import stats

from ..sharing import FixedPoint, Ring
from .style import GREY, PALETTE, describe, frameless, new_figure, plot_right_and_wrong
from .widgets import Explorer, slider

# Colour of a position's effect on a carry from below.
_CARRIES = {"makes": PALETTE[1], "passes": PALETTE[5], "stops": "#dddddd"}


def wrapped(values: np.ndarray, encoding: FixedPoint) -> np.ndarray:
    """Return the numbers that values would become if `encode` wrapped words around in silence instead of refusing them."""
    ring, scaled = encoding.ring, np.round(np.asarray(values, np.float64) * 2.0**encoding.fraction_bits)
    return encoding.decode(ring.reduce(scaled.astype(np.int64)))


def staircase(encoding: FixedPoint) -> Figure:
    """Draw the fixed-point number of each real number from -10 to 10: steps of a unit, and the ends of the range.

    The fixed point has at most 53 bits, so that float64 shows each number exactly.
    """
    reach = 10.0
    x = np.linspace(-reach, reach, 801)
    y = wrapped(x, encoding)
    inside = (x >= encoding.lowest - encoding.unit / 2) & (x < encoding.highest + encoding.unit / 2)
    right, wrong = np.where(inside, y, np.nan), np.where(inside, np.nan, y)
    figure = new_figure(7.2, 3.1)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0.09, 0.16, 0.89, 0.72))
    axis.plot(x, x, color=GREY, linewidth=0.8)
    axis.plot(x, right, color=PALETTE[0], linewidth=1.8, label="nearest number")
    if not inside.all():
        axis.plot(x, wrong, color=PALETTE[1], linewidth=1.2, linestyle="--", label="out of range, wrapped around")
    axis.set(xlim=(-reach, reach), ylim=(-1.1 * reach, 1.1 * reach), xlabel="value", ylabel="as fixed point")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_ticks([-reach, -reach / 2, 0, reach / 2, reach])  # drawn sooner than ticks that have to be found
    axis.set_title(
        f"{encoding.ring.bits} bits, {encoding.fraction_bits} of them fraction: unit {encoding.unit:g}, "
        f"from {encoding.lowest:g} to {encoding.highest:g}",
        fontsize=10,
    )
    axis.legend(loc="upper center", frameon=False, fontsize=9)
    outside = "" if inside.all() else " Outside, a dashed line shows wrong numbers, wrapped around to the other end."
    text = f"A staircase along the diagonal with steps of {encoding.unit:g}, from {encoding.lowest:g} to {encoding.highest:g}."
    return describe(figure, text + outside)


def staircase_explorer() -> Explorer:
    """`staircase` under sliders for the bits of a word and of its fraction; a fraction that does not fit is cut."""

    def draw(bits: int, fraction_bits: int) -> Figure:
        return staircase(FixedPoint(Ring(bits), min(fraction_bits, bits - 1)))

    controls = {"bits": slider("bits of a word", 6, 2, 16), "fraction_bits": slider("fraction bits", 2, 0, 15)}
    return Explorer(controls, draw)


def truncations(true: np.ndarray, results: Mapping[str, np.ndarray]) -> Figure:
    """Draw results [N] of truncation, by title, over the exact quotients [N], with crosses where they are off by over a unit.

    A title says "Incorrect" where that is the point.
    """
    figure = new_figure(4 * len(results), 3.2)
    axes, counts = figure.subplots(1, len(results), sharey=True, squeeze=False)[0], []
    for axis, (title, values) in zip(axes, results.items(), strict=True):
        wrong = np.abs(values - true) > 1
        axis.plot(true[~wrong], values[~wrong], ".", color=PALETTE[0], markersize=4, label="right to one word")
        axis.plot(true[wrong], values[wrong], "x", color=PALETTE[1], markersize=6, label=f"wrong: {wrong.sum()}")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("exact result, in words")
        axis.legend(loc="upper right", frameon=False, fontsize=8.5)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        counts.append(f"{title}: {wrong.sum()} of {len(true)} are off by more than one word")
    axes[0].set_ylabel("result, in words")
    return describe(figure, "Results by exact results. " + ". ".join(counts) + ".")


def failure_rates(sizes: np.ndarray, rates: np.ndarray, samples: int, ring: Ring) -> Figure:
    """Draw the share of local truncations that failed, by the size of the word, beside the formula `|word| / 2^l`.

    The rates [N], of so many samples each, are those at the sizes [N]; zeros are drawn at the lower edge as arrows.
    """
    figure = new_figure(6.4, 3.4)
    axis = figure.subplots()
    formula = sizes / ring.modulus
    low, high = (stats.binom.ppf(quantile, samples, formula) / samples for quantile in (0.025, 0.975))
    axis.plot(sizes, formula, color=PALETTE[1], label=f"formula, |word| / $2^{{{ring.bits}}}$")
    floor = 0.3 / samples
    style = {"color": PALETTE[1], "alpha": 0.2, "linewidth": 0}
    axis.fill_between(sizes, np.maximum(low, floor), np.maximum(high, floor), label="95% of such measurements", **style)
    seen = rates > 0
    axis.plot(sizes[seen], rates[seen], "o", color=PALETTE[0], label=f"measured, {samples:,} truncations each")
    axis.plot(sizes[~seen], np.full((~seen).sum(), floor * 1.4), "v", color=PALETTE[0], label="measured: never")
    axis.set_xscale("log", base=2)
    axis.set(yscale="log", ylim=(floor, 1), xlabel="|word| before truncation", ylabel="share that is wrong")
    axis.legend(frameon=False, fontsize=8.5)
    texts = [f"{size:.3g}: {rate:.2g}" for size, rate in zip(sizes, rates, strict=True)]
    return describe(
        figure,
        f"On logarithmic axes, shares of wrong truncations lie on the line |word| / 2^{ring.bits}. "
        f"By size of the word: {', '.join(texts)}.",
    )


def overflow(x: np.ndarray, true: np.ndarray, results: Mapping[str, np.ndarray], tolerance: float) -> Figure:
    """Draw squares that were computed on shares, a panel per method, over the true ones.

    Args:
        x: [N] arguments in ascending order.
        true: [N] exact values.
        results: [N] computed values by title, which says "Incorrect" where that is the point, or what a remedy costs.
        tolerance: largest difference from the truth of a right result.
    """
    rows = -(-len(results) // 2)
    figure = new_figure(8, 0.3 + 2.6 * rows)
    axes, texts = figure.subplots(rows, min(len(results), 2), sharex=True, sharey=True, squeeze=False), []
    for axis in axes.flat[len(results) :]:
        axis.set_axis_off()
    for axis, (title, values) in zip(axes.flat, results.items(), strict=False):
        wrong = np.abs(values - true) > tolerance
        axis.plot(x, true, color=GREY, linewidth=1, label="true")
        plot_right_and_wrong(axis, x, values, wrong)
        axis.set_title(title, fontsize=10)
        axis.legend(loc="upper center", frameon=False, fontsize=8.5)
        first = np.abs(x[wrong]).min(initial=np.inf)
        texts.append(f"{title}: " + (f"wrong from |x| = {first:.3g} on" if wrong.any() else "right everywhere"))
    for axis in axes[-1]:
        axis.set_xlabel("x")
    for axis in axes[:, 0]:
        axis.set_ylabel("$x^2$")
    return describe(figure, "Computed values over the true curve. " + "; ".join(texts) + ".")


def operation_rounds(table: pd.DataFrame, elements: int) -> Figure:
    """Draw rounds and bytes of operations on so many elements as bars, from the rows of `Transcript.summary`."""
    figure = new_figure(7.6, 0.8 + 0.34 * len(table))
    axes = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(table))
    columns = {"rounds": table["rounds"], "bytes for each number, all parties": table["bytes"] / elements}
    for axis, (label, values), colour in zip(axes, columns.items(), PALETTE, strict=False):
        axis.bar_label(axis.barh(rows, values, color=colour), fmt=" {:.3g}", fontsize=9)
        axis.set(xlabel=label, xlim=(0, 1.15 * max(values.max(), 1)))
        frameless(axis)
    axes[0].set_yticks(rows, table.index)
    axes[0].invert_yaxis()
    texts = [f"{row.Index} {row.rounds:.0f} rounds and {row.bytes / elements:.3g} bytes" for row in table.itertuples()]
    return describe(figure, "Bars for the cost of each operation. " + "; ".join(texts) + ".")


def carry_levels(first: int, second: int, bits: int) -> list[list[str]]:
    """Find the effect of single positions, then of blocks of 2, 4, ... positions, on a carry from below, the lowest first."""
    pairs = [((first >> place) & 1, (second >> place) & 1) for place in range(bits)]
    level = ["makes" if a & b else "passes" if a ^ b else "stops" for a, b in pairs]
    levels = [level]
    while len(level) > 1:
        level = [high if high != "passes" else low for low, high in zip(level[::2], level[1::2], strict=True)]
        levels.append(level)
    return levels


def carry_tree(first: int, second: int, bits: int = 8) -> Figure:
    """Draw how the carry out of a sum of numbers below 2^bits is found in log2(bits) rounds; bits is a power of two."""
    levels = carry_levels(first, second, bits)
    figure = new_figure(7.6, 1.3 + 0.42 * (len(levels) + 2))
    axis = figure.subplots()
    for row, (name, number) in enumerate((("a", first), ("b", second))):
        axis.text(-0.7, row, f"{name} = {number}", ha="right", va="center")
        for place in range(bits):
            axis.text(bits - 1 - place, row, str(number >> place & 1), ha="center", va="center", family="monospace")
    for depth, level in enumerate(levels):
        row, width = depth + 2, 2**depth
        label = "each position" if depth == 0 else f"round {depth}: blocks of {width}"
        axis.text(-0.7, row, label, ha="right", va="center")
        for block, kind in enumerate(level):
            left = bits - (block + 1) * width - 0.5
            axis.add_patch(Rectangle((left + 0.05, row - 0.38), width - 0.1, 0.76, color=_CARRIES[kind]))
            axis.text(left + width / 2, row, kind, ha="center", va="center", fontsize=9)
    outcome = "a carry leaves" if levels[-1][0] == "makes" else "no carry leaves"
    axis.set(xlim=(-3.6, bits - 0.4), ylim=(len(levels) + 1.6, -0.6))
    axis.set_title(f"{first} + {second} = {first + second}: {outcome} the {bits} bits", fontsize=10)
    axis.set_axis_off()
    rows = "; ".join(" ".join(reversed(level)) for level in levels)
    return describe(
        figure,
        f"Bits of {first} and {second}, and below them, highest position at the left, what blocks do with a carry: {rows}. "
        f"So {outcome}.",
    )
