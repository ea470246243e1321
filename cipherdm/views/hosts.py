"""Pictures of three hosts: who calls whom on which plane, and what each role may call and was denied."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ..hosts.config import HostConfig
from ..hosts.inspection import DENIED, NOT_REACHED
from .style import GREY, PALETTE, describe, new_figure

_CALLS, _LINKS = PALETTE[0], PALETTE[1]

_BOX = (2.7, 1.15)  # width and height

_COLUMN_OF_CALLERS, _COLUMN_OF_PARTIES = 1.5, 7.2

_ROWS = {1: 4.9, 0: 2.9, 2: 0.9}  # party 0 in the middle, because it talks to both others

_CALLERS = {
    "model owner": (4.9, "brings shares of weights,\nprograms and a plan"),
    "client": (2.9, "brings shares of its inputs,\ngets shares of its outputs"),
    "operator": (0.9, "asks how the parties are"),
}


def who_is_where(host: HostConfig) -> Figure:
    """The three hosts of a configuration and their callers, and on which of two planes each connection is.

    Args:
        host: the configuration of any of the three parties.
    """
    figure = new_figure(9, 5.2)
    axis = figure.subplots()
    axis.set(xlim=(0, 10.2), ylim=(0.1, 5.7))
    axis.set_axis_off()
    for name, (height, text) in _CALLERS.items():
        _box(axis, _COLUMN_OF_CALLERS, height, name, text)
        for row in _ROWS.values():
            ends = (_COLUMN_OF_CALLERS + _BOX[0] / 2, _COLUMN_OF_PARTIES - _BOX[0] / 2)
            _line(axis, (ends[0], height), (ends[1], row), _CALLS, arrow=True)
    for rank, row in _ROWS.items():
        ports = _ports(host, rank)
        _box(axis, _COLUMN_OF_PARTIES, row, f"party {rank}", f"calls at {host.caller.parties[rank]}\nlinks at {ports}")
    for rank in (1, 2):
        towards = np.sign(_ROWS[rank] - _ROWS[0]) * _BOX[1] / 2
        begin, end = _ROWS[0] + towards, _ROWS[rank] - towards
        _line(axis, (_COLUMN_OF_PARTIES, begin), (_COLUMN_OF_PARTIES, end), _CALLS, arrow=True, dashed=True)
    right = _COLUMN_OF_PARTIES + _BOX[0] / 2
    for one, other, bend in ((1, 0, -0.35), (0, 2, -0.35), (1, 2, -0.55)):
        _line(axis, (right, _ROWS[one]), (right, _ROWS[other]), _LINKS, bend=bend)
    handles = {
        "calls of roles: gRPC, mutual TLS": Line2D([], [], color=_CALLS),
        "party 0 says when a run is computed: gRPC likewise": Line2D([], [], color=_CALLS, linestyle="--"),
        "links of a run: SPU, mutual TLS of another authority": Line2D([], [], color=_LINKS, linewidth=3),
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    places = "; ".join(
        f"party {rank}, called at {host.caller.parties[rank]}, links at {_ports(host, rank)}" for rank in range(3)
    )
    return describe(
        figure,
        "Left, a model owner, a client and an operator; right, three hosts. Each of the three on the left has a line to each "
        "host: gRPC with mutual TLS. Dashed lines of the same kind go from party 0 to parties 1 and 2. Thick lines join each "
        f"two hosts: SPU's links. {places}.",
    )


def permissions(tried: pd.DataFrame, allowed: pd.DataFrame) -> Figure:
    """What was let through and what was denied, and where that is not what the table of roles says.

    Args:
        tried: as `hosts.attempts` returns it.
        allowed: as `hosts.table_of_roles` does, with the same rows and columns.
    """
    codes, may = tried.to_numpy(), allowed.loc[tried.index, tried.columns].to_numpy(bool)
    denied, lost = codes == DENIED, np.isin(codes, list(NOT_REACHED))
    through = ~denied & ~lost
    figure = new_figure(8.2, 1.5 + 0.42 * len(tried))
    axis = figure.subplots()
    marks = (
        ("let through", through, {"marker": "o", "s": 110, "color": PALETTE[0]}),
        ("permission denied", denied, {"marker": "x", "s": 70, "color": PALETTE[1], "linewidths": 2}),
        ("not even connected", lost, {"marker": "s", "s": 70, "color": GREY}),
        (
            "not what the table says",
            through != may,
            {"marker": "o", "s": 330, "facecolors": "none", "edgecolors": "black"},
        ),
    )
    for label, chosen, style in marks:
        rows, columns = np.nonzero(chosen)
        if len(rows):
            axis.scatter(columns, rows, label=label, zorder=3, **style)
    axis.set_xticks(range(len(tried.columns)), tried.columns)
    axis.set_yticks(range(len(tried)), tried.index)
    axis.set(xlim=(-0.6, len(tried.columns) - 0.4), ylim=(len(tried) - 0.4, -0.6))
    axis.set(xlabel="call", ylabel="certificate of")
    axis.grid(color="#e5e5e5")
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    rows = [
        f"{name}: {', '.join(tried.columns[kept]) or 'none'}" for name, kept in zip(tried.index, through, strict=True)
    ]
    return describe(
        figure,
        f"A matrix of {len(tried)} certificates and {len(tried.columns)} calls. Let through were, for {'; '.join(rows)}. "
        f"{int(denied.sum())} calls were denied, {int((through != may).sum())} ended otherwise than the table says.",
    )


def _box(axis: Axes, x: float, y: float, title: str, text: str) -> None:
    width, height = _BOX
    corner = (x - width / 2, y - height / 2)
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "facecolor": "#f4f4f4", "edgecolor": GREY}
    axis.add_patch(FancyBboxPatch(corner, width, height, zorder=2, **style))
    axis.text(x, y + 0.3, title, ha="center", va="center", fontsize=11, weight="bold", zorder=3)
    axis.text(x, y - 0.17, text, ha="center", va="center", fontsize=9, zorder=3)


def _line(
    axis: Axes,
    begin: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    *,
    arrow: bool = False,
    dashed: bool = False,
    bend: float = 0.0,
) -> None:
    axis.add_patch(
        FancyArrowPatch(
            begin,
            end,
            arrowstyle="-|>" if arrow else "-",
            mutation_scale=11,
            connectionstyle=f"arc3,rad={bend}",
            linestyle="--" if dashed else "-",
            linewidth=1.3 if arrow else 3,
            color=colour,
            shrinkA=0,
            shrinkB=0,
            zorder=1,
        )
    )


def _ports(host: HostConfig, rank: int) -> str:
    """ "20003 and 20004", the ports that the party's links use."""
    first = int(host.links[rank].rpartition(":")[2])
    last = first + host.limits.runs - 1
    return f"{first}" if last == first else f"{first} to {last}"
