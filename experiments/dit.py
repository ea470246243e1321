"""A diffusion transformer, sampled: mnist-dit under several sets, with what a step costs and what is drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cipherdm.views.style import PALETTE, describe, new_figure

from .markdown import duration, markdown, megabytes, records_named, times
from .quality import accuracy
from .step_gains import gain, step_record
from .target import Check, Command, Target, field

MODEL, STUDENT, STEPS = "mnist-dit", "mnist-dit-quad", 20
# Model and set. `ditto` needs a student with its quadratic.
WAYS = tuple((MODEL, name) for name in ("direct", "puma", "fast-rings"))
WAYS += tuple((STUDENT, name) for name in ("direct", "ditto", "fast-rings"))
_SECURE = 16


def _variant(model: str, protocols: str) -> str:
    return protocols if model == MODEL else f"{protocols} on {model}"


def _quality(model: str, protocols: str) -> str:
    return f"quality_{model}_{protocols}_ddim-{STEPS}"


def rows(measurements: Path) -> Iterator[dict[str, Any]]:
    """Yield for each model and set what its records say: a step's costs, accuracy, and the pictures on shares."""
    (steps,) = records_named(measurements, f"{step_record(MODEL)}.json", f"cipherdm bench step {MODEL}")
    costs = {row["variant"]: row for row in steps["rows"]}
    for model, name in WAYS:
        (found,) = records_named(measurements, f"{_quality(model, name)}.json", f"cipherdm evaluate {model}")
        yield {"model": model, "protocols": name, "cost": costs[_variant(model, name)], "quality": found}


def dit_table(measurements: Path) -> str:
    """Return a step's costs and the quality of mnist-dit under each set, as Markdown."""
    lines, base = [], None
    for row in rows(measurements):
        cost, quality = row["cost"], row["quality"]
        base = base or cost
        secure = quality.get("secure")
        gains = (times(base[key] / cost[key]) for key in ("seconds", "bytes"))
        lines.append(
            [row["model"], row["protocols"], duration(cost["seconds"]), megabytes(cost["bytes"]), f"{cost['sends']:,}"]
            + [*gains, f"{quality['accuracy']:.1%}"]
            + (["-", "-"] if secure is None else [f"{secure['psnr']:.1f} dB", f"{secure['psnr_lowest']:.1f} dB"])
        )
    header = ["model", "protocols", "time", "MB", "messages", "less time", "fewer bytes", "accuracy"]
    return markdown([*header, "PSNR on shares", "lowest"], lines)


TABLES = {"dit": dit_table}


def figure(records: Path) -> Figure:
    """Draw the bytes and messages of a step under each set, beside the accuracy of what is drawn."""
    found = list(rows(records))
    names = [_variant(row["model"], row["protocols"]) for row in found]
    sizes = [row["cost"]["bytes"] / 1e6 for row in found]
    right = [row["quality"]["accuracy"] for row in found]
    drawn = new_figure(8.2, 3.2)
    left, other = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colours = [PALETTE[2] if row["protocols"].startswith("fast") else PALETTE[0] for row in found]
    told = [f" {size:,.1f}; {row['cost']['sends']:,}" for size, row in zip(sizes, found, strict=True)]
    left.bar_label(left.barh(names, sizes, color=colours, height=0.7), told, fontsize=8)
    left.set(xscale="log", xlabel="MB of all parties for a step; messages", xlim=(min(sizes) / 2, max(sizes) * 30))
    left.invert_yaxis()
    other.plot(right, names, "o", color=PALETTE[1])
    for place, value in enumerate(right):
        other.annotate(
            f"{value:.1%}", (value, place), xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center"
        )
    other.set(xlim=(min(right) - 0.03, 1.005), xlabel=f"accuracy of {found[0]['quality']['count']:,} pictures")
    other.xaxis.set_major_formatter("{x:.0%}")
    other.grid(axis="x", color="#dddddd")
    said = (f"{name} {size:,.1f} MB, {value:.1%}" for name, size, value in zip(names, sizes, right, strict=True))
    return describe(drawn, f"Bytes of a step, and accuracy, of {MODEL} under each set: {'; '.join(said)}.")


def _evaluated(model: str, protocols: str) -> Command:
    secure = ("--secure", str(_SECURE)) if protocols in ("fast-rings", "ditto") else ()
    base = ("evaluate", model, "--protocols", protocols, "--steps", str(STEPS))
    return Command(_quality(model, protocols), base, secure, ("--count", "200", "--compare", "16"))


_SMALLEST = _variant(STUDENT, "fast-rings")
_SETS = ",".join((*(_variant(*way) for way in WAYS), "fast-64"))

TARGET = Target(
    "dit",
    "A diffusion transformer, sampled under each set",
    "current diffusion models are transformers, and three parties sample them as they sample U-Nets",
    "ours",
    (
        Command(
            step_record(MODEL),
            ("bench", "step", MODEL, "--batch", "1", "--protocols", _SETS),
            ("--repetitions", "5", "--at-once", "1"),
            ("--repetitions", "1", "--at-once", "1"),
        ),
        *(_evaluated(*way) for way in WAYS),
    ),
    (
        accuracy("accuracy of mnist-dit", _quality(MODEL, "direct"), 98.8, 1, 4),
        accuracy("accuracy of the student by ditto", _quality(STUDENT, "ditto"), 97.5, 1, 4),
        Check("bytes, direct / fast-rings", 10.6, 0.5, gain(MODEL, "fast-rings", "bytes"), 1),
        Check("bytes, direct / fast-rings on the student", 14.9, 0.5, gain(MODEL, _SMALLEST, "bytes"), 1),
        Check("PSNR on shares", 27.2, 3, field(_quality(MODEL, "fast-rings"), "secure", "psnr"), unit=" dB"),
        Check("PSNR on shares, student", 38.7, 3, field(_quality(STUDENT, "fast-rings"), "secure", "psnr"), unit=" dB"),
    ),
    figure,
    order=97,
)
