"""A picture at Stable Diffusion's size, projected over networks beside published figures; from `cipherdm bench full-call`."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..reproduce.full_size import LEFT_OUT, PUBLISHED, Picture, project
from .networks import PARTS
from .style import GREY, PALETTE, describe, new_figure

_PUBLISHED_COLOUR = "#bbbbbb"


def full_size_frame(record: Mapping[str, Any], picture: Picture = Picture()) -> pd.DataFrame:  # noqa: B008 (frozen)
    """A row for each network, then for each published figure: hours of `PARTS`, hours, GB, and what the row is of.

    Published figures are of as many steps as the picture, in proportion, and have no parts.
    """
    rows = [
        {
            "over": projection.name,
            **dict(zip(PARTS, (found.computing / 3600, found.delays / 3600, found.sending / 3600), strict=True)),
            "hours": found.seconds / 3600,
            "GB": projection.bytes / 1e9,
            "what": "as measured" if projection.network is None else str(projection.network).partition(": ")[2],
        }
        for projection in project(record, picture)
        for found in [projection.latency]
    ]
    for published in PUBLISHED:
        seconds, size = published.part(picture.steps)
        what = f"{published.measured}, of which {picture.steps} in proportion; {published.network}"
        rows.append({"over": published.name, "hours": seconds / 3600, "GB": size / 1e9, "what": what})
    return pd.DataFrame(rows).set_index("over")


def full_size_figure(record: Mapping[str, Any], picture: Picture = Picture()) -> Figure:  # noqa: B008 (frozen)
    """Hours of a picture as stacked bars, by network, and published figures below."""
    frame = full_size_frame(record, picture)
    ours, published = frame[frame[PARTS[0]].notna()], frame[frame[PARTS[0]].isna()]
    figure = new_figure(7.6, 1.7 + 0.42 * len(frame))
    axis = figure.subplots()
    left = pd.Series(0.0, index=ours.index)
    for part, colour in zip(PARTS, PALETTE, strict=False):
        axis.barh(range(len(ours)), ours[part], left=left, color=colour, height=0.7)
        left = left + ours[part]
    axis.barh(range(len(ours), len(frame)), published["hours"], color=_PUBLISHED_COLOUR, height=0.7)
    for place, (hours, size) in enumerate(zip(frame["hours"], frame["GB"], strict=True)):
        axis.text(hours + 0.01 * frame["hours"].max(), place, _told(hours, size), va="center", fontsize=9, color=GREY)
    axis.set_yticks(range(len(frame)), [_label(name, row["what"]) for name, row in frame.iterrows()], fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.3 * frame["hours"].max()), xlabel=f"hours of a picture of {picture.steps} steps")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    handles = [Patch(color=colour, label=part) for part, colour in zip(PARTS, PALETTE, strict=False)]
    handles.append(Patch(color=_PUBLISHED_COLOUR, label="as published"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    told = "; ".join(f"{name} {_told(row['hours'], row['GB'])}" for name, row in frame.iterrows())
    return describe(
        figure,
        f"Bars, the projected hours of a picture of {picture.steps} steps with {picture.calls} calls of a U-Net of "
        f"{record['parameters'] / 1e6:.1f} million parameters under {record['protocols']}: {told}. Not in them: "
        f"{'; '.join(LEFT_OUT)}.",
    )


def _label(name: str, what: str) -> str:
    """Two lines for a network; a published figure's conditions are too long for an axis, and stand in the table."""
    return f"{name}\n{what}" if len(what) < 40 else name


def _told(hours: float, size: float) -> str:
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    return f"{time}, {size:,.0f} GB"
