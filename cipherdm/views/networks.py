"""Time of operations over a network: a plain figure, and sliders for the network."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from ..costs import WAN, Network, latency
from .style import GREY, PALETTE, describe, new_figure
from .widgets import Control, Explorer, MovingPicture

PARTS = ("computing", "messages on their way", "bytes on their way")


def parts(table: pd.DataFrame, network: Network) -> pd.DataFrame:
    """Milliseconds of each operation over a network, a column for each of `PARTS`, by the latency model.

    The table has operations by name, with columns ms, busiest_messages and busiest_bytes. Each message of the busiest party
    counts as a round, as if none could travel beside another, and all its bytes are on the path. That is near the number of
    rounds, which these records do not have.
    """
    found = latency(table["ms"] / 1000, table["busiest_messages"], table["busiest_bytes"], network)
    return 1000 * pd.concat((found.computing, found.delays, found.sending), axis=1, keys=PARTS)


def network_times(table: pd.DataFrame, networks: Sequence[Network]) -> Figure:
    """Draw the time of each operation as a stacked bar (see `parts`), a panel for each network."""
    figure = new_figure(max(6.5, 4.2 * len(networks)), 1.1 + 0.28 * len(table))
    axes = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    rows, texts = np.arange(len(table)), []
    for axis, network in zip(axes, networks, strict=True):
        times = parts(table, network)
        totals = times.sum(axis=1).to_numpy(float)
        left = np.zeros(len(table))
        for part, colour in zip(PARTS, PALETTE, strict=False):
            axis.barh(rows, times[part], left=left, color=colour, label=part)
            left = left + times[part].to_numpy(float)
        axis.set_xlim(0, 1.18 * totals.max())
        for row, total in zip(rows, totals, strict=True):
            axis.text(total + 0.01 * totals.max(), row, f"{total:,.0f}", va="center", fontsize=8, color=GREY)
        axis.set(title=str(network), xlabel="time in ms")
        axis.title.set_fontsize(10)
        texts.append(f"over {network.name} {table.index[int(totals.argmax())]} takes longest, {totals.max():,.0f} ms")
    axes[0].set_yticks(rows, table.index)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), frameon=False)
    return describe(figure, "Stacked bars, the time of each operation by network: " + "; ".join(texts) + ".")


def stack(bars: Sequence[BarContainer], widths: np.ndarray) -> None:
    """Set the widths [parts, rows] of stacked bars, each beginning where the one before it ends."""
    for part, lefts, row in zip(bars, np.cumsum(widths, axis=0) - widths, widths, strict=True):
        for bar, left, width in zip(part, lefts, row, strict=True):
            bar.set(x=left, width=width)


class SharesPicture(MovingPicture):
    """Bars of what an operation's time goes into over one network, in percent; `show` another network in the same axes."""

    def __init__(self, table: pd.DataFrame, network: Network):
        self._table = table
        height = 1.0 + 0.26 * len(table)
        super().__init__(7.4, height)
        axis = self.figure.add_axes((0.17, 0.55 / height, 0.68, 1 - 0.95 / height))
        rows, ones = np.arange(len(table)), np.ones(len(table))
        parts_colours = zip(PARTS, PALETTE, strict=False)
        self._bars = [axis.barh(rows, ones, color=colour, label=part) for part, colour in parts_colours]
        self._totals = [axis.text(102, row, "", va="center", fontsize=9) for row in rows]
        axis.set(xlim=(0, 100), xlabel="share of the time in %; total at the right")
        axis.set_yticks(rows, table.index)
        axis.invert_yaxis()
        self.figure.legend(*axis.get_legend_handles_labels(), loc="upper center", ncols=len(PARTS), frameon=False)
        self._moves([*(bar for bars in self._bars for bar in bars), *self._totals])
        self.show(network)

    def show(self, network: Network) -> Figure:
        """Show another network; returns the figure, with its description."""
        times = parts(self._table, network)
        totals = times.sum(axis=1)
        shares = 100 * times.div(totals.where(totals > 0, 1), axis=0)
        stack(self._bars, shares.to_numpy(float).T)
        for text, total in zip(self._totals, totals, strict=True):
            text.set_text(f"{total:,.0f} ms")
        texts = [f"{name} {row[PARTS[1]]:.0f}%" for name, row in shares.iterrows()]
        return describe(
            self.figure,
            f"Bars in percent of each operation's time over {1000 * network.round_trip:.3g} ms round trip and "
            f"{network.bandwidth / 1e6:.3g} Mbit/s. Messages on their way take of {', of '.join(texts)}.",
        )


def network_explorer(table: pd.DataFrame, network: Network = WAN) -> Explorer:
    """`SharesPicture` under sliders for the network's round trip and bandwidth."""
    picture = SharesPicture(table, network)

    def draw(round_trip: float, bandwidth: float) -> Figure:
        return picture.show(Network("chosen", round_trip / 1000, bandwidth * 1e6))

    return Explorer(network_controls(network, (0.1e-3, 0.5), (10e6, 10e9)), draw, picture)


def network_values(network: Network) -> dict[str, float]:
    """A network's round trip in ms and bandwidth in Mbit/s, as controls have them."""
    return {"round_trip": 1000 * network.round_trip, "bandwidth": network.bandwidth / 1e6}


def network_controls(
    network: Network, round_trips: tuple[float, float], bandwidths: tuple[float, float]
) -> dict[str, Control]:
    """Sliders for the round trip and the bandwidth that begin at a network, over round numbers between ends in s and bit/s."""
    start, steps = network_values(network), np.outer(10.0 ** np.arange(-1, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)).ravel()

    def control(name: str, label: str, ends: tuple[float, float]) -> Control:
        within = [float(f"{step:.3g}") for step in steps if 0.999 * ends[0] <= step <= 1.001 * ends[1]]
        values = sorted({*within, start[name]})
        return Control(label, values, start[name], [f"{value:,g}" for value in values])

    return {
        "round_trip": control("round_trip", "round trip in ms", tuple(1000 * end for end in round_trips)),
        "bandwidth": control("bandwidth", "bandwidth in Mbit/s", tuple(end / 1e6 for end in bandwidths)),
    }
