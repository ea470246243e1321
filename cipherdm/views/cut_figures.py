"""Figures of one cut: who sends what in which round, how messages are distributed, and what openings give away."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cuts import NAMES, CutSeen, interval, told_apart
from .shares import message_player
from .style import PALETTE, describe, frameless, new_figure
from .widgets import Explorer

# What hides each message, in the order of `NAMES`.
_HIDDEN = {"z": "z₂ + share of zero", "c": "a b − c₀", "f": "v xor b", "e": "u xor a", "t0": "t₀ − y₀", "t1": "t₁ − y₂"}
_THEN = (
    "party 0 has x₀ = z₀ + z₂\nand its bit u,\nparty 1 its c₁",
    "party 1 can add up\ncomponent y₁",
    "party 0 can add up\ncomponent y₁, too",
)
_MOST_BINS = 64


def cut_diagram(seen: CutSeen) -> Explorer:
    """Messages of a cut of one number that needs wraps, as `message_player` shows them."""
    messages = [
        {
            "round": row.round,
            "sender": f"party {row.sender}",
            "receiver": f"party {row.receiver}",
            "text": f"{_HIDDEN[message.name]} = {row.word}, {row.bytes} B",
        }
        for message, row in zip(seen.messages, seen.table().itertuples(), strict=True)
    ]
    rounds = {n: {"before": f"round {n}", "after": f"then {then}"} for n, then in enumerate(_THEN, 1)}
    return message_player(messages, rounds)


def message_histograms(cuts: Mapping[str, CutSeen]) -> Figure:
    """Draw how often each word came, for two cuts by title with other numbers: a row per party, a panel per message.

    The band is where 99.7% of the bars of uniform words are.
    """
    (first, second), titles = cuts.values(), tuple(cuts)
    figure = new_figure(8.6, 4.4)
    axes, texts = figure.subplots(2, 3, width_ratios=(1, 0.45, 1)), []
    for party, row in enumerate(axes):
        columns = ("z", "f", "t1") if party == 0 else ("c", "e", "t0")
        for axis, name in zip(row, columns, strict=True):
            _histogram(axis, (first, second), titles, name)
            axis.set_title(f"party {party} receives {NAMES[name]}", fontsize=9.5)
        row[0].set_ylabel("% of all messages")
        p = told_apart(first, second, party)
        texts.append(f"Party {party}: the p-value that its messages have one distribution is {p:.2f}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return describe(figure, f"Histograms of received words, the two of each panel alike and flat. {'. '.join(texts)}.")


def _histogram(axis: Axes, pair: tuple[CutSeen, CutSeen], titles: tuple[str, ...], name: str) -> None:
    bits = pair[0].bits_of(name)
    bins, count = min(1 << bits, _MOST_BINS), len(pair[0].sent[name])
    expected = 100 / bins
    spread = 300 * np.sqrt((1 - 1 / bins) / bins / count)
    axis.axhspan(expected - spread, expected + spread, color="#dddddd", label="uniform words")
    for place, (seen, title) in enumerate(zip(pair, titles, strict=True)):
        place_of = (seen.sent[name] >> np.uint64(bits + 1 - bins.bit_length())).astype(np.int64)
        counts = np.bincount(place_of, minlength=bins)
        edges = np.arange(bins + 1) * 2.0**bits / bins
        style = {"linewidth": 1.4, "linestyle": ("-", ":")[place], "baseline": None}
        axis.stairs(100 * counts / count, edges, color=PALETTE[place], label=title, **style)
    axis.set(xlim=(0, 2.0**bits), ylim=(0, 2 * expected))
    axis.set_xticks([0.5, 1.5] if bits == 1 else [0, 2.0 ** (bits - 1), 2.0**bits])
    axis.set_xticklabels(["0", "1"] if bits == 1 else ["0", f"{1 << bits - 1:,}", f"{1 << bits:,}"])
    axis.set_xlabel("bit" if bits == 1 else "word", labelpad=1)
    frameless(axis)


def openings(seen: CutSeen, most: int = 4096) -> Figure:
    """Draw what openings of fresh cuts of one number give away, over how many were opened.

    Left, the number as a client finds it by the mean of the results; right, how many numbers party 1 takes for possible once it
    has seen the results.
    """
    count = np.arange(1, most + 1)
    step, number = 1 << seen.of.shift, int(seen.numbers[0])
    found = step * np.cumsum(seen.results[:most]) / count
    left_over = interval(seen, most)
    figure = new_figure(8.6, 3.2)
    left, right = figure.subplots(1, 2)
    left.axhspan(
        number // step * step, number // step * step + step, color="#eeeeee", label="numbers with these two results"
    )
    left.axhline(number, color="black", linestyle="--", linewidth=1, label=f"the number, {number:,}")
    left.plot(count, found, color=PALETTE[0], label=f"{step} times the mean of the results")
    left.set(xscale="log", xlabel="openings", ylabel="number", xlim=(1, most))
    left.set_ylim(number // step * step - 2.2 * step, number // step * step + 2 * step)
    left.set_title("A client alone", fontsize=10)
    left.legend(frameon=False, fontsize=8.5, loc="lower right")
    right.plot(count, left_over, color=PALETTE[1], drawstyle="steps-post")
    right.set(xscale="log", yscale="log", xlabel="openings", ylabel="numbers that are possible", xlim=(1, most))
    right.set_ylim(0.8, 1.6 * step)
    right.set_yticks([1, 4, 16, step], ["1", "4", "16", str(step)])
    right.set_title("A client together with party 1", fontsize=10)
    for axis in (left, right):
        frameless(axis)
        axis.set_xticks([10**power for power in range(4)], ["1", "10", "100", "1,000"])
        axis.minorticks_off()
        axis.grid(color="#e5e5e5")
    alone = 1 + int(np.argmax(left_over == 1)) if (left_over == 1).any() else None
    told = f"one is left after {alone} openings" if alone else f"{left_over[-1]} are left after {most} openings"
    return describe(
        figure,
        f"Two curves over 1 to {most:,} openings of fresh cuts of {number:,}. Left, {step} times the mean of the results "
        f"settles at the number; at the end it is {found[-1]:,.1f}. Right, the numbers that are possible to a client with "
        f"party 1: {left_over[0]} after one opening; {told}.",
    )
