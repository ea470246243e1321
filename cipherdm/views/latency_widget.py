"""Sliders for network, batch, steps and protocols: how long sampling takes by the latency model, and what dominates."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..costs import NETWORKS, WAN, Latency, Network
from ..costs.sampling import StepCost, cost_of, shares, step_costs
from ..errors import CipherDMError
from ..files import root
from .latency import BANDWIDTHS, ROUND_TRIPS, mixed_colours
from .networks import PARTS
from .style import PALETTE, describe
from .widgets import MovingPicture

MODELS = ("mnist01-tiny", "mnist10")

SHOWN = ("direct", "cipherdm", "fast")  # at first

STEPS = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500, 1000)

_GRID = 61

_ROWS = 7  # bars at most

_BETWEEN = 0.30  # where the left part of the picture ends and the names of protocols begin, as a share of its width

Costs = Mapping[str, Sequence[StepCost]]
"""Of each model, by its name."""


class LatencyPicture(MovingPicture):
    """Bars of what sampling takes, and where on the map the network lies; `show` other settings without building it anew.

    The map is that of the first protocols shown.
    """

    def __init__(self, costs: Costs):
        self._costs = costs
        super().__init__(9.6, 3.4)
        where = self.figure.add_axes((0.065, 0.16, _BETWEEN - 0.08, 0.66))
        bars = self.figure.add_axes((_BETWEEN + 0.13, 0.16, 0.97 - _BETWEEN - 0.13, 0.66))
        low, high = np.log10(BANDWIDTHS), np.log10(ROUND_TRIPS)
        blank = np.ones((_GRID, _GRID, 3))
        self._map = where.imshow(blank, extent=(*low, *high), origin="lower", aspect="auto", interpolation="bilinear")
        self._networks = where.plot(
            *zip(*map(_place, NETWORKS.values()), strict=True), "o", color="black", markersize=3.5
        )
        self._here = where.plot([0], [0], "+", color="black", markersize=13, markeredgewidth=2.5)[0]
        where.set(xlim=low, ylim=high, xlabel="bandwidth in Mbit/s", ylabel="round trip in ms")
        where.set_xticks([7, 8, 9, 10], ["10", "100", "1,000", "10,000"], fontsize=8)
        where.set_yticks([-4, -3, -2, -1], ["0.1", "1", "10", "100"], fontsize=8)
        self._about = where.text(0.5, 1.03, "", ha="center", fontsize=10, transform=where.transAxes)
        self._bars = [bars.barh(range(_ROWS), [0] * _ROWS, color=colour) for colour in PALETTE[: len(PARTS)]]
        self._names = [bars.text(-2, row, "", va="center", ha="right", fontsize=9) for row in range(_ROWS)]
        self._totals = [bars.text(0, row, "", va="center", fontsize=9) for row in range(_ROWS)]
        self._title = bars.text(0, 1.03, "", fontsize=10, transform=bars.transAxes)
        bars.set(xlim=(0, 156), ylim=(_ROWS - 0.5, -0.5), xticks=[0, 25, 50, 75, 100], yticks=[])
        bars.set_xlabel("share of the slowest one's time in %")
        bars.spines[["top", "right"]].set_visible(False)
        self.figure.legend(
            self._bars, PARTS, loc="upper right", bbox_to_anchor=(0.97, 1.0), ncols=len(PARTS), frameon=False
        )
        bars_and_texts = [*(bar for found in self._bars for bar in found), *self._names, *self._totals]
        self._moves([self._map, *self._networks, self._here, self._about, self._title, *bars_and_texts])

    def show(self, model: str, batch: int, steps: int, network: Network, variants: Sequence[str] = SHOWN) -> Figure:
        """Show other settings; returns the figure, with its description. Raises CipherDMError for what is not recorded."""
        costs = [cost_of(self._costs[model], variant, batch) for variant in variants][:_ROWS]
        found = [cost.over(network, steps) for cost in costs]
        self._show_bars(costs, found)
        self._here.set_data(*([value] for value in _place(network)))
        if costs:
            trips, bands = np.geomspace(*ROUND_TRIPS, _GRID), np.geomspace(*BANDWIDTHS, _GRID)
            self._map.set_data(mixed_colours(shares(costs[0], trips, bands)))
        self._about.set_text(f"what {costs[0].variant} waits for" if costs else "")
        pictures = f"{batch} picture{'s' * (batch > 1)} of {model}, {steps} step{'s' * (steps > 1)}"
        self._title.set_text(pictures)
        told = [
            f"{cost.variant} {duration(one.seconds)}, {_main_part(one)}" for cost, one in zip(costs, found, strict=True)
        ]
        return describe(
            self.figure,
            f"Sampling {pictures}, over {1000 * network.round_trip:.3g} ms round trip and {network.bandwidth / 1e6:,.0f} "
            f"Mbit/s: {'; '.join(told) or 'no protocols chosen'}.",
        )

    def _show_bars(self, costs: Sequence[StepCost], found: Sequence[Latency]) -> None:
        slowest = max((one.seconds for one in found), default=1.0)
        for row in range(_ROWS):
            shown, left = row < len(found), 0.0
            for part, bars in zip(("computing", "delays", "sending"), self._bars, strict=True):
                width = 100 * getattr(found[row], part) / slowest if shown else 0.0
                bars[row].set(x=left, width=width)
                left += width
            self._totals[row].set_text(f"{duration(found[row].seconds)}, {_main_part(found[row])}" if shown else "")
            self._totals[row].set_x(left + 1)
            self._names[row].set_text(costs[row].variant if shown else "")


def load_costs(measurements: Path | None = None, models: Sequence[str] = MODELS) -> dict[str, tuple[StepCost, ...]]:
    """What a step costs, for those of the models that were measured: from `cipherdm bench step`, or its breakdown if that
    has no rounds.

    Raises:
        CipherDMError: no model was measured.
    """
    folder = root() / "data" / "measurements" if measurements is None else measurements
    found, problem = {}, None
    for model in models:
        for benchmark in ("step", "breakdown"):
            try:
                found.setdefault(model, step_costs(folder / f"{benchmark}_{model}.json"))
            except CipherDMError as error:
                problem = problem or error
    if not found:
        raise problem or CipherDMError("name at least one model whose costs are to be shown.")
    return found


def latency_explorer(costs: Costs | None = None, network: Network = WAN):
    """The picture under sliders, for the models, batches and protocols that all records have; an ipywidgets.VBox.

    Args:
        costs: of models; what `load_costs` finds by default.
        network: at first.
    """
    import ipywidgets as widgets  # which only notebooks need

    costs = load_costs() if costs is None else costs
    batches, variants = _common(costs, "batch"), _common(costs, "variant")[:_ROWS]
    picture = LatencyPicture(costs)

    def draw(model, round_trip, bandwidth, steps, batch, **chosen) -> Figure:
        names = [name for name, checked in zip(variants, chosen.values(), strict=True) if checked]
        return picture.show(model, batch, steps, Network("chosen", round_trip / 1000, bandwidth * 1e6), names)

    wide = {"style": {"description_width": "10em"}, "layout": {"width": "30em"}}
    log = {"base": 10, "step": 0.02, "readout_format": ".3g"} | wide
    trip, band = (np.log10(ROUND_TRIPS) + 3), (np.log10(BANDWIDTHS) - 6)
    controls = {
        "model": widgets.Dropdown(options=list(costs), description="model", **wide),
        "round_trip": widgets.FloatLogSlider(
            1000 * network.round_trip, min=trip[0], max=trip[1], description="round trip in ms", **log
        ),
        "bandwidth": widgets.FloatLogSlider(
            network.bandwidth / 1e6, min=band[0], max=band[1], description="bandwidth in Mbit/s", **log
        ),
        "steps": widgets.SelectionSlider(options=STEPS, value=20, description="steps", **wide),
        "batch": widgets.SelectionSlider(options=batches, description="pictures at a time", **wide),
    }
    boxes = {
        f"variant{index}": widgets.Checkbox(name in SHOWN, description=name, indent=False, layout={"width": "12em"})
        for index, name in enumerate(variants)
    }
    named = widgets.Dropdown(
        options=[("choose ...", None), *((str(n), n) for n in NETWORKS.values())], description="network", **wide
    )

    def choose(change) -> None:
        if change.new is not None:
            controls["round_trip"].value = 1000 * change.new.round_trip
            controls["bandwidth"].value = change.new.bandwidth / 1e6

    image, text = widgets.Image(format="png"), widgets.HTML()

    def redraw(_=None) -> None:
        figure = draw(**{name: control.value for name, control in (controls | boxes).items()})
        image.value, text.value = picture.png(), f"<small>{escape(figure.get_label())}</small>"

    named.observe(choose, "value")
    for control in (controls | boxes).values():
        control.observe(redraw, "value")
    redraw()
    model, *sliders = controls.values()
    settings = widgets.HBox([widgets.VBox([model, named, *sliders]), widgets.VBox(list(boxes.values()))])
    return widgets.VBox([settings, image, text])


def duration(seconds: float) -> str:
    """ "0.83 s", "12 s", "4 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _main_part(found: Latency) -> str:
    values = dict(zip(PARTS, (found.computing, found.delays, found.sending), strict=True))
    part = max(values, key=values.get)
    return f"{100 * values[part] / found.seconds:.0f}% {part.split(' ')[0]}"


def _common(costs: Costs, field: str) -> list:
    """The values of a field that all models' costs have, in the order of the first's."""
    first, *others = ([getattr(cost, field) for cost in rows] for rows in costs.values())
    return [value for value in dict.fromkeys(first) if all(value in rows for rows in others)]


def _place(network: Network) -> tuple[float, float]:
    return float(np.log10(network.bandwidth)), float(np.log10(max(network.round_trip, ROUND_TRIPS[0])))
