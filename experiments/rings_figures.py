"""Figures of rings by value: a step with its operations in the colours of their rings, and a slider over significant bits."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cipherdm.protocols import FAST, FAST_64, FAST_RINGS
from cipherdm.views.style import GREY, PALETTE, describe, frameless, image_axis, new_figure
from cipherdm.views.widgets import explorer, slider

from .recording import shown_pixels
from .rings import Rings, table

BYTES = np.arange(1, 9)
MAGNIFIED = 8
"""Factor by which drawn differences are enlarged."""

_REFERENCES = {FAST.name: (PALETTE[1], ":"), FAST_64.name: (PALETTE[2], "--")}


def step_in_rings(rings: Rings) -> Figure:
    """Draw the operations of a step in their order, as wide as their numbers are many and as high as their ring has bits.

    Colours are whole bytes, which is what a number takes in a message. Ticks below are cuts, and truncations that send nothing.
    """
    rows = [line.split() for line in rings.about["operations"]]
    kinds = np.array([kind for kind, *_ in rows])
    bits, counts = (np.array([int(row[place]) for row in rows]) for place in (1, 2))
    ends = np.cumsum(counts)
    starts, sizes = ends - counts, -(-bits // 8)
    figure = new_figure(8.8, 3.9)
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    colours = _by_bytes()
    axis.bar(starts / 1e3, bits, counts / 1e3, align="edge", color=[colours[size] for size in sizes], linewidth=0)
    axis.set(ylabel="bits of the ring", ylim=(0, 66), xlim=(0, ends[-1] / 1e3))
    axis.set_yticks(range(0, 65, 16))
    axis.grid(axis="y", color="#dddddd")
    axis.axhline(64, color=GREY, linestyle="--", linewidth=1)
    frameless(axis)
    present = sorted(set(sizes.tolist()))
    handles = [Patch(color=colours[size], label=f"{size} B") for size in present]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    for height, kind, colour in ((1, "cut", "black"), (0, "local", GREY)):
        below.plot(starts[kinds == kind] / 1e3, np.full((kinds == kind).sum(), height), "|", color=colour, markersize=9)
    below.set_yticks([1, 0], ["cuts", "local truncations"], fontsize=9)
    below.set(ylim=(-0.6, 1.6), xlabel="operations of a step in their order, as wide as their numbers, in thousands")
    below.tick_params(axis="y", length=0)
    frameless(below)
    of = {size: 100 * counts[sizes == size].sum() / ends[-1] for size in present}
    return describe(
        figure,
        f"A step of {rings.about['model']}: {len(rows)} operations on {ends[-1]:,} numbers, with rings of {bits.min()} to "
        f"{bits.max()} bits. Of the numbers, "
        + ", ".join(f"{share:.0f}% take {size} bytes" for size, share in of.items())
        + f". Truncations: {(kinds == 'cut').sum()} cuts and {(kinds == 'local').sum()} local ones.",
    )


def _by_bytes() -> dict[int, tuple]:
    import matplotlib

    norm, cmap = BoundaryNorm(np.arange(0.5, 9), 256), matplotlib.colormaps["viridis"]
    return {int(size): cmap(norm(size)) for size in BYTES}


def rings_picture(rings: Rings, significant: int) -> Figure:
    """Draw the image with so many significant bits, the exact one, their difference, and cost and error over the bits."""
    place = rings.significant[significant]
    row, steps = rings.about["rows"][place], rings.about["steps"]
    figure = new_figure(8.8, 3.3)
    figure.set_layout_engine("none")
    exact, found = rings.pictures[0], rings.pictures[place + 1]
    _images(figure, exact, found, significant)
    frame, bits = table(rings.about), np.array(list(rings.significant))
    for corner, (column, label) in zip(
        (0.62, 0.18), (("MB per step", "MB per step"), ("PSNR in dB", "PSNR in dB")), strict=True
    ):
        axis = figure.add_axes((0.6, corner, 0.36, 0.3))
        values = frame[column].to_numpy()[[*rings.significant.values()]]
        axis.plot(bits, values, "o-", color=PALETTE[0], markersize=3)
        axis.plot(significant, frame[column].iloc[place], "o", color="black", markersize=8)
        _reference_lines(axis, frame[column], bits[-1])
        axis.set(ylabel=label, xlim=(bits[0] - 0.5, bits[-1] + 2.2))
        axis.set_xticks(bits[::2])
        frameless(axis)
    axis.set_xlabel("significant bits of factors")
    sent, rounds = row["bytes"] / steps / 1e6, row["rounds"] / steps
    told = f"{sent:.1f} MB and {rounds:.0f} rounds per step, {row['psnr_db']:.1f} dB"
    figure.text(0.02, 0.94, f"{significant} significant bits: {told}", fontsize=11)
    others = [
        f"{name}: {frame['MB per step'][name]:.1f} MB, {frame['rounds per step'][name]:.0f} rounds, "
        f"{frame['PSNR in dB'][name]:.1f} dB"
        for name in _REFERENCES
    ]
    return describe(
        figure,
        f"The image with {significant} significant bits beside the exact one, and their difference {MAGNIFIED} times; {told}. "
        f"For comparison, {'; '.join(others)}.",
    )


def _images(figure: Figure, exact: np.ndarray, found: np.ndarray, significant: int) -> None:
    difference = np.clip(MAGNIFIED * (found.astype(int) - exact), -255, 255)
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255}
    panels = (("exact", exact, grey), (f"{significant} bits", found, grey))
    panels += ((f"difference, {MAGNIFIED} times", difference, {"cmap": "PuOr", "vmin": -255, "vmax": 255}),)
    for index, (title, levels, limits) in enumerate(panels):
        axis = figure.add_axes((0.02 + 0.17 * index, 0.3, 0.16, 0.45))
        axis.imshow(shown_pixels(levels), interpolation="nearest", **limits)
        image_axis(axis, title, 9)


def _reference_lines(axis: Axes, column, last: int) -> None:
    for name, (colour, line) in _REFERENCES.items():
        axis.axhline(column[name], color=colour, linestyle=line, linewidth=1.2)
        axis.text(last + 0.4, column[name], name, color=colour, fontsize=8, va="bottom")


def rings_explorer(rings: Rings):
    """`rings_picture` under a slider for the significant bits."""
    lowest, highest = min(rings.significant), max(rings.significant)
    return explorer(
        lambda significant: rings_picture(rings, significant),
        significant=slider("significant bits", FAST_RINGS.significant_bits, lowest, highest),
    )
