"""Gains of a denoising step under each protocol set: the paper's claim, the ratios measured here, and the targets.

CipherDM (arXiv 2409.05414) claims 1.084 to 2.328 times less time and 1.212 to 1.791 times less communication than the plain
model on SPU. Its release runs SPU with the Pade exponential; SPU's default is the Taylor exponential, which is cheaper. So
there are two baselines, and a gain says little without the name of its baseline.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .markdown import markdown, records_named
from .target import MODELS, PROMPT_MODEL, TEN, TINY, Check, Command, Records, Target, Value
from .variants import BASELINES

CLAIMED = {"time": (1.084, 2.328), "bytes": (1.212, 1.791)}
"""Lowest and highest ratio that the paper claims."""

STEP_BATCHES = (1, 4, 16)
"""Numbers of images that a step is measured with."""


def step_record(model: str, batch: int = 1) -> str:
    """Return the stem of the record of `bench step` for so many images."""
    return f"step_{model}" + (f"_batch{batch}" if batch > 1 else "")


def gains(rows: Sequence[Mapping[str, Any]], batch: int = 1) -> pd.DataFrame:
    """Return how many times less each protocol set takes than each of the two baselines, from rows of `bench step`.

    Columns are model, protocols, baseline, and baseline divided by set: time (of medians), time_low and time_high (of the least
    and the most favourable times), bytes, sends.
    """
    here = [row for row in rows if row["batch"] == batch]
    pairs = [
        (row, base)
        for row in here
        for base in here
        if base["model"] == row["model"] and base["variant"] in BASELINES and row["variant"] not in BASELINES
    ]

    def ratios(over: str, under: str) -> list[float]:
        return [base[over] / row[under] for row, base in pairs]

    names = [(row["model"], row["variant"], base["variant"]) for row, base in pairs]
    return pd.DataFrame(names, columns=["model", "protocols", "baseline"]).assign(
        time=ratios("seconds", "seconds"),
        time_low=ratios("seconds_low", "seconds_high"),
        time_high=ratios("seconds_high", "seconds_low"),
        bytes=ratios("bytes", "bytes"),
        sends=ratios("sends", "sends"),
    )


def gains_by_batch(
    rows: Sequence[Mapping[str, Any]], protocols: str = "cipherdm", quantity: str = "time"
) -> pd.DataFrame:
    """Return `gains` of one set in one quantity: a row for each model and baseline, a column for each number of images."""
    tables = [gains(rows, batch).assign(batch=batch) for batch in sorted({row["batch"] for row in rows})]
    table = pd.concat(tables)
    mine = table[table["protocols"] == protocols]
    return mine.pivot(index=["model", "baseline"], columns="batch", values=quantity).rename_axis(columns="pictures")


def verdict(gain: float, quantity: str) -> str:
    """Return where a gain lies: "below", "within" or "above" the claimed range of "time" or "bytes"."""
    low, high = CLAIMED[quantity]
    return "below" if gain < low else "above" if gain > high else "within"


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return `gains` of the set "cipherdm", which the claim is about, with the verdict on time and on bytes."""
    mine = table[table["protocols"] == "cipherdm"]
    told = {f"{quantity}, claimed": [verdict(gain, quantity) for gain in mine[quantity]] for quantity in CLAIMED}
    return mine[["model", "baseline", "time", "bytes"]].assign(**told).reset_index(drop=True)


RERUN = pd.DataFrame(
    {"FID": [117.13, 316.56, 242.65], "F1": [0.8575, 0.0820, 0.6000], "seconds": [14.12, 430.59, 442.23]},
    index=pd.Index(["plaintext", "CipherDM", "CipherDM with their correction"], name="binary MNIST on SPU"),
)
"""The independent re-run: "Secure Inference for Diffusion Models via Unconditional Scores", ICLR 2026."""


def step_rows(records: Path, models: Sequence[str] = MODELS) -> list[dict]:
    """Return the rows of all records of `bench step` on some models. Raises CipherDMError if a model has none."""
    found = (records_named(records, f"step_{model}[._]*", f"cipherdm bench step {model}") for model in models)
    return [row for record in chain(*found) for row in record["rows"]]


