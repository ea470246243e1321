"""Figures of images: secure beside plaintext, images in a row, and any arrays side by side."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import describe, image_axis, new_figure


def wrapped(prompt: str) -> str:
    """Break a prompt into lines that fit above its image."""
    return textwrap.fill(prompt, 26)


def sample_sheet(
    secure: np.ndarray,
    plaintext: np.ndarray,
    psnr: Sequence[float],
    captions: Sequence[str],
    *,
    across: int = 10,
    width: float = 0.95,
) -> Figure:
    """Draw each secure image below the plaintext one from the same noise, with its PSNR.

    Args:
        secure: [N, C, H, W] in [-1, 1]; values outside are clipped. One or three channels.
        plaintext: images of the same shape.
        psnr: N values in dB.
        captions: N short texts, such as the labels, of one line or several.
        across: images side by side.
        width: width of an image, in inches.
    """
    columns = min(len(secure), across)
    bands = -(-len(secure) // columns)
    height = 0.35 + (2 * width + 0.35 + 0.16 * _further_lines(captions)) * bands
    figure, axes = _image_grid(0.4 + width * columns, height, 2 * bands, columns)
    for index, caption in enumerate(captions):
        band, column = divmod(index, columns)
        draw_image(axes[2 * band, column], plaintext[index], caption)
        draw_image(axes[2 * band + 1, column], secure[index], f"{psnr[index]:.1f} dB")
    for row, axis in enumerate(axes[:, 0]):
        style = {"rotation": 90, "ha": "right", "va": "center", "transform": axis.transAxes}
        axis.text(-0.11 / width, 0.5, ("plaintext", "secure")[row % 2], **style)
    return figure


def image_row(images: np.ndarray, captions: Sequence[str], *, across: int = 10, width: float = 0.95) -> Figure:
    """Draw images side by side, `across` in a row; the arguments are those of `sample_sheet`."""
    columns = min(len(images), across)
    rows = -(-len(images) // columns)
    height = 0.2 + (width + 0.04 + 0.16 * (1 + _further_lines(captions))) * rows
    figure, axes = _image_grid(0.2 + width * columns, height, rows, columns)
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        draw_image(axis, image, caption)
    return figure


def image_panels(panels: Mapping[str, np.ndarray]) -> Figure:
    """Draw arrays [H, W] side by side by title, each from black for its smallest value to white for its largest."""
    figure = new_figure(8.0, 8.0 / len(panels) + 0.35)
    texts = []
    for axis, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axis.imshow(values, cmap="gray")
        image_axis(axis, title)
        texts.append(f"{title}: values from {values.min():.3g} to {values.max():.3g}, {_roughness(values)}")
    return describe(figure, "Pictures side by side. " + "; ".join(texts) + ".")


def draw_image(axis: Axes, image: np.ndarray, title: str) -> None:
    """Draw one image [C, H, W] in [-1, 1] into an axis, clipped to that range."""
    pixels = (np.clip(image, -1, 1).transpose(1, 2, 0) + 1) / 2
    axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9, pad=3, parse_math=False)  # a prompt may have dollar signs


def _image_grid(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _further_lines(captions: Sequence[str]) -> int:
    return max(caption.count("\n") for caption in captions)


def _roughness(values: np.ndarray) -> str:
    """Say whether neighbours are alike, as in a picture, or not, as in noise."""
    values = np.asarray(values, np.float64)
    spread = values.std()
    if spread == 0:
        return "all equal"
    steps = np.abs(np.diff(values, axis=1)).mean() / spread
    # Independent uniform words differ by a third of their range, 1.15 standard deviations, on average.
    return "noise" if steps > 1 else "a picture"
