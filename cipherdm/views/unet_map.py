"""A U-Net as a picture: its blocks in the order in which they are computed, at the size of picture that they look at."""

import re
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ..models import TIME_KINDS, unet_blocks
from ..models.config import Config
from .style import GREY, describe, new_figure

_SHORT = {
    "resnet": "residual", "downsample": "down", "upsample": "up", "conv_in": "in", "conv_out": "out",
    "self_attention": "attends\nto itself", "cross_attention": "attends\nto prompt", "feed_forward": "feed\nforward",
    "transformer_in": "enter", "transformer_out": "leave",
}  # fmt: skip


def unet_map(config: Config, sent: Mapping[str, float]) -> Figure:
    """Draw each block of a U-Net but those of time and prompt, left to right as computed, lower where pictures are smaller.

    Args:
        config: configuration of the U-Net.
        sent: bytes of each block by its name; the more, the darker it is.
    """
    depth = len(config.block_out_channels) - 1
    blocks = [block for block in unet_blocks(config) if block.kind not in (*TIME_KINDS, "context")]
    largest, total = max(sent[block.name] for block in blocks), sum(sent[block.name] for block in blocks)
    figure = new_figure(10.0, 0.8 + 0.95 * (depth + 1))
    axis, colours = figure.subplots(), matplotlib.colormaps["Oranges"]
    levels = [_level(block.name, depth) for block in blocks]
    for level in range(depth + 1):
        places = [place for place, at in enumerate(levels) if at == level]
        axis.plot([places[0], places[-1]], [-level, -level], ":", color=GREY, linewidth=1, zorder=0)
        axis.text(-1, -level, f"{config.sample_size >> level} x {config.sample_size >> level}", ha="right", va="center")
    axis.plot(range(len(levels)), [-level for level in levels], color="#cccccc", linewidth=1, zorder=0)
    for place, (block, level) in enumerate(zip(blocks, levels, strict=True)):
        cost = sent[block.name]
        colour = colours(0.75 * cost / largest)
        axis.add_patch(FancyBboxPatch((place - 0.38, -level - 0.22), 0.76, 0.44, "round,pad=0.1", fc=colour, ec=GREY))
        told = f"{_SHORT.get(block.kind, block.kind)}\n{cost / 1e6:.2g}"
        axis.text(place, -level, told, ha="center", va="center", fontsize=7.5)
    axis.set(xlim=(-2.6, len(blocks) - 0.4), ylim=(-depth - 0.6, 0.6))
    axis.axis("off")
    axis.set_title("MB of each block; dotted: what the way up takes from the way down", fontsize=10)
    by_kind = {}
    for block in blocks:
        by_kind[block.kind] = by_kind.get(block.kind, 0) + sent[block.name] / total
    said = ", ".join(f"{kind} {share:.0%}" for kind, share in sorted(by_kind.items(), key=lambda item: -item[1]))
    return describe(figure, f"The {len(blocks)} blocks of a U-Net of {depth + 1} sizes, and what they send: {said}.")


def _level(label: str, depth: int) -> int:
    """Return how often the picture is halved where this block works."""
    if found := re.match(r"(down|up)_blocks\.(\d+)\.", label):
        number = int(found[2])
        return number if found[1] == "down" else depth - number
    return depth if label.startswith("mid_block") else 0
