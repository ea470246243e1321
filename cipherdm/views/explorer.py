"""A figure under sliders, with its description in words below it."""

from collections.abc import Callable
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


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
