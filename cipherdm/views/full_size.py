"""A picture at Stable Diffusion's size, projected over networks beside published figures; from `cipherdm bench full-call`."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..reproduce.full_size import LEFT_OUT, Picture, project, published_of
from .networks import PARTS
from .style import GREY, PALETTE, describe, new_figure

_PUBLISHED_COLOUR = "#bbbbbb"


def full_size_frame(record: Mapping[str, Any], picture: Picture = Picture()) -> pd.DataFrame:  # noqa: B008 (frozen)
    """A row for each network, then for each published figure: hours of `PARTS`, hours, GB, what it is of, also in short.

    Published figures are of as many steps as the picture, in proportion, and have no parts. They are left out if the record's
    U-Net is of another size.
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
    for published in published_of(record):
        seconds, size = published.part(picture.steps)
        what = f"{published.measured}, of which {picture.steps} in proportion; {published.network}"
        short = f"{picture.steps} of {published.steps} steps, in proportion"
        rows.append({"over": published.name, "hours": seconds / 3600, "GB": size / 1e9, "what": what, "short": short})
    frame = pd.DataFrame(rows, columns=["over", *PARTS, "hours", "GB", "what", "short"]).set_index("over")
    return frame.assign(short=frame["short"].fillna(frame["what"]))


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
    axis.set_yticks(range(len(frame)), [f"{name}\n{short}" for name, short in frame["short"].items()], fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.3 * frame["hours"].max()), xlabel=f"hours for a picture of {picture.steps} steps, projected")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    handles = [Patch(color=colour, label=part) for part, colour in zip(PARTS, PALETTE, strict=False)]
    if len(published):
        handles.append(Patch(color=_PUBLISHED_COLOUR, label="as published"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    told = "; ".join(f"{name} {_told(row['hours'], row['GB'])}" for name, row in frame.iterrows())
    return describe(
        figure,
        f"Bars, the projected hours of a picture of {picture.steps} steps with {picture.calls} calls of a U-Net of "
        f"{record['parameters'] / 1e6:.1f} million parameters under {record['protocols']}: {told}. Not in them: "
        f"{'; '.join(LEFT_OUT)}.",
    )


def _told(hours: float, size: float) -> str:
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    return f"{time}, {size:,.0f} GB"