_BASELINES = {  # label, colour, marker
    "direct": ("against SPU's default", PALETTE[0], "o"),
    "direct-pade": ("against SPU with the Pade exponential", PALETTE[1], "s"),
}


def claims_figure(table: pd.DataFrame) -> Figure:
    """Draw `gains` in time and bytes, from the least to the most favourable runs, over the range that the paper claims."""
    names = list(dict.fromkeys(zip(table["model"], table["protocols"], strict=True)))
    models = list(dict.fromkeys(table["model"]))
    places = {name: index + 0.8 * models.index(name[0]) for index, name in enumerate(names)}
    figure = new_figure(8.2, 1.7 + 0.33 * max(places.values(), default=1))
    panels = figure.subplots(1, 2, sharey=True)
    told = []
    labels = {"time": "times less time", "bytes": "times fewer bytes"}
    for axis, (quantity, label) in zip(panels, labels.items(), strict=True):
        low, high = CLAIMED[quantity]
        axis.axvspan(low, high, color="#F0E442", alpha=0.45, linewidth=0, label="claimed by the paper", zorder=0)
        axis.axvline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        for baseline, (text, colour, marker) in _BASELINES.items():
            rows = table[table["baseline"] == baseline]
            ours = zip(rows["model"], rows["protocols"], strict=True)
            height = [places[name] + (-0.13 if baseline == "direct" else 0.13) for name in ours]
            if quantity == "time":
                axis.hlines(height, rows["time_low"], rows["time_high"], color=colour, linewidth=1.2, zorder=2)
            axis.scatter(rows[quantity], height, color=colour, marker=marker, s=34, label=text, zorder=3)
        axis.set(xscale="log", xlabel=label)
        shown = [
            tick
            for tick in (0.5, 1, 2, 5, 10, 20, 50)
            if tick <= 1.3 * max(table[quantity].max(), table["time_high"].max())
        ]
        axis.set_xticks(shown)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
        told.append(f"{label}, claimed {low} to {high}: " + "; ".join(_told(table, quantity, name) for name in names))
    panels[0].set_yticks(list(places.values()), [protocols for _, protocols in names])
    panels[0].set_ylim(max(places.values()) + 0.6, -0.6 - 0.5)
    for model in models:
        first = min(place for name, place in places.items() if name[0] == model)
        style = {"transform": panels[0].get_yaxis_transform(), "fontsize": 9, "weight": "bold", "va": "center"}
        panels[0].text(0.02, first - 0.5, model, parse_math=False, **style)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return describe(
        figure,
        f"Two panels of points on logarithmic axes. {'. '.join(told)}. The first number is against SPU's default, the second "
        "against SPU with the Pade exponential.",
    )


def _told(table: pd.DataFrame, quantity: str, name: tuple[str, str]) -> str:
    rows = table[(table["model"] == name[0]) & (table["protocols"] == name[1])].set_index("baseline")[quantity]
    values = [f"{rows[baseline]:.2f}" for baseline in _BASELINES if baseline in rows and np.isfinite(rows[baseline])]
    return f"{name[1]} on {name[0]} {' and '.join(values)}"


def published_table(measurements: Path) -> str:
    """Return what the published functions gain in a step, in time for each number of images and in bytes, as Markdown."""
    rows = step_rows(measurements)
    times, sizes = (gains_by_batch(rows, quantity=quantity) for quantity in ("time", "bytes"))
    cells = [
        [*named, *(f"{gain:.2f}" for gain in times.loc[named]), f"{sizes.loc[named].iloc[0]:.2f}"]
        for named in times.index
    ]
    pictures = [f"time, {batch} picture{'s' * (batch > 1)}" for batch in times.columns]
    return markdown(["model", "baseline", *pictures, "bytes"], cells)


TABLES = {"published": published_table}


def gain(
    model: str, protocols: str, quantity: str, baseline: str = "direct", *, benchmark: str = "step", batch: int = 1
) -> Value:
    """Return the function that takes a gain from the record of a step: "time", "bytes" or "sends", baseline / set."""
    stem = step_record(model, batch) if benchmark == "step" else f"{benchmark}_{model}"

    def value(records: Records) -> float:
        table = gains(records[stem]["rows"], batch)
        found = table[(table["protocols"] == protocols) & (table["baseline"] == baseline)]
        return float(found[quantity].iloc[0])

    return value


