"""Pictures of what three hosts did: runs as the parties' logs tell of them, and a long trial with many requests."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import CipherDMError
from .style import GREY, PALETTE, describe, new_figure


def event_table(logs: Sequence[str]) -> pd.DataFrame:
    """The lines of parties' logs in one table, in order of time.

    A line that is not JSON, such as one that a killed process was about to write, is an event called "not readable".

    Args:
        logs: what each party has logged, by rank.
    """
    rows = []
    for rank, log in enumerate(logs):
        for line in log.splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                rows.append({"time": rows[-1]["time"] if rows else None, "party": rank, "event": "not readable"})
    table = pd.DataFrame(rows)
    for column in ("time", "party", "event", "caller", "run", "model", "seconds", "reason"):
        if column not in table:
            table[column] = None
    table["time"] = pd.to_datetime(table["time"], utc=True)
    return table.sort_values("time", kind="stable", ignore_index=True)


def runs_of(events: pd.DataFrame) -> pd.DataFrame:
    """Each run at each party: when it was asked for and when it ended, in seconds since the first event, and how.

    A run whose end a party did not log, because the party was killed, is said to last until that party is ready again, or
    until the last event.

    Returns:
        The columns party, run, caller, model, begin, end, outcome ("done", "failed" or "no word").
    """
    since = (events["time"] - events["time"].min()).dt.total_seconds()
    events = events.assign(since=since)
    rows = []
    for asked in events[events["event"] == "run asked for"].itertuples():
        later = events[(events["since"] >= asked.since) & (events["party"] == asked.party)]
        ended = later[(later["run"] == asked.run) & later["event"].isin(["run done", "run failed"])]
        if len(ended):
            end, outcome = ended.iloc[0]["since"], ended.iloc[0]["event"].removeprefix("run ")
        else:
            ready = later[later["event"] == "ready"]
            end, outcome = (ready.iloc[0]["since"] if len(ready) else since.max()), "no word"
        rows.append((asked.party, asked.run, asked.caller, asked.model, asked.since, end, outcome))
    return pd.DataFrame(rows, columns=["party", "run", "caller", "model", "begin", "end", "outcome"])


def timeline(events: pd.DataFrame) -> Figure:
    """Runs as bars at each party, from being asked for to their end, with marks where a party was ready and a call denied.

    Args:
        events: as `event_table` returns them, or a part of them.

    Raises:
        CipherDMError: there are none.
    """
    if events.empty:
        raise CipherDMError("there are no events to draw; take another part of the log.")
    runs = runs_of(events)
    callers = list(dict.fromkeys(runs["caller"]))
    colours = {caller: PALETTE[index % len(PALETTE)] for index, caller in enumerate(callers)}
    figure = new_figure(8.6, 3.4)
    axis = figure.subplots()
    for party in range(3):
        mine = runs[runs["party"] == party].sort_values("begin")
        lanes = _lanes(mine)
        height = 0.72 / max(max(lanes, default=0) + 1, 1)
        for lane, run in zip(lanes, mine.itertuples(), strict=True):
            style = {"color": colours[run.caller]} if run.outcome == "done" else _unfinished(run, colours)
            top = party - 0.36 + lane * height
            axis.barh(top + height / 2, run.end - run.begin, height * 0.86, left=run.begin, **style)
    since = (events["time"] - events["time"].min()).dt.total_seconds()
    ready = events["event"] == "ready"
    if ready.any():
        axis.scatter(since[ready], events.loc[ready, "party"], marker="|", s=900, linewidths=2, color="black", zorder=3)
    axis.set_yticks(range(3), [f"party {party}" for party in range(3)])
    axis.set(xlabel="seconds", ylim=(2.6, -0.6), xlim=(-0.02 * max(since.max(), 1e-3), 1.03 * max(since.max(), 1e-3)))
    axis.spines[["top", "right"]].set_visible(False)
    handles = {f"run of {caller}": Patch(color=colour) for caller, colour in colours.items()}
    if (runs["outcome"] == "failed").any():
        handles["failed"] = Patch(facecolor="white", edgecolor=GREY, hatch="////")
    if (runs["outcome"] == "no word").any():
        handles["no word of its end"] = Patch(facecolor="white", edgecolor=GREY, linestyle=":", linewidth=1.5)
    if ready.any():
        handles["party ready"] = Line2D(
            [], [], color="black", marker="|", linestyle="", markersize=12, markeredgewidth=2
        )
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=max(len(handles), 1), frameon=False, fontsize=9
    )
    counts = runs.groupby(["party", "outcome"]).size()
    texts = [f"party {party}: {number} {outcome}" for (party, outcome), number in counts.items()]
    return describe(
        figure,
        f"Bars over {since.max():.1f} seconds, a row for each party and a bar for each run that it was asked for, of "
        f"{', '.join(callers) or 'nobody'}. {'; '.join(texts)}. A party got ready {int(ready.sum())} times.",
    )


def _lanes(runs: pd.DataFrame) -> list[int]:
    """For each run, in order of its begin, the lowest lane that no run before it is still in."""
    ends: list[float] = []
    lanes = []
    for run in runs.itertuples():
        lane = next((index for index, end in enumerate(ends) if end <= run.begin), len(ends))
        ends[lane : lane + 1] = [run.end]
        lanes.append(lane)
    return lanes


def _unfinished(run: Any, colours: Mapping[str, str]) -> dict[str, Any]:
    """White, with an edge in the caller's colour: hatched if it failed, dotted if nothing is known of its end."""
    style = {"facecolor": "white", "edgecolor": colours[run.caller], "linewidth": 1.5}
    return style | ({"hatch": "////"} if run.outcome == "failed" else {"linestyle": ":"})
