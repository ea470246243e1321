"""Where the time of one U-Net call goes, block by block, and what a party held: from records of `cipherdm bench full-call`."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .style import GREY, PALETTE, describe, new_figure

KINDS = {
    "context": ("cross-attention", PALETTE[4]),
    "self_attention": ("self-attention", PALETTE[1]),
    "cross_attention": ("cross-attention", PALETTE[4]),
    "feed_forward": ("feed-forward", PALETTE[5]),
    "resnet": ("residual block", PALETTE[3]),
}
"""How kinds of blocks are called, and their colours; all others are `OTHER`."""
OTHER = ("projections, resampling, ends", "#bbbbbb")
_NAMES = {"down_blocks": "down", "mid_block": "middle", "up_blocks": "up"}


def full_call_frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each block: part of the U-Net, kind as it is shown, seconds, MB, GiB held by the party that held most."""
    rows = pd.DataFrame(record["rows"])
    return pd.DataFrame(
        {
            "part": [_part(name) for name in rows["block"]],
            "kind": [KINDS.get(kind, OTHER)[0] for kind in rows["kind"]],
            "seconds": rows["seconds"],
            "MB": rows["bytes"] / 1e6,
            "rounds": rows["rounds"],
            "GiB": rows["peak_memory"] / 2**30,
        }
    )


def full_call_figure(record: Mapping[str, Any]) -> Figure:
    """Seconds of each part of the U-Net, stacked by kind of block; beside it the most memory that a party held in it.

    Parts are labelled with the height and width of what their layers take.
    """
    frame = full_call_frame(record)
    seconds = frame.pivot_table(index="part", columns="kind", values="seconds", aggfunc="sum", fill_value=0)
    parts = list(dict.fromkeys(frame["part"]))
    # Keys and values of the prompt are computed first, but belong to parts that come later.
    parts.sort(key=_place)
    colours = dict([*KINDS.values(), OTHER])
    seconds = seconds.reindex(index=parts, columns=list(colours), fill_value=0)
    memory = frame.groupby("part")["GiB"].max().reindex(parts)
    figure = new_figure(9.0, 1.3 + 0.3 * len(parts))
    time, held = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    left = pd.Series(0.0, index=parts)
    for kind, colour in colours.items():
        time.barh(range(len(parts)), seconds[kind], left=left, color=colour, height=0.75)
        left = left + seconds[kind]
    held.barh(range(len(parts)), memory, color=GREY, height=0.75)
    time.set(xlabel=f"seconds, of {record['seconds']:,.0f} in all")
    held.set(xlabel="GiB held by a party at most")
    time.set_yticks(range(len(parts)), [f"{part}, {_extent(part, record['config'])}" for part in parts], fontsize=9)
    time.invert_yaxis()
    for axis in (time, held):
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
    handles = [Patch(color=colour, label=kind) for kind, colour in colours.items() if seconds[kind].any()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    total, sums = record["seconds"], seconds.sum().sort_values(ascending=False)
    return describe(
        figure,
        f"Stacked bars for one call of a U-Net of {record['parameters'] / 1e6:.1f} million parameters under "
        f"{record['protocols']}, by part: {total:,.0f} seconds, of which {sums.index[0]} {sums.iloc[0] / total:.0%} and "
        f"{sums.index[1]} {sums.iloc[1] / total:.0%}. Beside it the memory that a party held at most in each part, "
        f"{memory.min():.2f} to {memory.max():.2f} GiB.",
    )


def _part(block: str) -> str:
    """ "down_blocks.0.resnets.1" to "down 0", "conv_in" to "first layer"."""
    head, _, rest = block.partition(".")
    if head not in _NAMES:
        return {"conv_in": "first layer", "conv_out": "last layer"}.get(head, head)
    return _NAMES[head] if head == "mid_block" else f"{_NAMES[head]} {rest.partition('.')[0]}"


def _extent(part: str, config: Mapping[str, Any]) -> str:
    """ "64 x 64": latents are halved from one level down to the next, and doubled on the way up."""
    size, last = config["sample_size"], len(config["block_out_channels"]) - 1
    way, *rest = part.split()
    levels = {"down": lambda: int(rest[0]), "middle": lambda: last, "up": lambda: last - int(rest[0])}
    halved = 2 ** levels.get(way, lambda: 0)()
    height, width = (size, size) if isinstance(size, int) else size
    return f"{-(-height // halved)} x {-(-width // halved)}"


def _place(part: str) -> tuple[int, str]:
    order = ("first", "down", "middle", "up", "last")
    return order.index(part.split()[0]), part
