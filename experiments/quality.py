"""Quality of samples under each protocol set and over the number of steps, from the records of `cipherdm evaluate`.

So is the agreement of sd-mini's images with their captions, from the record of `cipherdm read-back`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from cipherdm.costs import LAN, WAN, Network
from cipherdm.costs.sampling import SAMPLERS, StepCost, cost_of
from cipherdm.records import MEASUREMENTS
from cipherdm.views.latency import load_costs
from cipherdm.views.style import PALETTE, describe, new_figure

from .markdown import records_named
from .target import MODELS, PROMPT_MODEL, TEN, TINY, Check, Command, Target, field

ORDER = ("direct", "cipherdm", "cipherdm-corrected", "puma", "fast", "fast-64", "fast-rings", "fast-guarded")


def read_quality(measurements: Path) -> pd.DataFrame:
    """Return a row for each record of `cipherdm evaluate`, of which there must be one.

    `sampler` is the scheduler with its steps, such as "DDIM-50". `psnr` compares the emulation with exact samples, or is NaN.
    """
    rows = [
        {
            "model": record["model"],
            "protocols": record["protocols"],
            "sampler": f"{record['scheduler'].upper()}-{record['steps']}",
            **{name: record[name] for name in ("accuracy", "f1", "lenet_fid")},
            "samples": record["count"],
            "overflowed": record.get("overflowed", 0),
            "psnr": record.get("emulated", {}).get("psnr", float("nan")),
        }
        for record in records_named(measurements, "quality_*.json", "cipherdm reproduce --only quality")
    ]
    frame = pd.DataFrame(rows)
    # All other sets are NaN here, which is sorted last.
    ranks = frame["protocols"].map({name: rank for rank, name in enumerate(ORDER)})
    return frame.loc[frame.assign(rank=ranks).sort_values(["model", "rank", "sampler"]).index].reset_index(drop=True)


def quality_figure(table: pd.DataFrame, models: Sequence[str], samplers: Sequence[str]) -> Figure:
    """Draw accuracy and LeNet-FID of each protocol set, a row of panels for each model and a marker for each sampler."""
    chosen = table[table["model"].isin(models) & table["sampler"].isin(samplers)]
    samplers = [name for name in samplers if name in set(chosen["sampler"])]
    names = [name for name in dict.fromkeys((*ORDER, *chosen["protocols"])) if name in set(chosen["protocols"])]
    figure = new_figure(8.0, 1.0 + (0.75 + 0.3 * len(names)) * len(models))
    panels = figure.subplots(len(models), 2, sharex="col", sharey=True, squeeze=False)
    told = []
    for line, model in zip(panels, models, strict=True):
        for index, sampler in enumerate(samplers):
            rows = chosen[(chosen["model"] == model) & (chosen["sampler"] == sampler)]
            height = [names.index(name) + 0.16 * (index - (len(samplers) - 1) / 2) for name in rows["protocols"]]
            style = {"color": PALETTE[index], "marker": "osD^vP"[index], "s": 36, "label": sampler, "zorder": 3}
            for axis, column in zip(line, ("accuracy", "lenet_fid"), strict=True):
                axis.scatter(rows[column], height, **style)
            for row in rows.itertuples():
                told.append(f"{row.protocols} on {model}, {sampler}: {row.accuracy:.1%}, {row.lenet_fid:.2g}")
        line[0].set_title(model, fontsize=10, loc="left", parse_math=False)
        for axis in line:
            axis.grid(axis="x", color="#dddddd")
    panels[0, 0].set_yticks(np.arange(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.4, -0.6)
    left, right = panels[-1]
    left.set(xlabel="accuracy: LeNet reads the digit asked for", xlim=(-0.03, 1.03))
    left.xaxis.set_major_formatter("{x:.0%}")
    right.set(xlabel="LeNet-FID, logarithmic", xscale="log")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter(NullFormatter())
    shown = panels[0, 0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return describe(figure, "Points, accuracy on the left and LeNet-FID on the right: " + "; ".join(told) + ".")


def quality_frame(model: str, measurements: Path) -> pd.DataFrame:
    """Return a row for each of a model's records of `cipherdm evaluate` with exact functions, by sampler and steps."""
    remedy = f"cipherdm evaluate {model} --record data/measurements/quality_{model}_direct.json"
    records = records_named(measurements, f"quality_{model}_direct*.json", remedy)
    frame = pd.DataFrame([record for record in records if not record["eta"]])
    frame["sampler"] = frame["scheduler"].map(SAMPLERS)
    frame = frame[["sampler", "steps", "accuracy", "f1", "lenet_fid", "count"]].drop_duplicates(["sampler", "steps"])
    rank = frame["sampler"].map(list(SAMPLERS.values()).index)
    return frame.loc[frame.assign(rank=rank).sort_values(["rank", "steps"]).index].reset_index(drop=True)


