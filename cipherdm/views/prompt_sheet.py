"""Pictures that prompts asked for: secure beside plaintext, one row for each prompt."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

_ACROSS = 4  # prompts side by side


def prompt_sheet(secure: np.ndarray, plaintext: np.ndarray, psnr: Sequence[float], prompts: Sequence[str]) -> Figure:
    """Under each prompt the picture drawn in plaintext, and below it the secure one from the same noise, with its PSNR.

    Args:
        secure: [N, 3, H, W] in [-1, 1]; values outside are clipped.
        plaintext: the same shape.
        psnr: N values in dB.
        prompts: N texts, which are wrapped.
    """
    columns = min(len(secure), _ACROSS)
    bands = -(-len(secure) // columns)
    lines = [textwrap.wrap(prompt, 26) or [""] for prompt in prompts]
    height = 4.3 + 0.16 * max(map(len, lines))
    figure = Figure(figsize=(0.5 + 2.0 * columns, height * bands), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for index in range(len(secure)):
        band, column = divmod(index, columns)
        _draw(axes[2 * band, column], plaintext[index], "\n".join(lines[index]))
        _draw(axes[2 * band + 1, column], secure[index], f"{psnr[index]:.1f} dB")
    for band in range(bands):
        for row, text in ((2 * band, "plaintext"), (2 * band + 1, "secure")):
            axes[row, 0].text(-0.05, 0.5, text, rotation=90, ha="right", va="center", transform=axes[row, 0].transAxes)
    return figure


def _draw(axis, image: np.ndarray, title: str) -> None:
    axis.imshow((np.clip(image, -1, 1).transpose(1, 2, 0) + 1) / 2, interpolation="nearest")
    axis.set_title(title, fontsize=9, pad=4)
