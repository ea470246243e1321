"""A picture of images as they come out of a run, with nothing to compare them with."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .sheet import draw_image


def image_row(images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Images side by side, ten in a row.

    Args:
        images: [N, C, H, W] in [-1, 1]; values outside are clipped. One or three channels.
        captions: N short texts, such as the labels.
    """
    columns = min(len(images), 10)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(0.2 + 0.95 * columns, 0.2 + 1.15 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        draw_image(axis, image, caption)
    return figure
