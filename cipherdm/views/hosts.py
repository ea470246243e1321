"""Figures of three hosts: who calls whom, what each role may call, and runs as the parties' logs tell of them."""

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from ..errors import CipherDMError
from ..hosts.config import HostConfig
from ..hosts.inspection import DENIED, NOT_REACHED
from .style import GREY, PALETTE, describe, frameless, new_figure

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
    """Draw the three hosts of any party's configuration, their callers, and each connection on one of two planes."""
    figure = new_figure(9, 5.2)
    axis = figure.subplots()
    axis.set(xlim=(0, 10.2), ylim=(0.1, 5.7))
    axis.set_axis_off()
    for name, (height, text) in _CALLERS.items():
        _box(axis, _COLUMN_OF_CALLERS, height, name, text)
        for row in _ROWS.values():
            ends = (_COLUMN_OF_CALLERS + _BOX[0] / 2, _COLUMN_OF_PARTIES - _BOX[0] / 2)
            _line(axis, (ends[0], height), (ends[1], row), _CALLS, arrow=True)
    places = []
    for rank, (called, link) in enumerate(zip(host.caller.parties, host.links, strict=True)):
        ports = _ports(link, host.limits.runs)
        _box(axis, _COLUMN_OF_PARTIES, _ROWS[rank], f"party {rank}", f"calls at {called}\nlinks at {ports}")
        places.append(f"party {rank}, called at {called}, links at {ports}")
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
        "links of a run: gates, TLS 1.3 of another authority": Line2D([], [], color=_LINKS, linewidth=3),
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return describe(
        figure,
        "Left, a model owner, a client and an operator; right, three hosts. Each of the three on the left has a line to each "
        "host: gRPC with mutual TLS. Dashed lines of the same kind go from party 0 to parties 1 and 2. Thick lines join each "
        f"two hosts: SPU's links. {'; '.join(places)}.",
    )


def permissions(tried: pd.DataFrame, allowed: pd.DataFrame) -> Figure:
    """Draw what was let through and what was denied, and mark where that is not what the table of roles says.

    The arguments are what `hosts.attempts` and `hosts.table_of_roles` return.
    """
    codes, may = tried.to_numpy(), allowed.loc[tried.index, tried.columns].to_numpy(bool)
    denied, lost = codes == DENIED, np.isin(codes, list(NOT_REACHED))
    through = ~denied & ~lost
    figure = new_figure(8.2, 1.5 + 0.42 * len(tried))
    axis = figure.subplots()
    ring = {"marker": "o", "s": 330, "facecolors": "none", "edgecolors": "black"}
    marks = (
        ("let through", through, {"marker": "o", "s": 110, "color": PALETTE[0]}),
        ("permission denied", denied, {"marker": "x", "s": 70, "color": PALETTE[1], "linewidths": 2}),
        ("not even connected", lost, {"marker": "s", "s": 70, "color": GREY}),
        ("not what the table says", through != may, ring),
    )
    for label, chosen, style in marks:
        rows, columns = np.nonzero(chosen)
        if len(rows):
            axis.scatter(columns, rows, label=label, zorder=3, **style)
    axis.set_xticks(range(len(tried.columns)), tried.columns)
    axis.set_yticks(range(len(tried)), tried.index)
    axis.set(xlabel="call", xlim=(-0.6, len(tried.columns) - 0.4))
    axis.set(ylabel="certificate of", ylim=(len(tried) - 0.4, -0.6))
    axis.grid(color="#e5e5e5")
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    kept = {name: ", ".join(tried.columns[row]) or "none" for name, row in zip(tried.index, through, strict=True)}
    return describe(
        figure,
        f"A matrix of {len(tried)} certificates and {len(tried.columns)} calls. Let through were, for "
        f"{'; '.join(f'{name}: {calls}' for name, calls in kept.items())}. "
        f"{int(denied.sum())} calls were denied, {int((through != may).sum())} ended otherwise than the table says.",
    )


def event_table(logs: Sequence[str]) -> pd.DataFrame:
    """Read the lines of parties' logs into one table, in order of time.

    A line that is not JSON, such as one that a killed process was about to write, is an event called "not readable".
    """
    rows = []
    for rank, log in enumerate(logs):
        for line in log.splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                rows.append({"time": rows[-1]["time"] if rows else None, "party": rank, "event": "not readable"})
    table = pd.DataFrame(rows)
    columns = ("time", "party", "event", "caller", "run", "model", "seconds", "reason")
    table[[column for column in columns if column not in table]] = None
    table["time"] = pd.to_datetime(table["time"], utc=True)
    return table.sort_values("time", kind="stable", ignore_index=True)


