"""Pictures of plans in the colours of their rings: the operations of a step, and the steps of a layer by Ditto."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch

from ..kernels.rings import Made
from ..models.transformer import TransformerConfig
from ..protocols import DITTO
from ..sampling.ditto import ditto_nodes
from ..sampling.ditto_functions import Walked, down, up
from .style import GREY, PALETTE, describe, frameless, new_figure

RING_KINDS = {
    "32 bits, walked": PALETTE[0],
    "32 bits, compared by SPU": PALETTE[5],
    "conversion": PALETTE[4],
    "64 bits, SPU": PALETTE[1],
}
"""Ways in which Ditto computes a step, with their colours."""


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


def ditto_steps(config: TransformerConfig) -> pd.DataFrame:
    """Table of a classifier's steps by Ditto, in order: a row by the name of the first result.

    Columns are the block, the function, the way it is computed (one of RING_KINDS), and a tuple of rows that it reads from.
    """
    nodes = ditto_nodes(config, DITTO, ring=True, embedded=True)
    made = {name: node.outputs[0] for node in nodes for name in node.outputs}
    rows = {}
    for node in nodes:
        walked = isinstance(node.function, Walked)
        way = "32 bits, walked" if walked else "64 bits, SPU" if node.ring == 64 else "32 bits, compared by SPU"
        way = "conversion" if walked and node.function.function in (up, down) else way
        rows[node.outputs[0]] = {
            "block": node.label,
            "function": node.function.__name__,
            "computed": way,
            "reads": tuple(dict.fromkeys(made[name] for name in node.inputs if name in made)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def rings_of_layer(steps: pd.DataFrame, name: str) -> Figure:
    """Draw rows of `ditto_steps`, with "bytes" and "sends" of all parties besides, from top to bottom; bars are the bytes."""
    figure, rows = new_figure(8.8, 0.9 + 0.36 * len(steps)), range(len(steps))
    axis, bars = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    lanes = steps["computed"].map(dict(zip(RING_KINDS, (0, 0, 1, 2), strict=True)))
    colours, boxes = steps["computed"].map(RING_KINDS), {}
    for y, step in enumerate(steps.itertuples()):
        look = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colours.iloc[y], "linewidth": 2}
        place, words = (lanes.iloc[y], y), step.function.replace("_", " ")
        box = axis.text(*place, words, ha="center", va="center", fontsize=9, bbox=look).get_bbox_patch()
        boxes[step.Index] = place, box
        for start, before in (boxes[read] for read in step.reads if read in boxes):
            bend = f"arc3,rad={0.6 if start[0] == place[0] and y - start[1] > 1 else 0}"
            look = {"arrowstyle": "-|>", "mutation_scale": 10, "color": GREY, "patchA": before, "patchB": box}
            axis.add_patch(FancyArrowPatch(start, place, connectionstyle=bend, shrinkA=1, shrinkB=1, **look))
    axis.set(xlim=(-0.9, 2.5), ylim=(len(steps) - 0.4, -0.6), yticks=[])
    axis.set_xticks(range(3), ["ring of 32 bits", "between", "ring of 64 bits"])
    axis.tick_params(length=0, bottom=False, labelbottom=False, labeltop=True)
    axis.spines[:].set_visible(False)
    kilobytes = steps["bytes"] / 1000
    told = [f" {size:,.0f} KB, {sends}" for size, sends in zip(kilobytes, steps["sends"], strict=True)]
    bars.bar_label(bars.barh(rows, kilobytes, color=colours, height=0.7), told, fontsize=8.5)
    bars.set(xlim=(0, 1.5 * kilobytes.max()), xlabel="KB of all parties, and messages")
    frameless(bars)
    handles = [Patch(color=colour, label=way) for way, colour in RING_KINDS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    said = (f"{step.function} ({step.computed}) {step.bytes / 1000:,.0f} KB" for step in steps.itertuples())
    return describe(figure, f"Steps of {name} in their order, with the bytes of all parties: {'; '.join(said)}.")
