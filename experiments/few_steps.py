"""Quality over calls of the U-Net: teachers with their samplers, and the students that draw in one, two or four calls."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from cipherdm.costs.sampling import SAMPLERS
from cipherdm.records import read_record
from cipherdm.schedules import whole_steps
from cipherdm.views.style import PALETTE, describe, new_figure

from .markdown import markdown, records_named
from .quality import accuracy
from .target import PROMPT_MODEL, TEN, Check, Command, Target, field

CALLS = {TEN: (1, 2, 4), PROMPT_MODEL: (1, 2, 4)}
"""Calls of the U-Net, with a student for each."""

QUADRATIC = f"{PROMPT_MODEL}-turbo-1-quad"
"""The student of one call whose activation is a quadratic."""

_CAPTIONS = 1000


def quality_over_calls(measurements: Path) -> list[dict[str, Any]]:
    """Return a row for each record of mnist10 with its exact functions and of its students, by calls of the U-Net."""
    found = records_named(
        measurements, f"quality_{TEN}*_direct*.json", f"cipherdm evaluate {TEN}-turbo-2 --record PATH"
    )
    rows = [record | {"calls": record["steps"]} for record in found if record["model"] in (TEN, *students(TEN))]
    return sorted(rows, key=lambda row: (row["model"], row["scheduler"], row["calls"]))


def captions_over_calls(measurements: Path) -> list[dict[str, Any]]:
    """Return a row for each record of captions read back by calls of the U-Net, of which guidance takes two a step."""
    found = records_named(measurements, "captions_*.json", f"cipherdm read-back {PROMPT_MODEL} --record PATH")
    rows = [record | {"calls": record["steps"] * (1 + (record["guidance"] not in (0, 1)))} for record in found]
    return sorted(rows, key=lambda row: row["calls"])


def reused(measurements: Path) -> list[dict[str, Any]]:
    """Return the records of mnist10 in which only some steps call the whole U-Net. "calls" counts these."""
    found = records_named(measurements, "reuse_*.json", f"cipherdm evaluate {TEN} --steps 20 --reuse 4 --record PATH")
    return [record | {"calls": int(whole_steps(record["steps"], record["reuse"])[0].sum())} for record in found]


def students(model: str) -> tuple[str, ...]:
    """Return the names of a model's students."""
    return tuple(f"{model}-turbo-{calls}" for calls in CALLS[model])


def few_steps_table(measurements: Path) -> str:
    """Return the quality of digits over calls of the U-Net."""
    rows = [
        [row["model"], _sampler(row), str(row["calls"]), f"{row['accuracy']:.2%}", f"{row['lenet_fid']:.2f}"]
        for row in (*quality_over_calls(measurements), *reused(measurements))
        if row["scheduler"] != "ddpm"
    ]
    return markdown(["model", "sampler", "whole calls", "accuracy", "LeNet-FID"], rows)


def trainings_table(measurements: Path) -> str:
    """Return how students were trained: from whose weights, by which errors, and how good they were on the way.

    Beside the students of `data/models` stands the one call of digits without distribution matching.
    """
    models = measurements.parent / "models"
    named = [*students(TEN), *students(PROMPT_MODEL), QUADRATIC]
    found = [read_record(models / name / "training.json") for name in named]
    found.insert(1, read_record(measurements / "student_without_matching.json"))
    rows = []
    for record in found:
        config = record["config"]
        phases = ", then ".join(f"{phase['steps']} {_errors(phase, config)}" for phase in config["phases"])
        scores = ", ".join(f"{_score(each)} at {each['step']:,}" for each in record["scores"])
        rows.append(
            [config["name"], config["initial"] or config["teacher"], phases, scores, f"{record['seconds']:,.0f} s"]
        )
    return markdown(["student", "begins as", "steps", "scores", "time"], rows)


def _errors(phase: dict[str, Any], config: dict[str, Any]) -> str:
    kinds = ["of the picture" if phase["whole"] else "of single calls"]
    kinds += (
        ["pseudo-Huber"] * phase["huber"] + ["pixels"] * (config["pixels"] > 0) + ["matching"] * (phase["matching"] > 0)
    )
    return ", ".join(kinds)


def _score(scores: dict[str, Any]) -> str:
    return f"{scores['lenet_fid']:.2f}" if "lenet_fid" in scores else f"{scores['all']:.1%}"