def runs_of(events: pd.DataFrame) -> pd.DataFrame:
    """Find each run at each party: when it was asked for, when it ended, in seconds since the first event, and how.

    A run whose end a party did not log, because the party was killed, lasts until that party is ready again, or until the
    last event. The columns are party, run, caller, model, begin, end, outcome ("done", "failed" or "no word").
    """
    since = (events["time"] - events["time"].min()).dt.total_seconds()
    events = events.assign(since=since)
    rows = []
    for asked in events[events["event"] == "run asked for"].itertuples():
        later = events[(events["since"] >= asked.since) & (events["party"] == asked.party)]
        ended = later[(later["run"] == asked.run) & later["event"].isin(["run done", "run failed"])]
        ready = later[later["event"] == "ready"]
        end = [*ended["since"], *ready["since"], since.max()][0]
        outcome = ended.iloc[0]["event"].removeprefix("run ") if len(ended) else "no word"
        rows.append((asked.party, asked.run, asked.caller, asked.model, asked.since, end, outcome))
    return pd.DataFrame(rows, columns=["party", "run", "caller", "model", "begin", "end", "outcome"])


def timeline(events: pd.DataFrame) -> Figure:
    """Draw runs as bars at each party, from being asked for to their end, with marks where a party was ready.

    The events are those of `event_table`, or a part of them. Raises CipherDMError if there are none.
    """
    if events.empty:
        raise CipherDMError("there are no events to draw; take another part of the log.")
    runs = runs_of(events)
    colours = dict(zip(runs["caller"].unique(), itertools.cycle(PALETTE), strict=False))
    figure = new_figure(8.6, 3.4)
    axis = figure.subplots()
    for party in range(3):
        mine = runs[runs["party"] == party].sort_values("begin")
        lanes = _lanes(mine)
        height = 0.72 / (max(lanes, default=0) + 1)
        for lane, run in zip(lanes, mine.itertuples(), strict=True):
            style = {"facecolor": "white", "edgecolor": colours[run.caller], "linewidth": 1.5}
            if run.outcome == "done":
                style = {"color": colours[run.caller]}
            else:
                style |= {"hatch": "////"} if run.outcome == "failed" else {"linestyle": ":"}
            top = party - 0.36 + lane * height
            axis.barh(top + height / 2, run.end - run.begin, height * 0.86, left=run.begin, **style)
    since = (events["time"] - events["time"].min()).dt.total_seconds()
    ready = events["event"] == "ready"
    if ready.any():
        axis.scatter(since[ready], events.loc[ready, "party"], marker="|", s=900, linewidths=2, color="black", zorder=3)
    axis.set_yticks(range(3), [f"party {party}" for party in range(3)])
    last = max(since.max(), 1e-3)
    axis.set(xlabel="seconds", ylim=(2.6, -0.6), xlim=(-0.02 * last, 1.03 * last))
    frameless(axis)
    handles = {f"run of {caller}": Patch(color=colour) for caller, colour in colours.items()}
    if (runs["outcome"] == "failed").any():
        handles["failed"] = Patch(facecolor="white", edgecolor=GREY, hatch="////")
    if (runs["outcome"] == "no word").any():
        handles["no word of its end"] = Patch(facecolor="white", edgecolor=GREY, linestyle=":", linewidth=1.5)
    if ready.any():
        bar = {"marker": "|", "linestyle": "", "markersize": 12, "markeredgewidth": 2}
        handles["party ready"] = Line2D([], [], color="black", **bar)
    columns = max(len(handles), 1)
    figure.legend(handles.values(), handles, frameon=False, fontsize=9, loc="outside upper center", ncols=columns)
    counts = runs.groupby(["party", "outcome"]).size()
    texts = [f"party {party}: {number} {outcome}" for (party, outcome), number in counts.items()]
    return describe(
        figure,
        f"Bars over {since.max():.1f} seconds, a row for each party and a bar for each run that it was asked for, of "
        f"{', '.join(colours) or 'nobody'}. {'; '.join(texts)}. A party got ready {int(ready.sum())} times.",
    )


def _box(axis: Axes, x: float, y: float, title: str, text: str) -> None:
    width, height = _BOX
    corner = (x - width / 2, y - height / 2)
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "facecolor": "#f4f4f4", "edgecolor": GREY}
    axis.add_patch(FancyBboxPatch(corner, width, height, zorder=2, **style))
    axis.text(x, y + 0.3, title, ha="center", va="center", fontsize=11, weight="bold", zorder=3)
    axis.text(x, y - 0.17, text, ha="center", va="center", fontsize=9, zorder=3)


def _line(axis: Axes, begin, end, colour: str, *, arrow=False, dashed=False, bend=0.0) -> None:
    style = {
        "arrowstyle": "-|>" if arrow else "-",
        "linestyle": "--" if dashed else "-",
        "linewidth": 1.3 if arrow else 3,
    }
    place = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0, "zorder": 1}
    axis.add_patch(FancyArrowPatch(begin, end, mutation_scale=11, color=colour, **style, **place))


def _ports(link: str, runs: int) -> str:
    """ "20003 to 20004", the ports that a party's links use."""
    first = int(link.rpartition(":")[2])
    return f"{first}" if runs == 1 else f"{first} to {first + runs - 1}"


def _lanes(runs: pd.DataFrame) -> list[int]:
    """Choose for each run, in order of its begin, the lowest lane that no run before it is still in."""
    ends, lanes = [], []
    for run in runs.itertuples():
        lane = next((index for index, end in enumerate(ends) if end <= run.begin), len(ends))
        ends[lane : lane + 1] = [run.end]
        lanes.append(lane)
    return lanes
