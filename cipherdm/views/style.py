"""What all figures share: colours that colour-blind readers can tell apart, sizes, and a description in words."""

import io

from matplotlib.figure import Figure

# Okabe and Ito's palette (jfly.uni-koeln.de/color), in the order in which series take them.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")

GREY = "#777777"

DPI = 110


def new_figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """An empty figure of so many inches, which belongs to no window and is freed like any other object."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def describe(figure: Figure, text: str) -> Figure:
    """The figure with its description in words (alt text), for readers who do not see it; `figure.get_label()` has it."""
    figure.set_label(text)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, its description in the file's metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Description": figure.get_label()})
    return buffer.getvalue()


def show(figure: Figure):
    """The figure for a notebook's output: an image with its description as alt text."""
    from IPython.display import Image  # which only notebooks need

    return Image(png(figure), format="png", alt=figure.get_label())
