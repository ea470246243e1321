"""A picture of images as they come out of a run, with nothing to compare them with."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .sheet import draw_image


def image_row(images: np.ndarray, captions: Sequence[str], *, across: int = 10, width: float = 0.95) -> Figure:
    """Images side by side, `across` in a row.

    Args:
        images: [N, C, H, W] in [-1, 1]; values outside are clipped. One or three channels.
        captions: N short texts, such as the labels, of one line or several.
        across: images in a row.
        width: of an image, in inches.
    """
    columns = min(len(images), across)
    rows = -(-len(images) // columns)
    lines = 1 + max(caption.count("\n") for caption in captions)
    figure = Figure(figsize=(0.2 + width * columns, 0.2 + (width + 0.04 + 0.16 * lines) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        draw_image(axis, image, caption)
    return figure
