"""What each change on the way from the plain model to ours takes off a denoising step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .style import GREY, PALETTE, describe, new_figure

_QUANTITIES = {"seconds": ("seconds", 1.0), "bytes": ("MB, all parties", 1e-6), "sends": ("thousand messages", 1e-3)}


def ladder_figure(rows: Sequence[Mapping[str, Any]], batch: int = 1) -> Figure:
    """Time, bytes and messages of a step as bars, a rung below the other, from rows of `cipherdm bench ladder`."""
    rows = [row for row in rows if row["batch"] == batch]
    names, places = [row["variant"] for row in rows], np.arange(len(rows))
    figure = new_figure(8.2, 1.0 + 0.33 * len(rows))
    panels = figure.subplots(1, len(_QUANTITIES), sharey=True)
    told = []
    for axis, (column, (label, unit)), colour in zip(panels, _QUANTITIES.items(), PALETTE, strict=False):
        values = np.array([row[column] for row in rows]) * unit
        axis.barh(places, values, color=colour)
        for place, value in zip(places, values, strict=True):
            axis.text(value + 0.02 * values.max(), place, f"{value:,.3g}", va="center", fontsize=8, color=GREY)
        axis.set(xlabel=label, xlim=(0, 1.22 * values.max()))
        told.append(f"{label} " + ", ".join(f"{name} {value:,.3g}" for name, value in zip(names, values, strict=True)))
    panels[0].set_yticks(places, names)
    panels[0].invert_yaxis()
    return describe(
        figure, f"Bars, one step of {rows[0]['model']} with one change more at each rung: {'; '.join(told)}."
    )
