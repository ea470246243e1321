"""Time of sampling by the latency model and what dominates: a map over networks, and sliders for all settings."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from ..costs import LAN, NETWORKS, WAN, Latency
from ..costs.sampling import StepCost, shares, step_costs
from ..errors import CipherDMError
from ..records import MEASUREMENTS
from .networks import PARTS, network_controls, network_values
from .style import PALETTE, describe, new_figure
from .widgets import Control, Explorer, switch

ROUND_TRIPS = (0.1e-3, 200e-3)  # seconds, the vertical extent of the map
BANDWIDTHS = (10e6, 10e9)  # bit/s, the horizontal one
FIRST = "mnist01-tiny"  # of the explorer
SHOWN = ("direct", "cipherdm", "fast")  # at first
STEPS = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
_GRID = 121  # points on each axis of the map

_LABELS = {  # position of each network's name, in points from the mark, and its alignment
    "lan": ((-8, 9), "right"),
    "cheetah-lan": ((-8, -12), "right"),
    "wan": ((8, 6), "left"),
    "spu-wan": ((-8, -13), "right"),
    "narrow": ((8, 0), "left"),
}

Costs = Mapping[str, Sequence[StepCost]]
"""Costs of each model's step, by the model's name."""


def dominance_map(costs: Sequence[StepCost]) -> Figure:
    """Map of what most of a step's time goes into, over bandwidth and round trip, a panel for each protocol set.

    Colours mix by the shares. Lines join networks on which a step takes the same time. The marks are networks.
    """
    trips, bands = _grid(_GRID)
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
        for name, network in NETWORKS.items():
            place = network.bandwidth, network.round_trip
            axis.plot(*place, "o", color="black", markersize=5, zorder=3)
            offset, align = _LABELS[name]
            style = {"textcoords": "offset points", "fontsize": 8, "ha": align, "va": "center"}
            axis.annotate(network.name, place, offset, **style)
        axis.set(xscale="log", yscale="log", xlim=BANDWIDTHS, ylim=ROUND_TRIPS)
        axis.set_title(cost.variant, fontsize=10, parse_math=False)
        axis.xaxis.set_major_locator(FixedLocator([1e7, 1e8, 1e9, 1e10]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits / 1e6:,.0f}"))
        axis.yaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{1000 * seconds:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        largest = []
        for network in (LAN, WAN):
            found = cost.over(network)
            part, share = _largest_part(found)
            largest.append(f"on {network.name}: {part} {share:.0%} of {found.seconds:.3g} s")
        told.append(f"{cost.variant} {', '.join(largest)}")
    axes[0].set_ylabel("round trip in ms")
    figure.supxlabel("bandwidth in Mbit/s", fontsize=10)
    handles = [Patch(color=colour, label=part) for part, colour in zip(PARTS, PALETTE, strict=False)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(PARTS), frameon=False)
    text = f"Maps over bandwidth and round trip of what a step of {costs[0].model} spends most of its time on. "
    return describe(figure, text + "; ".join(told) + ".")


def mixed_colours(parts: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3] for shares [3, H, W] of `PARTS`, the largest share drawn out so that regions are seen at a glance."""
    sharpened = parts**2 / (parts**2).sum(axis=0)
    colours = np.array([to_rgb(colour) for colour in PALETTE[: len(PARTS)]])
    return 0.2 + 0.8 * np.einsum("prc,pk->rck", sharpened, colours)


def load_costs(measurements: Path = MEASUREMENTS, models: Sequence[str] = ()) -> dict[str, tuple[StepCost, ...]]:
    """Read what a step costs, by model: of all models that were measured, or of these.

    The costs are those of `cipherdm bench step` for all batches, or of `cipherdm bench breakdown` if that has no rounds. Raises
    CipherDMError if no model was measured.
    """
    found, problem = {}, None
    models = models or [path.stem.removeprefix("step_") for path in sorted(measurements.glob("step_*.json"))]
    for model in (model for model in models if "_batch" not in model):
        for path in (measurements / f"step_{model}.json", measurements / f"breakdown_{model}.json"):
            try:
                batches = sorted(
                    measurements.glob(f"{path.stem}_batch*.json"), key=lambda p: int(p.stem.split("_batch")[1])
                )
                found.setdefault(model, tuple(cost for each in (path, *batches) for cost in step_costs(each)))
            except CipherDMError as error:
                problem = problem or error
    if not found:
        raise problem or CipherDMError(
            f"there are no costs of a step in {measurements}: make them with `cipherdm bench step`."
        )
    return found


def latency_explorer(costs: Costs | None = None) -> Explorer:
    """Bars of what sampling takes, and the network's place on a map, under controls for all that costs have been measured of.

    The map is that of the first protocol set shown. The costs are those that `load_costs` finds, unless some are given.
    """
    costs = load_costs() if costs is None else costs
    rows = [_row(cost) for model in costs.values() for cost in model]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    places = {str(each): network_values(each) for each in NETWORKS.values()}
    controls = {
        "model": Control("model", list(costs), FIRST if FIRST in costs else next(iter(costs)), kind="choice"),
        "network": Control("network", ["choose ...", *places], str(WAN), kind="choice", sets=[{}, *places.values()]),
        **network_controls(WAN, ROUND_TRIPS, BANDWIDTHS),
        "steps": Control("steps", STEPS, 20),
        "batch": Control("pictures at a time", sorted({row["batch"] for row in rows}), 1),
        **{name: switch(name, name in SHOWN) for name in variants},
    }
    data = {
        "costs": {model: [_row(cost) for cost in found] for model, found in costs.items()},
        "variants": variants,
        "networks": [{"name": each.name} | network_values(each) for each in NETWORKS.values()],
        "round_trips": [1000 * seconds for seconds in ROUND_TRIPS],
        "bandwidths": [bits / 1e6 for bits in BANDWIDTHS],
    }
    return Explorer(controls, scene="latency", data=data)


def _row(cost: StepCost) -> dict[str, Any]:
    """What the scene reads of a cost. Students with Quad are one variant, whatever their model is called."""
    row = {name: getattr(cost, name) for name in ("variant", "batch", "seconds", "rounds", "path_bytes")}
    return row | {"variant": row["variant"].replace(f" on {cost.model}-quad", ", with Quad")}


def _label_contour(axis: Axes, cost: StepCost, seconds: float) -> None:
    """Label the line of so many seconds: where it is level, at the right, or at the bottom if it does not get there."""
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


def _largest_part(found: Latency) -> tuple[str, float]:
    """The one of `PARTS` that takes longest, and its share."""
    seconds, part = max(zip(astuple(found), PARTS, strict=True))
    return part, seconds / found.seconds


def _grid(points: int) -> tuple[np.ndarray, np.ndarray]:
    return np.geomspace(*ROUND_TRIPS, points), np.geomspace(*BANDWIDTHS, points)
