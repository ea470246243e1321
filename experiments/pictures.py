"""What pictures cost on three parties, and how good they are: teachers under direct, with fast sets, and few-step students."""

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

import cipherdm as cdm
from cipherdm.costs.sampling import SAMPLERS
from cipherdm.engine import LocalCluster
from cipherdm.errors import CipherDMError
from cipherdm.likeness import psnr
from cipherdm.models import find_model
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, named
from cipherdm.records import read_record
from cipherdm.sampling.pipeline import Pipeline, load_model
from cipherdm.schedules import whole_steps
from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .commands import RecordOption, RepetitionsOption, finish, record_path, silent
from .few_steps import captions_over_calls, quality_over_calls, reused
from .markdown import duration, markdown, megabytes, times
from .prompts import PROMPTS
from .target import PROMPT_MODEL, TEN, Check, Command, Target

LABELS = tuple(range(10))


@dataclass(frozen=True)
class Way:
    """A way to draw: ten digits at once, or a prompt. A long one takes minutes, and is run once, without a warm-up."""

    model: str
    protocols: str
    scheduler: str = "ddim"
    steps: int = 20
    guidance_scale: float = 1.0
    reuse: int = 1
    long: bool = False

    @property
    def calls(self) -> int:
        """Calls of the whole U-Net."""
        return int(whole_steps(self.steps, self.reuse)[0].sum()) * (1 + (self.guidance_scale != 1))


_TEACHER = {"scheduler": "ddim", "steps": 20, "guidance_scale": 4.0}
WAYS = (
    Way(TEN, "direct", steps=50, long=True),
    Way(TEN, "direct", "dpmsolver++", 10, long=True),
    *(Way(TEN, "fast-rings", steps=20, reuse=reuse) for reuse in (1, 4)),
    Way(TEN, "fast-rings", "dpmsolver++", 10),
    *(Way(f"{TEN}-turbo-{calls}", "fast-rings", steps=calls) for calls in (4, 2, 1)),
    Way(PROMPT_MODEL, "direct", **_TEACHER, long=True),
    Way(PROMPT_MODEL, "fast-rings", **_TEACHER),
    *(Way(f"{PROMPT_MODEL}-turbo-{calls}", "fast-rings", steps=calls) for calls in (4, 2, 1)),
    Way(f"{PROMPT_MODEL}-turbo-1-quad", "fast-rings", steps=1),
)


def run(ways: Sequence[Way] = WAYS, repetitions: int = 3, progress: Progress = silent) -> list[dict[str, Any]]:
    """Draw in every way from one noise, and return a row for each.

    "seconds" is what the parties computed (median, and least and most), "whole_seconds" what the client waited, and
    "first_seconds" that of the first run, with compiling and planning. "psnr_db" compares with exact functions in plaintext.
    """
    rows, turns = [], [1 if way.long else repetitions + 1 for way in ways]
    with LocalCluster() as cluster, TemporaryDirectory() as temporary:
        for index, way in enumerate(ways):
            folder = find_model(way.model)
            if way.reuse > 1:  # fits are those of the way in which a model is sampled
                folder = shutil.copytree(folder, Path(temporary) / way.model)
                cdm.calibrate(load_model(folder), timesteps=way.steps, reuse=way.reuse)
            model = load_model(folder)
            settings: dict[str, Any] = {"scheduler": way.scheduler, "steps": way.steps, "reuse": way.reuse, "seed": 0}
            if isinstance(model, Pipeline):
                settings |= {"prompts": list(PROMPTS[:1]), "guidance_scale": way.guidance_scale}
                draw = partial(cdm.text_to_image, model, **settings)
            else:
                draw = partial(cdm.sample, model, labels=list(LABELS), **settings)
            exact = draw(None, protocols=DIRECT)
            costs, waited = [], []
            for turn in range(turns[index]):
                progress(sum(turns[:index]) + turn, sum(turns), f"{way.model}, {way.protocols}, run {turn + 1}")
                start = perf_counter()
                drawn = draw(cluster, protocols=named(way.protocols), granularity="step")
                waited.append(perf_counter() - start)
                costs.append(drawn.cost.totals())
            counted = costs[-max(1, turns[index] - 1) :]
            seconds = [cost["seconds"] for cost in counted]
            rows.append(
                {"model": way.model, "protocols": way.protocols, "scheduler": way.scheduler, "steps": way.steps}
                | {"reuse": way.reuse}
                | {"calls": way.calls, "pictures": len(drawn.images), "runs": len(counted)}
                | counted[-1]
                | {"seconds": statistics.median(seconds), "seconds_low": min(seconds), "seconds_high": max(seconds)}
                | {"whole_seconds": statistics.median(waited[-len(counted) :]), "first_seconds": waited[0]}
                | {"psnr_db": statistics.mean(psnr(drawn.images, exact.images))}
            )
    return rows


def measure(
    repetitions: RepetitionsOption = 3,
    reduced: Annotated[bool, typer.Option("--reduced", help="Only what takes seconds.")] = False,
    record: RecordOption = None,
) -> None:
    """Draw ten digits, and a prompt, in several ways: time, bytes, messages, likeness to exact functions.

    Teachers under direct are run once, and take 20 minutes together; the others are repeated.
    """
    path = record_path(record, _RECORD)
    with ProgressBar("run") as bar:
        rows = run([way for way in WAYS if not (reduced and way.long)], repetitions, bar)
    finish(path, {"benchmark": "pictures", "labels": LABELS, "prompt": PROMPTS[0], "rows": rows})


