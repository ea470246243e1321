"""Figures of rings by value: the image, its cost and its error, under a slider for the significant bits."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cipherdm.protocols import FAST, FAST_64, FAST_RINGS
from cipherdm.views.style import PALETTE, describe, frameless, image_axis, new_figure
from cipherdm.views.widgets import Explorer, slider

from .recording import shown_pixels
from .rings import Rings, table

MAGNIFIED = 8
"""Factor by which drawn differences are enlarged."""

_REFERENCES = {FAST.name: (PALETTE[1], ":"), FAST_64.name: (PALETTE[2], "--")}


def rings_picture(rings: Rings, significant: int) -> Figure:
    """Draw the image with so many significant bits, the exact one, their difference, and cost and error over the bits."""
    place, steps = rings.significant[significant], rings.about["steps"]
    row, frame = rings.about["rows"][place], table(rings.about)
    figure = new_figure(8.8, 3.4)
    figure.set_layout_engine("none")
    _images(figure, *rings.pictures[[0, place + 1]], significant)
    above, below = (figure.add_axes((0.62, corner, 0.365, 0.33)) for corner in (0.6, 0.14))
    _over_bits(above, rings, frame["MB per step"], significant)
    above.set(ylabel="MB per step", ylim=(0, 1.1 * frame["MB per step"].max()))
    _over_bits(below, rings, frame["PSNR in dB"], significant)
    bits, to_fast = [*rings.significant], frame["PSNR to fast-64"].iloc[[*rings.significant.values()]]
    below.plot(bits, to_fast, ".-", color=PALETTE[5], linewidth=1, label="rings by value, to the image of fast-64")
    below.set(ylabel="PSNR in dB", xlabel="significant bits of factors")
    figure.legend(*below.get_legend_handles_labels(), loc=(0.02, 0.02), frameon=False, fontsize=9, labelspacing=0.25)
    sent, rounds = row["bytes"] / steps / 1e6, row["rounds"] / steps
    told = f"{sent:.1f} MB and {rounds:.0f} rounds per step, {row['psnr_db']:.1f} dB"
    figure.text(0.02, 0.93, f"{significant} significant bits: {told}", fontsize=11)
    others = (
        f"{name} {frame['MB per step'][name]:.1f} MB, {frame['rounds per step'][name]:.0f} rounds, "
        f"{frame['PSNR in dB'][name]:.1f} dB"
        for name in _REFERENCES
    )
    return describe(
        figure,
        f"The image with {significant} significant bits beside the exact one, and their difference {MAGNIFIED} times: {told}. "
        f"Right, megabytes and PSNR over the bits. For comparison, {'; '.join(others)}.",
    )


def _images(figure: Figure, exact: np.ndarray, found: np.ndarray, significant: int) -> None:
    difference = np.clip(MAGNIFIED * (found.astype(int) - exact), -255, 255)
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255}
    panels = (("exact functions", exact, grey), (f"{significant} significant bits", found, grey))
    panels += ((f"difference, {MAGNIFIED} times", difference, {"cmap": "PuOr", "vmin": -255, "vmax": 255}),)
    for index, (title, levels, limits) in enumerate(panels):
        axis = figure.add_axes((0.02 + 0.18 * index, 0.38, 0.17, 0.44))
        axis.imshow(shown_pixels(levels), interpolation="nearest", **limits)
        image_axis(axis, title, 9)


def _over_bits(axis: Axes, rings: Rings, column: pd.Series, significant: int) -> None:
    """Plot a column of `table` over the significant bits, mark one number of them, and draw the other ways as lines."""
    for name, (colour, line) in _REFERENCES.items():
        axis.axhline(column[name], color=colour, linestyle=line, linewidth=1.4, label=name)
    bits, places = [*rings.significant], [*rings.significant.values()]
    axis.plot(bits, column.iloc[places], ".-", color=PALETTE[0], label="rings by value")
    axis.plot(significant, column.iloc[rings.significant[significant]], "o", color="black", markersize=8)
    axis.set_xticks(bits[::2])
    axis.grid(color="#e5e5e5")
    frameless(axis)


def rings_explorer(rings: Rings) -> Explorer:
    """`rings_picture` under a slider for the significant bits."""
    bits = slider("significant bits", FAST_RINGS.significant_bits, min(rings.significant), max(rings.significant))
    return Explorer({"significant": bits}, lambda significant: rings_picture(rings, significant))
