"""Pictures of samples: secure beside plaintext."""

# FROM cipherdm.views.row:
# A picture of images as they come out of a run, with nothing to compare them with.

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

_WRAPPED = 26  # characters in a line of a prompt


def wrapped(prompt: str) -> str:
    """A prompt in lines that fit above its picture."""
    return textwrap.fill(prompt, _WRAPPED)


def sample_sheet(
    secure: np.ndarray,
    plaintext: np.ndarray,
    psnr: Sequence[float],
    captions: Sequence[str],
    *,
    across: int = 10,
    width: float = 0.95,
) -> Figure:
    """Each secure image below the plaintext one from the same noise, with its PSNR.

    Args:
        secure: [N, C, H, W] in [-1, 1]; values outside are clipped. One or three channels.
        plaintext: the same shape.
        psnr: N values in dB.
        captions: N short texts, such as the labels, of one line or several.
        across: images side by side.
        width: of an image, in inches.
    """
    columns = min(len(secure), across)
    bands = -(-len(secure) // columns)
    further_lines = max(caption.count("\n") for caption in captions)
    height = 0.35 + (2 * width + 0.35 + 0.16 * further_lines) * bands
    figure = Figure(figsize=(0.4 + width * columns, height), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index in range(len(secure)):
        band, column = divmod(index, columns)
        above, below = axes[2 * band, column], axes[2 * band + 1, column]
        draw_image(above, plaintext[index], captions[index])
        draw_image(below, secure[index], f"{psnr[index]:.1f} dB")
    for band in range(bands):
        for row, text in ((2 * band, "plaintext"), (2 * band + 1, "secure")):
            axes[row, 0].text(
                -0.11 / width, 0.5, text, rotation=90, ha="right", va="center", transform=axes[row, 0].transAxes
            )
    return figure


def draw_image(axis, image: np.ndarray, title: str) -> None:
    """One image [C, H, W] in [-1, 1] into a matplotlib axis, clipped to that range."""
    pixels = (np.clip(image, -1, 1).transpose(1, 2, 0) + 1) / 2
    axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9, pad=3)


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


def grey_levels(images: np.ndarray) -> np.ndarray:
    """uint8 levels of 0 to 255 for values of -1 to 1, as pictures are shown: clipped, and grey where not a number."""
    return np.round(127.5 * (np.clip(np.nan_to_num(images), -1, 1) + 1)).astype(np.uint8)
