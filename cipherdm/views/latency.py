"""Time of sampling by the latency model and what dominates: a map over networks, and sliders for all settings."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from ..costs import LAN, NETWORKS, WAN, Latency, Network
from ..costs.sampling import StepCost, cost_of, shares, step_costs
from ..errors import CipherDMError
from ..progress import duration
from ..records import MEASUREMENTS
from .networks import PARTS, network_sliders, stack
from .style import PALETTE, describe, frameless, new_figure
from .widgets import MovingPicture, explorer

ROUND_TRIPS = (0.1e-3, 200e-3)  # seconds, the vertical extent of the map
BANDWIDTHS = (10e6, 10e9)  # bit/s, the horizontal one
MODELS = ("mnist01-tiny", "mnist10")
SHOWN = ("direct", "cipherdm", "fast")  # at first
STEPS = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500, 1000)
_GRID, _MOVING_GRID = 121, 61  # points on each axis of the map, and of the one that follows sliders

_LABELS = {  # position of each network's name, in points from the mark, and its alignment
    "lan": ((-8, 9), "right"),
    "cheetah-lan": ((-8, -12), "right"),
    "wan": ((8, 6), "left"),
    "spu-wan": ((-8, -13), "right"),
    "narrow": ((8, 0), "left"),
}

_ROWS = 7  # bars at most
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


class LatencyPicture(MovingPicture):
    """Bars of what sampling takes, and the network's place on the map; `show` other settings without building it anew.

    The map is that of the first protocol set shown.
    """

    def __init__(self, costs: Costs):
        self._costs = costs
        super().__init__(9.6, 3.4)
        where = self.figure.add_axes((0.065, 0.16, 0.22, 0.66))
        bars = self.figure.add_axes((0.43, 0.16, 0.54, 0.66))
        low, high = np.log10(BANDWIDTHS), np.log10(ROUND_TRIPS)
        blank = np.ones((_MOVING_GRID, _MOVING_GRID, 3))
        self._map = where.imshow(blank, extent=(*low, *high), origin="lower", aspect="auto", interpolation="bilinear")
        places = zip(*map(_place, NETWORKS.values()), strict=True)
        self._networks = where.plot(*places, "o", color="black", markersize=3.5)
        self._here = where.plot([0], [0], "+", color="black", markersize=13, markeredgewidth=2.5)[0]
        where.set(xlim=low, ylim=high, xlabel="bandwidth in Mbit/s", ylabel="round trip in ms")
        where.set_xticks([7, 8, 9, 10], ["10", "100", "1,000", "10,000"], fontsize=8)
        where.set_yticks([-4, -3, -2, -1], ["0.1", "1", "10", "100"], fontsize=8)
        self._about = where.text(0.5, 1.03, "", ha="center", fontsize=10, transform=where.transAxes)
        self._bars = [bars.barh(range(_ROWS), [0] * _ROWS, color=colour) for colour in PALETTE[: len(PARTS)]]
        self._names = [bars.text(-2, row, "", va="center", ha="right", fontsize=9) for row in range(_ROWS)]
        self._totals = [bars.text(0, row, "", va="center", fontsize=9) for row in range(_ROWS)]
        self._title = bars.text(0, 1.03, "", fontsize=10, transform=bars.transAxes, parse_math=False)
        bars.set(xlim=(0, 156), ylim=(_ROWS - 0.5, -0.5), xticks=[0, 25, 50, 75, 100], yticks=[])
        bars.set_xlabel("share of the slowest one's time in %")
        frameless(bars)
        place = {"loc": "upper right", "bbox_to_anchor": (0.97, 1.0)}
        self.figure.legend(self._bars, PARTS, ncols=len(PARTS), frameon=False, **place)
        bars_and_texts = [*(bar for found in self._bars for bar in found), *self._names, *self._totals]
        self._moves([self._map, *self._networks, self._here, self._about, self._title, *bars_and_texts])

    def show(self, model: str, batch: int, steps: int, network: Network, variants: Sequence[str] = SHOWN) -> Figure:
        """Show other settings; returns the figure, with its description. Raises CipherDMError for what is not recorded."""
        costs = [cost_of(self._costs[model], variant, batch) for variant in variants][:_ROWS]
        found = [cost.over(network, steps) for cost in costs]
        totals = []
        for one in found:
            part, share = _largest_part(one)
            totals.append(f"{duration(one.seconds)}, {100 * share:.0f}% {part.split(' ')[0]}")
        slowest = max((one.seconds for one in found), default=1.0)
        widths = np.zeros((len(PARTS), _ROWS))
        widths[:, : len(found)] = 100 * np.reshape([astuple(one) for one in found], (-1, len(PARTS))).T / slowest
        stack(self._bars, widths)
        blank = [""] * (_ROWS - len(found))
        for name, text in zip(self._names, [cost.variant for cost in costs] + blank, strict=True):
            name.set_text(text)
        for total, end, text in zip(self._totals, widths.sum(axis=0), totals + blank, strict=True):
            total.set(x=end + 1, text=text)
        self._here.set_data(*([value] for value in _place(network)))
        if costs:
            self._map.set_data(mixed_colours(shares(costs[0], *_grid(_MOVING_GRID))))
        self._about.set_text(f"what {costs[0].variant} waits for" if costs else "")
        pictures = f"{batch} picture{'s' * (batch > 1)} of {model}, {steps} step{'s' * (steps > 1)}"
        self._title.set_text(pictures)
        told = [f"{cost.variant} {total}" for cost, total in zip(costs, totals, strict=True)]
        return describe(
            self.figure,
            f"Sampling {pictures}, over {1000 * network.round_trip:.3g} ms round trip and {network.bandwidth / 1e6:,.0f} "
            f"Mbit/s: {'; '.join(told) or 'no protocols chosen'}.",
        )


def load_costs(measurements: Path = MEASUREMENTS, models: Sequence[str] = MODELS) -> dict[str, tuple[StepCost, ...]]:
    """Read what a step costs, for those of the models that were measured.

    The costs are those of `cipherdm bench step`, or of `cipherdm bench breakdown` if that has no rounds. Raises CipherDMError
    if no model was measured.
    """
    found, problem = {}, None
    for model in models:
        for benchmark in ("step", "breakdown"):
            try:
                found.setdefault(model, step_costs(measurements / f"{benchmark}_{model}.json"))
            except CipherDMError as error:
                problem = problem or error
    if not found:
        raise problem or CipherDMError("name at least one model whose costs are to be shown.")
    return found


def latency_explorer(costs: Costs | None = None):
    """`LatencyPicture` under sliders, for the models, batches and protocol sets that all records have; an ipywidgets.VBox.

    The costs are those that `load_costs` finds, unless some are given.
    """
    import ipywidgets as widgets  # which only notebooks need

    costs = load_costs() if costs is None else costs
    batches, variants = _common(costs, "batch"), _common(costs, "variant")[:_ROWS]
    picture = LatencyPicture(costs)

    def draw(model, round_trip, bandwidth, steps, batch, **chosen) -> Figure:
        names = [name for name, checked in chosen.items() if checked]
        return picture.show(model, batch, steps, Network("chosen", round_trip / 1000, bandwidth * 1e6), names)

    wide = {"style": {"description_width": "10em"}, "layout": {"width": "30em"}}
    controls = {
        "model": widgets.Dropdown(options=list(costs), description="model", **wide),
        **network_sliders(WAN, ROUND_TRIPS, BANDWIDTHS, step=0.02, **wide),
        "steps": widgets.SelectionSlider(options=STEPS, value=20, description="steps", **wide),
        "batch": widgets.SelectionSlider(options=batches, description="pictures at a time", **wide),
    }
    narrow = {"indent": False, "layout": {"width": "12em"}}
    boxes = {name: widgets.Checkbox(name in SHOWN, description=name, **narrow) for name in variants}
    options = [("choose ...", None), *((str(n), n) for n in NETWORKS.values())]
    named = widgets.Dropdown(options=options, description="network", **wide)

    def choose(change) -> None:
        if change.new is not None:
            controls["round_trip"].value = 1000 * change.new.round_trip
            controls["bandwidth"].value = change.new.bandwidth / 1e6

    named.observe(choose, "value")
    *_, image, text = explorer(draw, picture, **controls, **boxes).children
    model, *sliders = controls.values()
    settings = widgets.HBox([widgets.VBox([model, named, *sliders]), widgets.VBox(list(boxes.values()))])
    return widgets.VBox([settings, image, text])


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


def _common(costs: Costs, field: str) -> list:
    """The values of a field that all models' costs have, in the order of the first's."""
    first, *others = ([getattr(cost, field) for cost in rows] for rows in costs.values())
    return [value for value in dict.fromkeys(first) if all(value in rows for rows in others)]


def _place(network: Network) -> tuple[float, float]:
    return float(np.log10(network.bandwidth)), float(np.log10(max(network.round_trip, ROUND_TRIPS[0])))
