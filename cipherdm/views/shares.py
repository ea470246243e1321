"""Figures of secret sharing: components on a clock, what one party sees and what two see, and what is sent to whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..sharing import Ring, additive_shares
from .style import PALETTE, describe, new_figure
from .widgets import Control, Explorer, slider

_COMPONENTS = PALETTE[:3]
_PEOPLE = {"client": "black", "party 0": PALETTE[0], "party 1": PALETTE[1], "party 2": PALETTE[2]}


def clock_explorer(bits: int = 4, draws: int = 21) -> Explorer:
    """Three components of a secret as turns around a clock of 2^bits hours: all, and those that each party has.

    Sliders choose the secret, and a draw of the components, by generators with the seeds 0, 1, ... With more than 6 bits, hours
    cannot be told apart.
    """
    components = [additive_shares(np.array(0), Ring(bits), np.random.default_rng(seed)) for seed in range(draws)]
    data = {"hours": 2**bits, "draws": [[int(word) for word in drawn[:2]] for drawn in components]}
    controls = {"secret": slider("secret", 5, 0, 2**bits - 1), "seed": slider("another draw", 0, 0, draws - 1)}
    return Explorer(controls, scene="clock", data=data)


def sightings(one_party: np.ndarray, two_parties: np.ndarray, secret: int, bits: int) -> Figure:
    """Draw the frequency of words in many sharings of one secret, as one party's component and as two parties' sum.

    Args:
        one_party: one party's component in each sharing.
        two_parties: sum of the three components that two parties have between them, in each sharing.
        secret: number that was shared.
        bits: bits of the ring, at most 8.
    """
    hours, count = 2**bits, len(one_party)
    figure = new_figure(8, 2.7)
    figure.set_layout_engine("none")
    axes = figure.subplots(1, 2, gridspec_kw={"left": 0.08, "right": 0.99, "top": 0.89, "bottom": 0.18, "wspace": 0.14})
    titles = (f"One party, secret {secret}: a component", f"Two parties, secret {secret}: the sum")
    for axis, words, title, colour in zip(axes, (one_party, two_parties), titles, PALETTE, strict=False):
        shares = 100 * np.bincount(np.asarray(words, np.int64), minlength=hours) / count
        axis.stairs(shares, np.arange(hours + 1) - 0.5, fill=True, color=colour, edgecolor="white")
        axis.axhline(100 / hours, color="black", linestyle="--", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="word", xlim=(-0.7, hours - 0.3), ylim=(0, max(200 / hours, 1.05 * shares.max())))
        # Ticks that are given are drawn sooner than those that have to be found.
        axis.set_xticks(range(0, hours, max(hours // 4, 1)))
        axis.set_yticks([0, 5, 10] if shares.max() < 15 else [0, 50, 100])
    axes[0].set_ylabel(f"% of {count:,} sharings")
    counts = np.bincount(np.asarray(one_party, np.int64), minlength=hours)
    return describe(
        figure,
        f"Two histograms of words over {count:,} sharings of {secret}; a dashed line at 1/{hours}. Left, one party's "
        f"component: each word came up {counts.min()} to {counts.max()} times. Right, two parties' sum: always {secret}.",
    )


def sighting_explorer(one_party: np.ndarray, two_parties: np.ndarray, bits: int) -> Explorer:
    """`sightings` under a slider for the secret, from words [secrets, sharings]."""

    def draw(secret: int) -> Figure:
        return sightings(one_party[secret], two_parties[secret], secret, bits)

    return Explorer({"secret": slider("secret", 0, 0, len(one_party) - 1)}, draw)


def product_grid() -> Figure:
    """Draw the nine products of components of x and y, each in the colour of the party that computes it."""
    figure = new_figure(4.4, 3.6)
    axis = figure.subplots()
    for party in range(3):
        after = (party + 1) % 3
        for row, column in ((party, party), (party, after), (after, party)):
            axis.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=_COMPONENTS[party]))
            style = {"ha": "center", "va": "center", "color": "white"}
            axis.text(column, row - 0.12, f"$x_{row}\\,y_{column}$", fontsize=13, **style)
            axis.text(column, row + 0.24, f"party {party}", fontsize=9, **style)
    axis.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), aspect="equal")
    axis.set_xticks(range(3), [f"$y_{index}$" for index in range(3)], fontsize=12)
    axis.set_yticks(range(3), [f"$x_{index}$" for index in range(3)], fontsize=12)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    return describe(
        figure,
        "A grid of the nine products of x's and y's components. Party 0 computes x0 y0, x0 y1 and x1 y0; party 1 computes "
        "x1 y1, x1 y2 and x2 y1; party 2 computes x2 y2, x2 y0 and x0 y2.",
    )


def message_diagram(table: pd.DataFrame) -> Explorer:
    """Messages from top to bottom, as `message_player` shows them.

    Of the rows of `Transcript.table()`, at most about twenty are readable.
    """
    messages = [
        {"round": row.round, "sender": row.sender, "receiver": row.receiver, "text": f"{row.bytes:,} bytes"}
        for row in table.itertuples()
    ]
    firsts = table.drop_duplicates("round").itertuples()
    names = {row.round: ": ".join(dict.fromkeys((row.operation, row.step))) for row in firsts}
    rounds = {number: {"before": f"round {number}\n{name}", "after": ""} for number, name in names.items()}
    return message_player(messages, rounds)


def message_player(messages: Sequence[Mapping[str, Any]], rounds: Mapping[int, Mapping[str, str]]) -> Explorer:
    """Messages as arrows between lines of people, a band per round, under controls that go message by message, party by party.

    Args:
        messages: round, sender, receiver and text of each.
        rounds: for each round, texts "before" and "after" it, left and right of its band.
    """
    people = {name: _PEOPLE[name] for name in _PEOPLE if any(name in (m["sender"], m["receiver"]) for m in messages)}
    controls = {
        "count": Control("messages so far", range(1, len(messages) + 1), len(messages), plays=True),
        "person": Control("messages of", ["", *people], "", ["everybody", *people], "choice"),
    }
    return Explorer(controls, scene="messages", data={"people": people, "messages": messages, "rounds": rounds})
