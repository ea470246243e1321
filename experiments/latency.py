"""The latency model against runs over shaped links: a denoising step, predicted from a run without a network, and run."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure

from cipherdm.cli.options import ModelArgument
from cipherdm.costs import LAN, NARROW, WAN, Network, network_named
from cipherdm.engine import CostReport, LocalCluster
from cipherdm.errors import CipherDMError
from cipherdm.models import UNet, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar
from cipherdm.records import load_average, read_record
from cipherdm.views.networks import PARTS
from cipherdm.views.style import PALETTE, describe, new_figure

from .commands import RecordOption, finish, record_path, silent, split_names
from .target import TINY, Check, Command, Records, Target
from .variants import PreparedStep, Variant, prepare
from .variants import variants as variants_named

_PARTS = ("computing", "delays", "sending")  # as records name them
_SLOW = 20.0  # predicted seconds above which a run is made once and without another to warm up


def run(
    unet: UNet,
    *,
    variants: Sequence[Variant],
    networks: Sequence[Network] = (LAN, WAN, NARROW),
    repetitions: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run the first denoising step with each variant and without and with each network in turns, and return the record.

    The clusters wait side by side, and use no processor while they do. The first run of a step on a cluster warms up and is
    not counted. A run that would take more than 20 seconds is made once and counted: of its length, warming up is little.
    Raises CipherDMError if there is nothing to run.
    """
    if not variants or not networks or repetitions < 1:
        raise CipherDMError("there must be at least one variant, network and repetition to compare.")
    whole = (replace(variant, granularity="step") for variant in variants)
    steps = [prepare(unet, variant, batch=1, prefix=f"{index}/") for index, variant in enumerate(whole)]
    load, start, rows = load_average(), time.monotonic(), []
    with ExitStack() as stack:
        local = stack.enter_context(LocalCluster())
        shaped = [stack.enter_context(LocalCluster(network=network)) for network in networks]
        for cluster in (local, *shaped):
            for step in steps:
                step.start(cluster)
        pairs = list(product(steps, zip(networks, shaped, strict=True)))
        for done, (step, (network, cluster)) in enumerate(pairs):
            progress(done, len(pairs), f"{step.variant.name}, {network.name}")
            rows.append(_compare(step, local, cluster, network, repetitions))
    return {
        "benchmark": "latency",
        "model": "" if unet.folder is None else unet.folder.resolve().name,
        "batch": 1,
        "load_before": load,
        "seconds": time.monotonic() - start,
        "rows": rows,
    }


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each variant and network: the model's seconds and their parts, seconds measured, error in percent."""
    frame = pd.DataFrame(record["rows"])[["variant", "network", "rounds", *_PARTS, "predicted", "measured", "error"]]
    return frame.assign(error=100 * frame["error"]).rename(columns={"error": "error %"})


def _compare(
    step: PreparedStep, local: LocalCluster, shaped: LocalCluster, network: Network, repetitions: int
) -> dict[str, Any]:
    """Return a row of the record: the model's seconds, from runs without a network, beside those over shaped links."""
    alone: list[CostReport] = []
    measured: list[float] = []
    step.run(local)
    slow = step.run(local).latency(network) > _SLOW
    if not slow:
        step.run(shaped)
    for _ in range(1 if slow else repetitions):
        alone.append(step.run(local))
        measured.append(step.run(shaped).seconds)
        alone.append(step.run(local))
    middle = sorted(alone, key=lambda report: report.seconds)[len(alone) // 2]
    median = replace(middle, seconds=statistics.median(report.seconds for report in alone))
    parts, found = median.latency_parts(network), statistics.median(measured)
    return {
        "variant": step.variant.name,
        "network": network.name,
        "round_trip": network.round_trip,
        "bandwidth": network.bandwidth,
        "rounds": median.rounds,
        **{part: getattr(parts, part) for part in _PARTS},
        "predicted": parts.seconds,
        "measured": found,
        "measured_runs": measured,
        "alone_runs": [report.seconds for report in alone],
        "error": parts.seconds / found - 1,
    }


def model_check(record: Mapping[str, Any]) -> Figure:
    """Draw what the latency model predicts for steps, by parts, above what was measured; a panel per variant."""
    frame = pd.DataFrame(record["rows"])
    variants = list(dict.fromkeys(frame["variant"]))
    figure = new_figure(1.2 + 4.2 * len(variants), 3.1)
    axes = figure.subplots(1, len(variants), squeeze=False, sharey=True)[0]
    told = []
    for axis, variant in zip(axes, variants, strict=True):
        rows = frame[frame["variant"] == variant].reset_index()
        left = np.zeros(len(rows))
        for part, label, colour in zip(_PARTS, PARTS, PALETTE, strict=False):
            axis.barh(rows.index - 0.2, rows[part], left=left, height=0.36, color=colour, label=f"model: {label}")
            left = left + rows[part].to_numpy(float)
        axis.barh(rows.index + 0.2, rows["measured"], height=0.36, color="#bbbbbb", label="measured")
        for index, row in rows.iterrows():
            runs = row["measured_runs"]
            axis.plot([min(runs), max(runs)], [index + 0.2] * 2, color="black", linewidth=1)
            end = max(left[index], max(runs))
            error = f"{row['error']:+.0%}".replace("-0%", "0%").replace("+0%", "0%")
            axis.text(1.02 * end, index, f" {error}", va="center", fontsize=9)
            seconds = f"{row['predicted']:.3g} s for {row['measured']:.3g} s measured"
            told.append(f"{variant} over {row['network']} {seconds}")
        axis.set(xlabel="seconds for one step", xlim=(0, 1.15 * max(left.max(), rows["measured"].max())))
        axis.set_title(variant, fontsize=10, parse_math=False)
    axes[0].set_yticks(range(len(rows)), rows["network"])
    axes[0].invert_yaxis()
    figure.suptitle(
        f"{record['model']}; percentages: by how much the model is above what was measured",
        fontsize=9,
        parse_math=False,
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return describe(figure, "Pairs of bars, model above measurement. Predicted: " + "; ".join(told) + ".")


def measure(
    model: ModelArgument = TINY,
    protocols: Annotated[str, typer.Option(help="Names of protocol sets, separated by commas.")] = "fast,direct",
    networks: Annotated[str, typer.Option(help="Names of networks, separated by commas.")] = "lan,wan,narrow",
    repetitions: Annotated[int, typer.Option(help="Counted runs over each network.", min=1)] = 3,
    record: RecordOption = None,
) -> None:
    """Compare the latency model with a denoising step over shaped links, in turns with runs without. Takes about 6 minutes.

    Where a run would take more than 20 seconds, as with direct over a WAN, there is one.
    """
    chosen = variants_named(split_names(protocols))
    between = [network_named(name) for name in split_names(networks)]
    unet = load_unet(find_model(model))
    with ProgressBar("run") as bar:
        found = run(unet, variants=chosen, networks=between, repetitions=repetitions, progress=bar)
    finish(record_path(record, "latency"), found, table(found))


def _largest_error(records: Records) -> float:
    return 100 * max(abs(row["error"]) for row in records["latency"]["rows"])


TARGET = Target(
    "latency",
    "The latency model against runs over shaped links",
    "computing, rounds and bytes predict a step over a network within 15%",
    "ours",
    (Command("latency", ("bench", "latency"), (), ("--protocols", "fast", "--networks", "wan", "--repetitions", "1")),),
    (Check("largest error", 15, 0, _largest_error, 10, 0, "%", "most"),),
    lambda records: model_check(read_record(records / "latency.json")),
    order=170,
)
