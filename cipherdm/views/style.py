"""Style that all figures share: colours that colour-blind readers can tell apart, sizes, and a description in words."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

# Okabe and Ito's palette (jfly.uni-koeln.de/color), in the order in which series take them.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
GREY = "#777777"

# Where a figure is incorrect.
HATCHED = {"facecolor": "#dddddd", "hatch": "///", "edgecolor": GREY, "linewidth": 0}
DPI = 110

_COLOURS_OF_A_DRAWING = 4096  # colours of edges included; photographs and maps of colours have more
_SAFE = " =/:;,()'"  # characters of an SVG that may stand in a URL within an attribute


def new_figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """Empty figure of this size in inches. It belongs to no window and is freed like any other object."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def describe(figure: Figure, text: str) -> Figure:
    """Give a figure its description in words (alt text), which `figure.get_label()` returns; returns the figure."""
    figure.set_label(text)
    return figure


def png(figure: Figure, *, quick: bool = False) -> bytes:
    """Return the figure as a PNG file, with its description in the file's metadata; `quick` is as in `png_of`."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # `savefig` draws twice
    return png_of(np.asarray(canvas.buffer_rgba())[..., :3], figure.get_label(), quick=quick)


def png_of(pixels: np.ndarray, description: str, *, quick: bool = False) -> bytes:
    """Return pixels, uint8 [height, width, 3], as a PNG file with a description in its metadata.

    A drawing is cut to 256 colours and takes a third of the bytes, unless it has to be `quick`, for a slider that waits.
    """
    note, buffer, image = PngImagePlugin.PngInfo(), io.BytesIO(), Image.fromarray(pixels)
    note.add_itxt("Description", description)
    if not quick and image.getcolors(_COLOURS_OF_A_DRAWING):
        image = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(buffer, "png", compress_level=1 if quick else 9, pnginfo=note)
    return buffer.getvalue()


@dataclass(frozen=True)
class Shown:
    """A picture as a notebook's output, with a caption below it and a description for those who cannot see it.

    JupyterLab, nbconvert and nbviewer read the HTML, other readers the picture itself.
    """

    picture: bytes | str
    """A PNG file, or an SVG text."""
    text: str
    caption: str
    below: str = ""
    """HTML, such as a table."""

    def html(self, *, small: bool = False) -> str:
        """Return a <figure> with the picture, its description and its caption; `small` takes time to compress it."""
        if isinstance(self.picture, str):
            source = f"svg+xml,{quote(self.picture, safe=_SAFE)}"
        else:
            kind, content = ("webp", _webp(self.picture)) if small else ("png", self.picture)
            source = f"{kind};base64,{base64.b64encode(content).decode()}"
        image = f'<img alt="{escape(self.text)}" style="max-width:100%;height:auto" src="data:image/{source}">'
        return f'<figure style="margin:0">{image}<figcaption>{escape(self.caption)}</figcaption></figure>{self.below}'

    def _repr_mimebundle_(self, **_) -> dict[str, str]:
        bundle = {"text/plain": self.text, "text/html": self.html(small=True)}
        if isinstance(self.picture, str):
            return bundle | {"image/svg+xml": self.picture}
        return bundle | {"image/png": base64.b64encode(self.picture).decode()}


def _webp(png: bytes) -> bytes:
    """Compress a picture once more, without loss."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "webp", lossless=True)
    return buffer.getvalue()


def strip(images: Sequence[np.ndarray]) -> str:
    """Return images uint8 [H, W, 3] of one size, side by side, as a JPEG in a URL; after each, 1/16 of its width is white.

    Without loss it would take twice as many bytes, and pages have many of them.
    """
    white, buffer = images[0].shape[1] // 16, io.BytesIO()
    row = np.concatenate([np.pad(each, ((0, 0), (0, white), (0, 0)), constant_values=255) for each in images], axis=1)
    Image.fromarray(row).save(buffer, "jpeg", quality=90, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def show(figure: Any, caption: str | None = None) -> Any:
    """Return a figure, or what is `Shown`, as a notebook's output: with a caption, and its description.

    The caption is the description's first sentence by default. A picture under controls shows itself, and is returned as it is.
    """
    if isinstance(figure, Figure):
        figure = Shown(png(figure), figure.get_label(), "")
    if not isinstance(figure, Shown):
        return figure
    first = re.split(r"(?<=[.:;]) ", figure.text)[0].rstrip(":;.") + "."
    return replace(figure, caption=first if caption is None else caption)


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