def quality_against_cost(quality: pd.DataFrame, cost: StepCost, networks: Sequence[Network] = (LAN, WAN)) -> Figure:
    """Draw LeNet-FID over the seconds of sampling, by the latency model, a panel for each network. Numbers are steps.

    Samplers differ only in their last few additions, so the cost of one step serves for all.
    """
    figure = new_figure(0.8 + 3.6 * len(networks), 3.5)
    axes = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    pictures = "one picture" if cost.batch == 1 else f"{cost.batch} pictures"
    above = {"xytext": (0, 7), "textcoords": "offset points", "fontsize": 8, "ha": "center"}
    for axis, network in zip(axes, networks, strict=True):
        samplers = quality.groupby("sampler", sort=False)
        for (sampler, rows), colour, marker in zip(samplers, PALETTE, "os^", strict=False):
            times = [cost.over(network, steps).seconds for steps in rows["steps"]]
            axis.plot(times, rows["lenet_fid"], color=colour, marker=marker, linewidth=1.2, label=sampler)
            for time, steps, value in zip(times, rows["steps"], rows["lenet_fid"], strict=True):
                axis.annotate(f"{steps}", (time, value), color=colour, **above)
        axis.set(xscale="log", title=str(network))
        axis.set_xlabel(f"seconds for {pictures}, {cost.model} under {cost.variant}", parse_math=False)
        axis.title.set_fontsize(10)
        seconds = [cost.over(network, steps).seconds for steps in quality["steps"]]
        axis.set_xlim(0.7 * min(seconds), 1.4 * max(seconds))
        axis.xaxis.set_major_locator(FixedLocator([n * 10.0**e for e in range(-1, 5) for n in (1, 3)]))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{s:,.0f}" if s >= 1 else f"{s:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(color="#dddddd")
        axis.margins(y=0.15)
    axes[0].set_yscale("log")  # good samplers differ by little, and poor ones by much
    axes[0].yaxis.set_major_locator(FixedLocator([n * 10.0**e for e in range(-2, 4) for n in (1, 2, 5)]))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("LeNet-FID, less is better\n(exact functions)")
    axes[-1].legend(frameon=False, fontsize=9)
    told = [f"{row.sampler} with {row.steps} steps {row.lenet_fid:.3g}" for row in quality.itertuples()]
    return describe(
        figure,
        f"Points, LeNet-FID, less is better, of exact functions, over the seconds that sampling {cost.model} takes with "
        f"{cost.variant} by the latency model: {'; '.join(told)}.",
    )


def figure(records: Path) -> Figure:
    """Draw accuracy and LeNet-FID under each protocol set."""
    return quality_figure(read_quality(records), MODELS, ("DDIM-50", "DDPM-20"))


def samplers_figure(records: Path) -> Figure:
    """Draw LeNet-FID over the seconds of sampling under fast. Without a step's record here, the committed one serves."""
    here = (records / f"step_{TEN}.json").exists()
    costs = load_costs(records if here else MEASUREMENTS, (TEN,))
    return quality_against_cost(quality_frame(TEN, records), cost_of(costs[TEN], "fast"))


# Accuracy in percent, and its tolerance with 2,000 images and with 200. The further from 100, the more it varies.
_ACCURACIES = (
    (TINY, "direct", 95.6, 1.5, 5),
    (TINY, "cipherdm", 89.6, 3, 8),
    (TINY, "fast", 95.8, 1.5, 5),
    (TEN, "direct", 99.2, 1, 3),
    (TEN, "cipherdm", 90.1, 3, 8),
    (TEN, "fast", 99.2, 1, 3),
    (TEN, "fast-rings", 99.2, 1, 3),
)


def quality_command(model: str, protocols: str, scheduler: str = "ddim", steps: int = 50) -> Command:
    """Return the command for a row of the quality table. With fast and DDIM-50, three parties draw 16 images as well."""
    sampler = "" if (scheduler, steps) == ("ddim", 50) else f"_{scheduler.removesuffix('++')}-{steps}"
    chosen = ("--scheduler", scheduler, "--steps", str(steps)) if sampler else ()
    on_shares = protocols in ("fast", "fast-rings") and not sampler and model in MODELS
    return Command(
        f"quality_{model}_{protocols}{sampler}",
        ("evaluate", model, "--protocols", protocols, *chosen),
        ("--secure", "16") if on_shares else (),
        ("--count", "200", "--compare", "16"),
    )


def accuracy(what: str, stem: str, expected: float, tolerance: float, reduced: float) -> Check:
    """Return the check of a record's accuracy, in percent."""
    return Check(what, expected, tolerance, field(stem, "accuracy", factor=100), reduced, unit="%")


_SETS = ORDER[:5]
_PSNR = field(f"quality_{TEN}_fast", "emulated", "psnr")

QUALITY = Target(
    "quality",
    "Quality of samples with each protocol set",
    "an independent re-run of the release has F1 0.8575 in plaintext and 0.0820 under CipherDM; ours keeps the quality",
    "published",
    (
        *(quality_command(model, protocols) for model in MODELS for protocols in _SETS),
        *(quality_command(model, protocols) for model in MODELS for protocols in ("fast-64", "fast-rings")),
        *(quality_command(f"{model}-quad", "fast") for model in MODELS),
        *(quality_command(model, protocols, "ddpm", 20) for model in MODELS for protocols in _SETS),
    ),
    (
        *(
            accuracy(f"{model}: accuracy, {protocols}", f"quality_{model}_{protocols}", *expected)
            for model, protocols, *expected in _ACCURACIES
        ),
        Check(f"{TEN}: PSNR of fast to exact", 32.9, 2, _PSNR, 4, unit=" dB"),
    ),
    figure,
    order=40,
)

_EXACT = f"quality_{TEN}_direct"
_SAMPLERS = (
    *(("ddim", steps) for steps in (5, 10, 20)),
    *(("dpmsolver++", steps) for steps in (5, 10, 15, 20)),
    *(("ddpm", steps) for steps in (5, 10)),  # DDPM with 20 is a row of the target above, DDIM with 50 another
)

SAMPLERS_TARGET = Target(
    "samplers",
    "Quality over the number of steps, by sampler, with exact functions",
    "DPM-Solver++ with 10 to 15 steps gives what DDIM gives with 50",
    "ours",
    tuple(quality_command(TEN, "direct", scheduler, steps) for scheduler, steps in _SAMPLERS),
    (
        Check("LeNet-FID, DDIM-10", 1.27, 0.3, field(f"{_EXACT}_ddim-10", "lenet_fid"), digits=2),
        Check("LeNet-FID, DPM-Solver++-10", 0.77, 0.2, field(f"{_EXACT}_dpmsolver-10", "lenet_fid"), digits=2),
        Check("LeNet-FID, DPM-Solver++-15", 0.68, 0.2, field(f"{_EXACT}_dpmsolver-15", "lenet_fid"), digits=2),
        Check("LeNet-FID, DDIM-50", 0.71, 0.2, field(_EXACT, "lenet_fid"), digits=2),
        accuracy("accuracy, DPM-Solver++-10", f"{_EXACT}_dpmsolver-10", 99.1, 1, 3),
    ),
    samplers_figure,
    order=50,
)

PICTURE = Target(
    "sample",
    "Ten digits, secure beside plaintext",
    "secure sampling gives the pictures that plaintext sampling gives",
    "ours",
    (
        Command(
            "sample",
            ("sample", "--model", f"{TEN}-turbo-2", "--granularity", "step"),
            (),
            ("--labels", "3"),
            option="--out",
        ),
    ),
    (Check("mean PSNR to plaintext", 33.0, 2, field("sample", "psnr_db"), unit=" dB"),),
    order=150,
)

READ = f"captions_{PROMPT_MODEL}"

CAPTIONS = Target(
    "captions",
    "What is read back from the pictures of captions, in plaintext",
    "the model draws what its prompts say",
    "ours",
    (Command(READ, ("read-back", PROMPT_MODEL), ("--count", "1000"), ("--count", "100")),),
    tuple(
        Check(what, expected, tolerance, field(READ, "drawn", name, factor=100), reduced, unit="%")
        for what, name, expected, tolerance, reduced in (
            ("digits as their captions say", "digit", 97.1, 2, 6),
            ("colours", "colour", 99.6, 1, 3),
            ("all of a caption but the place", "all", 96.7, 2, 6),
        )
    ),
    order=90,
)
