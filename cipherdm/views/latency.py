"""What dominates where, how well the latency model does, and what quality costs over the number of steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from ..costs import LAN, NETWORKS, WAN, Network
from ..costs.sampling import StepCost, shares
from .networks import PARTS
from .style import PALETTE, describe, new_figure

ROUND_TRIPS = (0.1e-3, 200e-3)  # seconds, the vertical extent of the map

BANDWIDTHS = (10e6, 10e9)  # bit/s, the horizontal one

_GRID = 121  # points on each axis of the map

_LABELS = {  # of each network, where its name stands: points from the mark, and how it is aligned
    "lan": ((-8, 9), "right"),
    "cheetah-lan": ((-8, -12), "right"),
    "wan": ((8, 6), "left"),
    "spu-wan": ((-8, -13), "right"),
    "narrow": ((8, 0), "left"),
}

SAMPLER_MARKERS = ("o", "s", "^")


def dominance_map(costs: Sequence[StepCost], networks: Mapping[str, Network] = NETWORKS) -> Figure:
    """What most of a step's time goes into over bandwidth and round trip, a panel for each way to compute it.

    Colours mix by the shares. Lines join networks on which a step takes the same time. The marks are networks.
    """
    trips, bands = np.geomspace(*ROUND_TRIPS, _GRID), np.geomspace(*BANDWIDTHS, _GRID)
    figure = new_figure(0.6 + 3.2 * len(costs), 3.9)
    axes = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    told = []
    for axis, cost in zip(axes, costs, strict=True):
        axis.pcolormesh(bands, trips, mixed_colours(shares(cost, trips, bands)), shading="gouraud", rasterized=True)
        total = cost.seconds + cost.rounds * trips[:, None] / 2 + 8 * cost.path_bytes / bands
        levels = [level for level in (1, 3, 10, 30, 100, 300) if 1.15 * total.min() < level < total.max()]
        axis.contour(bands, trips, total, levels, colors="white", linewidths=1.3)
        for level in levels:
            _label_contour(axis, cost, level)
        for name, network in networks.items():
            axis.plot(network.bandwidth, network.round_trip, "o", color="black", markersize=5, zorder=3)
            offset, align = _LABELS.get(name, ((8, 0), "left"))
            axis.annotate(
                network.name,
                (network.bandwidth, network.round_trip),
                offset,
                textcoords="offset points",
                fontsize=8,
                ha=align,
                va="center",
            )
        axis.set(xscale="log", yscale="log", xlim=BANDWIDTHS, ylim=ROUND_TRIPS, title=cost.variant)
        axis.title.set_fontsize(10)
        axis.xaxis.set_major_locator(FixedLocator([1e7, 1e8, 1e9, 1e10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits / 1e6:,.0f}"))
        axis.yaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{1000 * seconds:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        told.append(f"{cost.variant} on {LAN.name}: {_largest(cost, LAN)}, on {WAN.name}: {_largest(cost, WAN)}")
    axes[0].set_ylabel("round trip in ms")
    figure.supxlabel("bandwidth in Mbit/s", fontsize=10)
    handles = [Patch(color=colour, label=part) for part, colour in zip(PARTS, PALETTE, strict=False)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(PARTS), frameon=False)
    return describe(
        figure,
        f"Maps over bandwidth and round trip of what a step of {costs[0].model} spends most of its time on. "
        + "; ".join(told)
        + ".",
    )


def mixed_colours(parts: np.ndarray) -> np.ndarray:
    """[H, W, 3] colours for shares [3, H, W] of `PARTS`, the largest share drawn out so that regions are seen at a glance."""
    sharpened = parts**2 / (parts**2).sum(axis=0)
    colours = np.array([to_rgb(colour) for colour in PALETTE[: len(PARTS)]])
    return 0.2 + 0.8 * np.einsum("prc,pk->rck", sharpened, colours)


def _label_contour(axis: Axes, cost: StepCost, seconds: float) -> None:
    """Write on the line of so many seconds: where it is level, at the right, or if it does not get there, at the bottom."""
    band = 0.75 * BANDWIDTHS[1]
    trip = 2 * (seconds - cost.seconds - 8 * cost.path_bytes / band) / cost.rounds
    place = {"ha": "right", "va": "bottom" if trip < 0.7 * ROUND_TRIPS[1] else "top"}
    if not ROUND_TRIPS[0] < trip < ROUND_TRIPS[1]:
        trip = 1.15 * ROUND_TRIPS[0]
        waiting = seconds - cost.seconds - cost.rounds * trip / 2
        band = 1.08 * 8 * cost.path_bytes / waiting if waiting > 0 else 0
        place = {"ha": "left", "va": "bottom"}
    if BANDWIDTHS[0] < band < BANDWIDTHS[1]:
        axis.text(band, trip, f"{seconds:g} s", fontsize=8, color="white", fontweight="bold", **place)


def _largest(cost: StepCost, network: Network) -> str:
    found = cost.over(network)
    values = dict(zip(PARTS, (found.computing, found.delays, found.sending), strict=True))
    part = max(values, key=values.get)
    return f"{part} {values[part] / found.seconds:.0%} of {found.seconds:.3g} s"


def _pictures(count: int) -> str:
    return "one picture" if count == 1 else f"{count} pictures"
