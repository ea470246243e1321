"""A figure under sliders, with its description in words below it."""

# FROM cipherdm.views.moving:
# Figures that follow a moving slider: drawn once, and from then on only what changes.

import io
from collections.abc import Callable, Iterable
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from .style import DPI


def explorer(draw: Callable[..., Figure], **controls: Any):
    """A box of widgets: the controls, the figure that `draw` makes of their values, and its description as text.

    Args:
        draw: takes the controls' values by their names and returns a described figure; in less than 100 ms, please.
        controls: ipywidgets with a `value`.

    Returns:
        An ipywidgets.VBox. Its children are the controls in order, the image, the text.
    """
    import ipywidgets as widgets  # which only notebooks need

    image, text = widgets.Image(format="png"), widgets.HTML()

    def redraw(_=None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        image.value, text.value = _quick_png(figure), f"<small>{escape(figure.get_label())}</small>"

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([*controls.values(), image, text])


def _quick_png(figure: Figure) -> bytes:
    """As `style.png`, in a third of the time: `savefig` draws everything twice and takes pains to compress it."""
    canvas, buffer = FigureCanvasAgg(figure), BytesIO()
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def slider(description: str, value: int, lowest: int, highest: int):
    """A slider over whole numbers, with room for its description."""
    import ipywidgets as widgets

    style, layout = {"description_width": "14em"}, {"width": "36em"}
    return widgets.IntSlider(value, lowest, highest, description=description, style=style, layout=layout)


class MovingPicture:
    """A figure with a background that is drawn once, and artists that are drawn anew for each picture.

    Building axes and drawing their ticks takes longer than a slider should wait, and a constrained layout more than both. So
    axes stand at fixed places, a `show` of the derived class moves what is there, and `pixels` and `png` draw just that.

    Args:
        width, height: of the figure, in inches.
    """

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self._moving: list[Artist] = []
        self._background = None

    def pixels(self) -> np.ndarray:
        """The picture as it is, uint8 [height, width, 3]."""
        canvas = self.figure.canvas
        if self._background is None:
            self._draw_background()
        canvas.restore_region(self._background)
        for artist in self._moving:
            artist.draw(canvas.get_renderer())
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def png(self) -> bytes:
        """The same as a PNG file, compressed in little time, the figure's description in its metadata."""
        note = PngImagePlugin.PngInfo()
        note.add_itxt("Description", self.figure.get_label())
        buffer = io.BytesIO()
        Image.fromarray(self.pixels()).save(buffer, "png", compress_level=1, pnginfo=note)
        return buffer.getvalue()

    def _moves(self, artists: Iterable[Artist]) -> None:
        """Say which artists change. Others may too, if `_background` is set to None then."""
        self._moving = list(artists)

    def _draw_background(self) -> None:
        # Hidden rather than "animated", which a figure that is saved leaves out.
        visible = [artist.get_visible() for artist in self._moving]
        for artist in self._moving:
            artist.set_visible(False)
        self.figure.canvas.draw()
        self._background = self.figure.canvas.copy_from_bbox(self.figure.bbox)
        for artist, was in zip(self._moving, visible, strict=True):
            artist.set_visible(was)
