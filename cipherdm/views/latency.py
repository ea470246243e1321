"""What dominates where, how well the latency model does, and what quality costs over the number of steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ..costs import LAN, NETWORKS, WAN, Network
from ..costs.sampling import SAMPLERS, StepCost, shares
from ..errors import CipherDMError
from ..records import read_record
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
_MARKERS = ("o", "s", "^")


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


def model_check(record: Mapping[str, Any]) -> Figure:
    """Steps over shaped links: what the latency model predicts, by parts, above what was measured; a panel a variant.

    The record is that of `cipherdm bench latency`. Numbers are the model's errors; thin lines go from the fastest to the
    slowest run.
    """
    frame = pd.DataFrame(record["rows"])
    variants = list(dict.fromkeys(frame["variant"]))
    figure = new_figure(1.2 + 4.2 * len(variants), 3.1)
    axes = figure.subplots(1, len(variants), squeeze=False, sharey=True)[0]
    told = []
    for axis, variant in zip(axes, variants, strict=True):
        rows = frame[frame["variant"] == variant].reset_index()
        left = np.zeros(len(rows))
        for part, label, colour in zip(("computing", "delays", "sending"), PARTS, PALETTE, strict=False):
            axis.barh(rows.index - 0.2, rows[part], left=left, height=0.36, color=colour, label=f"model: {label}")
            left = left + rows[part].to_numpy(float)
        axis.barh(rows.index + 0.2, rows["measured"], height=0.36, color="#bbbbbb", label="measured")
        for index, row in rows.iterrows():
            runs = row["measured_runs"]
            axis.plot([min(runs), max(runs)], [index + 0.2] * 2, color="black", linewidth=1)
            end = max(left[index], max(runs))
            error = f"{row['error']:+.0%}".replace("-0%", "0%").replace("+0%", "0%")
            axis.text(1.02 * end, index, f" {error}", va="center", fontsize=9)
            told.append(
                f"{variant} over {row['network']} {row['predicted']:.3g} s for {row['measured']:.3g} s measured"
            )
        axis.set(title=variant, xlabel="seconds for one step")
        axis.title.set_fontsize(10)
        axis.set_xlim(0, 1.15 * max(left.max(), rows["measured"].max()))
    axes[0].set_yticks(range(len(rows)), rows["network"])
    axes[0].invert_yaxis()
    figure.suptitle(f"{record['model']}; percentages: by how much the model is above what was measured", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return describe(figure, "Pairs of bars, model above measurement. Predicted: " + "; ".join(told) + ".")


def quality_frame(model: str, measurements: Path) -> pd.DataFrame:
    """The quality of a model by sampler and steps, from the records that `cipherdm evaluate` wrote for exact functions.

    Columns sampler, steps, accuracy, f1, lenet_fid, count; a row a record.

    Raises:
        CipherDMError: there is no record.
    """
    paths = [measurements / f"quality_{model}_direct.json", *measurements.glob(f"quality_{model}_direct_*.json")]
    records = [read_record(path) for path in paths if path.exists()]
    if not records:
        raise CipherDMError(
            f"there is no record of the quality of {model}: make it with "
            f"`cipherdm evaluate {model} --record data/measurements/quality_{model}_direct.json`."
        )
    rows = [
        {"sampler": SAMPLERS[record["scheduler"]]}
        | {name: record[name] for name in ("steps", "accuracy", "f1", "lenet_fid", "count")}
        for record in records
        if not record["eta"]
    ]
    frame = pd.DataFrame(rows).drop_duplicates(["sampler", "steps"])
    order = {name: index for index, name in enumerate(SAMPLERS.values())}
    return frame.sort_values(
        ["sampler", "steps"],
        key=lambda column: column.map(order) if column.name == "sampler" else column,
        ignore_index=True,
    )


def quality_against_cost(
    quality: pd.DataFrame, cost: StepCost, networks: Sequence[Network] = (LAN, WAN), quantity: str = "lenet_fid"
) -> Figure:
    """Quality over the time that sampling takes, by the latency model, a panel for each network; numbers are steps.

    Args:
        quality: of `quality_frame`, for the same model.
        cost: of one step. Samplers differ in their last few additions alone, so that one step serves for all.
        networks: between the parties.
        quantity: "lenet_fid", where less is better, "accuracy" or "f1".
    """
    figure = new_figure(0.8 + 3.6 * len(networks), 3.5)
    axes = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    label = {"lenet_fid": "LeNet-FID, less is better", "accuracy": "accuracy", "f1": "F1"}[quantity]
    for axis, network in zip(axes, networks, strict=True):
        for (sampler, rows), colour, marker in zip(
            quality.groupby("sampler", sort=False), PALETTE, _MARKERS, strict=False
        ):
            times = [cost.over(network, steps).seconds for steps in rows["steps"]]
            axis.plot(times, rows[quantity], color=colour, marker=marker, linewidth=1.2, label=sampler)
            for time, (_, row) in zip(times, rows.iterrows(), strict=True):
                axis.annotate(
                    f"{row['steps']:.0f}",
                    (time, row[quantity]),
                    (0, 7),
                    textcoords="offset points",
                    fontsize=8,
                    ha="center",
                    color=colour,
                )
        axis.set(
            xscale="log",
            title=str(network),
            xlabel=f"seconds for {_pictures(cost.batch)}, {cost.model} under {cost.variant}",
        )
        axis.title.set_fontsize(10)
        seconds = [cost.over(network, steps).seconds for steps in quality["steps"]]
        axis.set_xlim(0.7 * min(seconds), 1.4 * max(seconds))
        axis.xaxis.set_major_locator(FixedLocator([n * 10.0**e for e in range(-1, 5) for n in (1, 3)]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{s:,.0f}" if s >= 1 else f"{s:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(color="#dddddd")
        axis.margins(y=0.15)
    if quantity == "lenet_fid":  # of which good samplers differ in little and poor ones in much
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(FixedLocator([n * 10.0**e for e in range(-2, 4) for n in (1, 2, 5)]))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel(f"{label}\n(exact functions)")
    axes[-1].legend(frameon=False, fontsize=9)
    told = [f"{row.sampler} with {row.steps} steps {getattr(row, quantity):.3g}" for row in quality.itertuples()]
    return describe(
        figure,
        f"Points, {label}, of exact functions, over the seconds that sampling {cost.model} takes with {cost.variant} by the "
        f"latency model: {'; '.join(told)}.",
    )


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