def _sampler(row: dict[str, Any]) -> str:
    reuse = f", reuse={row['reuse']}" if row.get("reuse", 1) > 1 else ""
    return f"{SAMPLERS[row['scheduler']]}-{row['steps']}{reuse}"


def figure(records: Path) -> Figure:
    """Draw LeNet-FID of digits, and captions read back, over calls of the U-Net."""
    drawn = new_figure(9.0, 3.4)
    left, right = drawn.subplots(1, 2)
    told = []
    digits = quality_over_calls(records)
    kinds = {"DDIM": "ddim", "DPM-Solver++": "dpmsolver++"}
    lines = {
        f"{TEN}, {name}": [r for r in digits if (r["model"], r["scheduler"]) == (TEN, kind)]
        for name, kind in kinds.items()
    }
    lines["its students"] = [row for row in digits if row["model"] != TEN]
    for colour, (name, rows) in zip(PALETTE, lines.items(), strict=False):
        found = [(row["calls"], row["lenet_fid"]) for row in sorted(rows, key=lambda row: row["calls"])]
        left.plot(*zip(*found, strict=True), "o-", color=colour, label=name)
        told.append(f"{name} {', '.join(f'{score:.2f} with {calls}' for calls, score in found)}")
    left.set(title="ten digits", ylabel="LeNet-FID, less is better", yscale="log")
    left.yaxis.set_major_locator(FixedLocator([0.6, 1, 2, 4]))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    captions = captions_over_calls(records)
    for colour, (name, rows) in zip(
        (PALETTE[0], PALETTE[2]),
        {
            f"{PROMPT_MODEL}, with guidance": [row for row in captions if row["model"] == PROMPT_MODEL],
            "its students": [row for row in captions if row["model"] in students(PROMPT_MODEL)],
        }.items(),
        strict=True,
    ):
        found = [(row["calls"], 100 * row["drawn"]["all"]) for row in rows]
        right.plot(*zip(*found, strict=True), "o-", color=colour, label=name)
        told.append(f"{name} {', '.join(f'{share:.1f}% with {calls}' for calls, share in found)}")
    right.axhline(100 * captions[0]["real"]["all"], color="0.6", lw=1, label="composed from MNIST")
    right.set(title="captions", ylabel="images that show their caption")
    right.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    for axis in (left, right):
        axis.set(xlabel="calls of the U-Net", xscale="log")
        axis.xaxis.set_major_locator(FixedLocator([1, 2, 4, 10, 20, 40]))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.legend(frameon=False, fontsize=9)
    return describe(
        drawn, f"LeNet-FID over calls of the U-Net: {'; '.join(told[:3])}. Captions read back: {'; '.join(told[3:])}."
    )


def _commands(models: Sequence[str]) -> tuple[Command, ...]:
    digits = tuple(
        Command(f"quality_{name}_direct", ("evaluate", name), (), ("--count", "200", "--compare", "16"))
        for name in students(TEN)
    )
    digits += tuple(
        Command(
            f"reuse_{TEN}_{reuse}", ("evaluate", TEN, "--steps", "20", "--reuse", str(reuse)), (), ("--count", "200")
        )
        for reuse in (2, 4)
    )
    reading = ("--count", str(_CAPTIONS)), ("--count", "100")
    return digits + tuple(Command(f"captions_{name}", ("read-back", name), *reading) for name in (*models, QUADRATIC))


_ALL = "all of a caption but the place"

FEW_STEPS = Target(
    "few-steps",
    "Quality over calls of the U-Net: teachers, and students of one, two and four calls",
    "four calls of a student give nearly what twenty steps of its teacher give",
    "ours",
    _commands(students(PROMPT_MODEL)),
    (
        *(
            accuracy(f"{name}: accuracy", f"quality_{name}_direct", expected, 1, 3)
            for name, expected in zip(students(TEN), (99.0, 99.2, 99.0), strict=True)
        ),
        accuracy(f"{TEN}, DDIM-20, every fourth call whole: accuracy", f"reuse_{TEN}_4", 99.0, 1, 3),
        *(
            Check(f"{name}: {_ALL}", expected, 2, field(f"captions_{name}", "drawn", "all", factor=100), 6, unit="%")
            for name, expected in zip((*students(PROMPT_MODEL), QUADRATIC), (92.5, 94.5, 95.5, 92.0), strict=True)
        ),
    ),
    figure,
    order=95,
)

TABLES = {"few_steps": few_steps_table, "trainings": trainings_table}
