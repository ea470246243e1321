"""The figure and the document's table of what linear layers cost, from the record of `cipherdm bench linear`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cipherdm.views.style import PALETTE, describe, new_figure

from .linear import WAYS, conversion_table, table
from .markdown import markdown, records_named, times


def linear_table(measurements: Path) -> str:
    """Return matrix products by SPU and by kernels on shares, and conversions between the rings, as Markdown."""
    (record,) = records_named(measurements, "linear.json", "cipherdm bench linear")
    rows = [
        [row["shape"], row["way"], f"{row['ms']:,.0f}", f"{row['G/s']:.1f}", f"{row['MB']:,.1f}"]
        + [times(row["faster"]), times(row["fewer bytes"])]
        for row in table(record).to_dict("records")
    ]
    rows += [
        [f"{row['elements']:,} numbers", row["conversion"], f"{row['ms']:,.0f}", "", f"{row['MB']:,.1f}", "", ""]
        for row in conversion_table(record).to_dict("records")
    ]
    return markdown(["product", "by", "ms", "G multiply-adds/s", "MB", "faster", "fewer bytes"], rows)


_NAMES = {"spu": "SPU"}

_COLOURS = dict(zip(WAYS, (PALETTE[7], PALETTE[0], PALETTE[1]), strict=True))


def speeds(record: Mapping[str, Any]) -> Figure:
    """Draw time and bytes of each shape as bars, in each way relative to SPU's, with the numbers beside them."""
    rows = table(record)
    shapes = list(dict.fromkeys(rows["shape"]))
    figure = new_figure(8.6, 0.9 + 0.95 * len(shapes))
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1.35, 1)})
    texts = []
    for index, way in enumerate(WAYS):
        for place, shape in enumerate(shapes):
            (row,) = rows[(rows["shape"] == shape) & (rows["way"] == way)].to_dict("records")
            height = place + 0.27 * (index - 1)
            style = {"height": 0.25, "color": _COLOURS[way], "label": _NAMES.get(way, way) if place == 0 else None}
            _bar(axes[0], height, 1 / row["faster"], f"{row['ms']:,.0f} ms, {row['faster']:.1f}x", style)
            _bar(axes[1], height, 1 / row["fewer bytes"], f"{row['MB']:.1f} MB", style)
            texts.append(f"{shape}, {way}: {row['ms']:,.0f} ms, {row['faster']:.1f} times as fast, {row['MB']:.1f} MB")
    axes[0].set_yticks(np.arange(len(shapes)), shapes, fontsize=9)
    axes[0].invert_yaxis()
    for axis, label, room in zip(
        axes, ("time, as a share of SPU's", "bytes, as a share of SPU's"), (1.5, 1.4), strict=True
    ):
        axis.set(xlabel=label, xlim=(0, room))
        axis.set_xticks([0, 0.5, 1], ["0", "half", "all"])
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS), frameon=False)
    return describe(figure, "Bars by shape and way. " + "; ".join(texts) + ".")


def _bar(axis, height: float, length: float, text: str, style: Mapping[str, Any]) -> None:
    axis.barh(height, length, **style)
    axis.text(length, height, f" {text}", va="center", fontsize=8.5)
