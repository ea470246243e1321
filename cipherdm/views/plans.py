"""A picture of a plan: the operations of a step in the colours of their rings."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..kernels.rings import Made
from .style import GREY, describe, frameless, new_figure


def rings_of_step(step: Sequence[Made], name: str) -> Figure:
    """Draw the operations of a step of a model of this name in their order.

    They are as wide as their numbers are many, and as high as their ring has bits. Colours are whole bytes, which is what a
    number takes in a message. Ticks below are cuts, and truncations that send nothing.
    """
    kinds = np.array([made.kind for made in step])
    bits, counts = np.array([made.bits for made in step]), np.array([made.numbers for made in step])
    ends = np.cumsum(counts)
    starts, sizes = ends - counts, -(-bits // 8)
    figure = new_figure(8.8, 3.9)
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    colours = _by_bytes()
    left, right, foot = starts / 1e3, ends / 1e3, np.zeros(len(bits))
    corners = np.stack([(left, foot), (left, bits), (right, bits), (right, foot)]).transpose(2, 0, 1)
    # One collection, since so many bars take seconds. Their edges keep narrow ones visible.
    axis.add_collection(PolyCollection(corners, color=[colours[size] for size in sizes], linewidth=0.3))
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
        f"A step of {name}: {len(step)} operations on {ends[-1]:,} numbers, with rings of {bits.min()} to "
        f"{bits.max()} bits. Of the numbers, "
        + ", ".join(f"{share:.0f}% take {size} bytes" for size, share in of.items())
        + f". Truncations: {(kinds == 'cut').sum()} cuts and {(kinds == 'local').sum()} local ones.",
    )


def _by_bytes() -> dict[int, tuple]:
    return {size: matplotlib.colormaps["viridis_r"]((size - 1) / 7) for size in range(1, 9)}
