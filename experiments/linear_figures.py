"""The figure and the document's table of what linear layers cost, from the record of `cipherdm bench linear`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cipherdm.views.style import PALETTE, describe, frameless, new_figure

from .linear import WAYS, table
from .markdown import markdown, records_named, times


def linear_table(measurements: Path) -> str:
    """Return matrix products by SPU and by kernels on shares, as Markdown."""
    (record,) = records_named(measurements, "linear.json", "cipherdm bench linear")
    rows = [
        [row["shape"], row["way"], f"{row['ms']:,.0f}", f"{row['G/s']:.1f}", f"{row['MB']:,.1f}"]
        + [times(row["faster"]), times(row["fewer bytes"])]
        for row in table(record).to_dict("records")
    ]
    return markdown(["product", "by", "ms", "G multiply-adds/s", "MB", "faster", "fewer bytes"], rows)


TABLES = {"linear": linear_table}

_COLOURS = (PALETTE[7], PALETTE[0], PALETTE[1])  # of `WAYS`


def speeds(record: Mapping[str, Any]) -> Figure:
    """Draw time and bytes of each shape as bars, in each way relative to SPU's, with the numbers beside them."""
    rows = table(record)
    shapes = list(dict.fromkeys(rows["shape"]))
    figure = new_figure(8.6, 0.9 + 0.95 * len(shapes))
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1.35, 1)})
    texts = []
    for index, (way, colour) in enumerate(zip(WAYS, _COLOURS, strict=True)):
        for place, shape in enumerate(shapes):
            (row,) = rows[(rows["shape"] == shape) & (rows["way"] == way)].to_dict("records")
            height = place + 0.27 * (index - 1)
            label = way.replace("spu", "SPU") if place == 0 else None
            bars = (("faster", f"{row['ms']:,.0f} ms, {row['faster']:.1f}x"), ("fewer bytes", f"{row['MB']:.1f} MB"))
            for axis, (ratio, text) in zip(axes, bars, strict=True):
                axis.barh(height, 1 / row[ratio], height=0.25, color=colour, label=label)
                axis.text(1 / row[ratio], height, f" {text}", va="center", fontsize=8.5)
            texts.append(f"{shape}, {way}: {row['ms']:,.0f} ms, {row['faster']:.1f} times as fast, {row['MB']:.1f} MB")
    axes[0].set_yticks(np.arange(len(shapes)), shapes, fontsize=9)
    axes[0].invert_yaxis()
    for axis, quantity, room in zip(axes, ("time", "bytes"), (1.5, 1.4), strict=True):
        axis.set(xlabel=f"{quantity}, as a share of SPU's", xlim=(0, room))
        axis.set_xticks([0, 0.5, 1], ["0", "half", "all"])
        frameless(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS), frameon=False)
    return describe(figure, "Bars by shape and way. " + "; ".join(texts) + ".")
