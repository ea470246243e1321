"""The paper's claimed ranges as bands, and what was measured in their place."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..reproduce.claims import CLAIMED
from .style import GREY, PALETTE, describe, new_figure

_AXES = {"time": "times less time", "bytes": "times fewer bytes"}
_BASELINES = {  # label, colour, marker
    "direct": ("against SPU's default", PALETTE[0], "o"),
    "direct-pade": ("against SPU with the Pade exponential", PALETTE[1], "s"),
}
_TICKS = (0.5, 1, 2, 5, 10, 20, 50)


def claims_figure(table: pd.DataFrame) -> Figure:
    """Gains in time and bytes of each set of protocols against both baselines, above the range that the paper claims.

    A thin line goes from the least to the most favourable runs. Right of 1 the set is cheaper than its baseline.

    Args:
        table: as `cipherdm.reproduce.claims.gains` returns it.
    """
    names = list(dict.fromkeys(zip(table["model"], table["protocols"], strict=True)))
    models = list(dict.fromkeys(table["model"]))
    places = {name: index + 0.8 * models.index(name[0]) for index, name in enumerate(names)}
    figure = new_figure(8.2, 1.7 + 0.33 * max(places.values(), default=1))
    panels = figure.subplots(1, 2, sharey=True)
    told = []
    for axis, (quantity, label) in zip(panels, _AXES.items(), strict=True):
        low, high = CLAIMED[quantity]
        axis.axvspan(low, high, color="#F0E442", alpha=0.45, linewidth=0, label="claimed by the paper", zorder=0)
        axis.axvline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        for baseline, (text, colour, marker) in _BASELINES.items():
            rows = table[table["baseline"] == baseline]
            height = [places[name] + (-0.13 if baseline == "direct" else 0.13) for name in _names(rows)]
            if quantity == "time":
                axis.hlines(height, rows["time_low"], rows["time_high"], color=colour, linewidth=1.2, zorder=2)
            axis.scatter(rows[quantity], height, color=colour, marker=marker, s=34, label=text, zorder=3)
        axis.set(xscale="log", xlabel=label)
        shown = [tick for tick in _TICKS if tick <= 1.3 * max(table[quantity].max(), table["time_high"].max())]
        axis.set_xticks(shown)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
        told.append(f"{label}, claimed {low} to {high}: " + "; ".join(_told(table, quantity, name) for name in names))
    panels[0].set_yticks(list(places.values()), [protocols for _, protocols in names])
    panels[0].set_ylim(max(places.values()) + 0.6, -0.6 - 0.5)
    for model in models:
        first = min(place for name, place in places.items() if name[0] == model)
        panels[0].text(
            0.02, first - 0.5, model, transform=panels[0].get_yaxis_transform(), fontsize=9, weight="bold", va="center"
        )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    return describe(
        figure,
        f"Two panels of points on logarithmic axes. {'. '.join(told)}. The first number is against SPU's default, the second "
        "against SPU with the Pade exponential.",
    )


def _names(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["model"], rows["protocols"], strict=True))


def _told(table: pd.DataFrame, quantity: str, name: tuple[str, str]) -> str:
    rows = table[(table["model"] == name[0]) & (table["protocols"] == name[1])].set_index("baseline")[quantity]
    values = [f"{rows[baseline]:.2f}" for baseline in _BASELINES if baseline in rows and np.isfinite(rows[baseline])]
    return f"{name[1]} on {name[0]} {' and '.join(values)}"