_RECORD = "pictures"


def with_quality(measurements: Path) -> list[dict[str, Any]]:
    """Return the record's rows with "quality" of exact functions in words, and "gain" over the first way of each kind."""
    digits = {
        (each["model"], each["scheduler"], each["steps"], each.get("reuse", 1)): each
        for each in (*quality_over_calls(measurements), *reused(measurements))
    }
    captions = {(each["model"], each["steps"]): each for each in captions_over_calls(measurements)}
    rows, first = read_record(measurements / f"{_RECORD}.json")["rows"], {}
    for row in rows:
        kind = row["model"].partition("-turbo")[0]
        base = first.setdefault(kind, row)
        scored = digits if kind == TEN else captions
        key = (
            (row["model"], row["scheduler"], row["steps"], row["reuse"])
            if kind == TEN
            else (row["model"], row["steps"])
        )
        if key not in scored:
            command = "evaluate" if kind == TEN else "read-back"
            raise CipherDMError(
                f"there is no record of the quality of {way_named(row)}: make it with `cipherdm {command}`."
            )
        found = scored[key]
        quality = f"LeNet-FID {found['lenet_fid']:.2f}" if kind == TEN else f"{found['drawn']['all']:.1%} of captions"
        gain = {name: base[name] / row[name] for name in ("seconds", "bytes")}
        row |= {"kind": kind, "quality": quality, "gain": gain}
    return rows


def way_named(row: Mapping[str, Any]) -> str:
    """Return the name of a way to draw, of a row of the record."""
    calls = f"{row['calls']} call" + "s" * (row["calls"] != 1)
    calls += f" of {row['steps']}, reuse={row['reuse']}" if row["reuse"] > 1 else ""
    return f"{row['model']}, {SAMPLERS[row['scheduler']]}, {calls}, {row['protocols']}"


def pictures_table(measurements: Path) -> str:
    """Return what pictures cost, with the quality that the way has by its record."""
    rows = [
        [way_named(row), row["quality"], f"{row['psnr_db']:.1f} dB", duration(row["seconds"]), megabytes(row["bytes"])]
        + [f"{row['rounds']:,}", times(row["gain"]["seconds"]), times(row["gain"]["bytes"])]
        for row in with_quality(measurements)
    ]
    header = ["ten digits, or a prompt", "quality", "PSNR to exact", "time", "MB", "rounds", "less time", "fewer bytes"]
    return markdown(header, rows)


def figure(records: Path) -> Figure:
    """Draw the bytes and the time of each way as bars, ten digits above a prompt."""
    rows = with_quality(records)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    places = [index + kinds.index(row["kind"]) for index, row in enumerate(rows)]
    drawn = new_figure(9.4, 1.2 + 0.42 * len(rows))
    left, right = drawn.subplots(1, 2, sharey=True)
    for axis, quantity, factor, unit in ((left, "bytes", 1e-6, "MB of all parties"), (right, "seconds", 1, "seconds")):
        values = [row[quantity] * factor for row in rows]
        colours = [PALETTE[0] if row["protocols"] == "direct" else PALETTE[2] for row in rows]
        axis.barh(places, values, color=colours, height=0.7)
        axis.set(xscale="log", xlabel=unit, xlim=(min(values) / 3, max(values) * 40))
        axis.xaxis.set_major_locator(LogLocator(numticks=4))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        for place, value, row in zip(places, values, rows, strict=True):
            told = f" {value:,.0f}" if value >= 10 else f" {value:.1f}"
            axis.text(value, place, f"{told} ({row['gain'][quantity]:,.0f}x less)" if row["gain"][quantity] > 1 else told,
                      va="center", fontsize=8.5, color=GREY)  # fmt: skip
    left.set_yticks(places, [f"{way_named(row)}\n{row['quality']}" for row in rows], fontsize=8.5)
    left.invert_yaxis()
    said = (f"{way_named(row)}: {row['bytes'] / 1e6:,.0f} MB, {row['seconds']:,.1f} s" for row in rows)
    return describe(drawn, f"Cost of ten digits and of a prompt on three parties. {'; '.join(said)}.")


def _gain(model: str, quantity: str, kind: str) -> Any:
    def found(records: Mapping[str, Any]) -> float:
        rows = {row["model"]: row for row in records[_RECORD]["rows"] if row["protocols"] != "direct"}
        base = next(row for row in records[_RECORD]["rows"] if row["model"] == kind and row["protocols"] == "direct")
        return base[quantity] / rows[model][quantity]

    return found


def _checks() -> tuple[Check, ...]:
    found = []
    for kind, model, seconds, sent in (
        (TEN, f"{TEN}-turbo-2", 300, 565),
        (PROMPT_MODEL, f"{PROMPT_MODEL}-turbo-1", 240, 880),
    ):
        found += [
            Check(
                f"{model}: fewer bytes than direct with {kind}",
                sent,
                0.02 * sent,
                _gain(model, "bytes", kind),
                unit="x",
            ),
            Check(f"{model}: less time", seconds, 0.5 * seconds, _gain(model, "seconds", kind), unit="x", digits=0),
        ]
    return tuple(found)


TABLES = {"pictures": pictures_table}

TARGET = Target(
    "pictures",
    "What ten digits, and a prompt, cost in several ways, and how good they are",
    "students with fast sets draw in seconds what the teacher under direct draws in minutes",
    "ours",
    (Command(_RECORD, ("bench", "pictures"), (), ("--reduced", "--repetitions", "1")),),
    _checks(),
    figure,
    order=96,
)
