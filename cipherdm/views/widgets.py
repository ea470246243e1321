"""Figures under sliders, with their description in words below them; and figures that follow a slider in no time."""

import io
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from .style import DPI


class MovingPicture:
    """A figure with a background that is drawn once, and artists that are drawn anew for each setting.

    Building axes and drawing their ticks takes longer than a slider should wait, and a constrained layout longer still. So
    axes stand at fixed places, a `show` of the derived class moves what is there, and `pixels` and `png` draw just that.
    Width and height are in inches.
    """

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self._moving: list[Artist] = []
        self._background = None

    def pixels(self) -> np.ndarray:
        """Draw the figure as it stands, uint8 [height, width, 3]."""
        canvas = self.figure.canvas
        if self._background is None:
            # Hidden instead of "animated", which a figure that is saved leaves out.
            hidden = [artist for artist in self._moving if artist.get_visible()]
            for artist in hidden:
                artist.set_visible(False)
            canvas.draw()
            self._background = canvas.copy_from_bbox(self.figure.bbox)
            for artist in hidden:
                artist.set_visible(True)
        canvas.restore_region(self._background)
        for artist in self._moving:
            artist.draw(canvas.get_renderer())
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def png(self) -> bytes:
        """Return `pixels` as a PNG file, compressed in little time, with the figure's description in its metadata."""
        return _png(self.pixels(), self.figure.get_label())

    def _moves(self, artists: Iterable[Artist]) -> None:
        """Say which artists change. Others may too, if `_background` is set to None then."""
        self._moving = list(artists)


def explorer(draw: Callable[..., Figure], moving: MovingPicture | None = None, /, **controls: Any):
    """Box of widgets: the controls, the figure that `draw` makes of their values, and its description as text.

    Args:
        draw: takes the controls' values by their names and returns a described figure, in less than 100 ms if possible.
        moving: the picture whose figure `draw` returns, for what takes longer to build.
        controls: ipywidgets with a `value`.

    Returns:
        An ipywidgets.VBox. Its children are the controls in order, the image, the text.
    """
    import ipywidgets as widgets  # which only notebooks need

    image, text = widgets.Image(format="png"), widgets.HTML()

    def redraw(_=None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        image.value = _quick_png(figure) if moving is None else moving.png()
        text.value = f"<small>{escape(figure.get_label())}</small>"

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([*controls.values(), image, text])


def slider(description: str, value: int, lowest: int, highest: int):
    """Slider over whole numbers, with room for its description."""
    import ipywidgets as widgets

    style, layout = {"description_width": "14em"}, {"width": "36em"}
    return widgets.IntSlider(value, lowest, highest, description=description, style=style, layout=layout)


def _quick_png(figure: Figure) -> bytes:
    """Draw a figure as a PNG file in a third of the time of `savefig`, which draws twice and compresses thoroughly."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _png(np.asarray(canvas.buffer_rgba())[..., :3], figure.get_label())


def _png(pixels: np.ndarray, description: str) -> bytes:
    note, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    note.add_itxt("Description", description)
    Image.fromarray(pixels).save(buffer, "png", compress_level=1, pnginfo=note)
    return buffer.getvalue()
