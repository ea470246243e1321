"""Figures that follow a moving slider: drawn once, and from then on only what changes."""

import io
from collections.abc import Iterable

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from .style import DPI


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