_QUICK = ("--repetitions", "1", "--at-once", "1")  # options of reduced runs

# Batch size, then options of the full run, in which a turn with many images takes minutes, and more of the reduced run.
_STEPS = (
    (1, ("--repetitions", "3", "--at-once", "1"), ()),
    *((batch, ("--repetitions", "2", "--at-once", "1"), ("--protocols", "direct,fast")) for batch in STEP_BATCHES[1:]),
)

_STEP_CHECKS = (  # quantity, baseline, set, batch, expected gain of each model, tolerance, digits
    ("bytes", "direct", "cipherdm", 1, (1.22, 2.14), 0.02, 2),
    ("bytes", "direct-pade", "cipherdm", 1, (2.66, 3.43), 0.03, 2),
    ("bytes", "direct", "fast", 1, (12.6, 7.4), 0.2, 1),
    ("bytes", "direct", "distilled", 1, (22.6, 12.5), 0.3, 1),
    ("bytes", "direct", "fast-64", 1, (23.3, 14.9), 0.5, 1),
    (
        "bytes",
        "direct",
        "fast-rings",
        1,
        (33.4, 22.8),
        1.5,
        1,
    ),  # its plan is from numbers that are met, and moves a little
    ("time", "direct", "fast", 1, (4.9, 4.0), None, 1),
    ("time", "direct", "fast-64", 1, (16.9, 10.8), None, 1),
    ("time", "direct", "fast-rings", 1, (14.5, 11.1), None, 1),
    ("time", "direct", "fast", 16, (8.2, 5.3), None, 1),
    ("time", "direct", "cipherdm", 1, (1.18, 1.28), 0.3, 2),
    ("time", "direct", "cipherdm", 16, (0.93, 1.29), 0.3, 2),
    ("time", "direct-pade", "cipherdm", 1, (1.88, 1.87), 0.3, 2),
)


def _step_checks(model: str, index: int) -> Iterator[Check]:
    """Yield the checks of a model. A reduced run cannot tell times; that of fast may differ by 40%."""
    for quantity, base, protocols, batch, expected, tolerance, digits in _STEP_CHECKS:
        what = f"{model}: {quantity}, {base} / {protocols}" + (f", {batch} pictures" if batch > 1 else "")
        measured = f"fast on {model}-quad" if protocols == "distilled" else protocols
        value = gain(model, measured, quantity, base, batch=batch)
        allowed = 0.4 * expected[index] if tolerance is None else tolerance
        yield Check(what, expected[index], allowed, value, tolerance if quantity == "bytes" else None, digits)


STEP = Target(
    "step",
    "One denoising step with each protocol set",
    "CipherDM's functions take 1.084 to 2.328 times less time and 1.212 to 1.791 times less communication than direct SPU; "
    "ours take less still",
    "paper",
    tuple(
        Command(step_record(model, batch), ("bench", "step", model, "--batch", str(batch)), full, (*reduced, *_QUICK))
        for batch, full, reduced in _STEPS
        for model in MODELS
    ),
    tuple(check for index, model in enumerate((TINY, TEN)) for check in _step_checks(model, index)),
    lambda records: claims_figure(gains(step_rows(records))),
    order=10,
)

PROMPT_STEP = Target(
    f"step-{PROMPT_MODEL}",
    "One denoising step of a model that takes prompts, with guidance",
    "at least 5 times less time, fewer bytes and fewer messages than direct SPU",
    "ours",
    (Command(step_record(PROMPT_MODEL), ("bench", "step", PROMPT_MODEL, "--batch", "1"), _STEPS[0][1], _QUICK),),
    tuple(
        Check(f"{name}, direct / fast-64", 5, 0, gain(PROMPT_MODEL, "fast-64", quantity), reduced, bound="least")
        for name, quantity, reduced in (("bytes", "bytes", 0), ("messages", "sends", None), ("time", "time", None))
    ),
    lambda records: claims_figure(gains(step_rows(records, (PROMPT_MODEL,)))),
    order=100,
)
