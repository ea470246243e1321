"""Pictures of samples: secure beside plaintext."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def sample_sheet(secure: np.ndarray, plaintext: np.ndarray, psnr: Sequence[float], captions: Sequence[str]) -> Figure:
    """Each secure image below the plaintext one from the same noise, with its PSNR.

    Args:
        secure: [N, C, H, W] in [-1, 1]; values outside are clipped. One or three channels.
        plaintext: the same shape.
        psnr: N values in dB.
        captions: N short texts, such as the labels.
    """
    columns = min(len(secure), 10)
    bands = -(-len(secure) // columns)
    figure = Figure(figsize=(0.4 + 0.95 * columns, 0.35 + 2.25 * bands), layout="constrained")
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
            axes[row, 0].text(-0.12, 0.5, text, rotation=90, ha="right", va="center", transform=axes[row, 0].transAxes)
    return figure


def draw_image(axis, image: np.ndarray, title: str) -> None:
    """One image [C, H, W] in [-1, 1] into a matplotlib axis, clipped to that range."""
    pixels = (np.clip(image, -1, 1).transpose(1, 2, 0) + 1) / 2
    axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9, pad=3)
