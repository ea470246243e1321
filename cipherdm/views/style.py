"""Style that all figures share: colours that colour-blind readers can tell apart, sizes, and a description in words."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette (jfly.uni-koeln.de/color), in the order in which series take them.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
GREY = "#777777"

# Where a figure is incorrect.
HATCHED = {"facecolor": "#dddddd", "hatch": "///", "edgecolor": GREY, "linewidth": 0}
DPI = 110


def new_figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """Empty figure of this size in inches. It belongs to no window and is freed like any other object."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def describe(figure: Figure, text: str) -> Figure:
    """Give a figure its description in words (alt text), which `figure.get_label()` returns; returns the figure."""
    figure.set_label(text)
    return figure


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file, with its description in the file's metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Description": figure.get_label()})
    return buffer.getvalue()


def show(figure: Figure):
    """Return the figure as a notebook's output: an image with its description as alt text."""
    from IPython.display import Image  # which only notebooks need

    return Image(png(figure), format="png", alt=figure.get_label())


def frameless(axis: Axes) -> None:
    """Leave an axis its left and lower line only, as bars need no more."""
    axis.spines[["top", "right"]].set_visible(False)


def image_axis(axis: Axes, title: str, fontsize: float = 10) -> None:
    """Title an axis that holds an image, and take away its ticks."""
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=fontsize, parse_math=False)  # a prompt may have dollar signs


def plot_right_and_wrong(axis: Axes, x: np.ndarray, y: np.ndarray, wrong: np.ndarray) -> None:
    """Plot y [N] over x [N] as dots, and those where `wrong` [N] is true, if there are any, as crosses."""
    axis.plot(x[~wrong], y[~wrong], ".", color=PALETTE[0], markersize=5, label="right")
    if wrong.any():
        axis.plot(x[wrong], y[wrong], "x", color=PALETTE[1], markersize=5, label="wrong")
