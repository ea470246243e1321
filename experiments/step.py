"""A denoising step under several protocol sets that take turns on the same parties: time, bytes, messages, memory.

`step_gains` compares the sets with the paper's claim, and has the figure and the targets.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from cipherdm.cli.options import ModelArgument
from cipherdm.engine import CostReport, LocalCluster
from cipherdm.errors import CipherDMError
from cipherdm.models import UNet, find_model, load_unet
from cipherdm.progress import Progress, ProgressBar

from .commands import (
    AtOnceOption,
    BatchOption,
    RecordOption,
    RepetitionsOption,
    StepsOption,
    finish,
    most_memory,
    parse_numbers,
    record_path,
    silent,
    split_names,
    take_turns,
)
from .markdown import duration, markdown, mebibytes, megabytes, records_named, times
from .variants import AT_ONCE, BASELINES, PreparedStep, Variant, default_names, of_distilled, prepare
from .variants import variants as variants_named

_RATIOS = {"time_ratio": "seconds", "bytes_ratio": "bytes", "sends_ratio": "sends"}


def run(
    unet: UNet,
    *,
    variants: Sequence[Variant],
    batches: Sequence[int] = (1, 4, 16),
    repetitions: int = 5,
    steps: int = 20,
    at_once: int = AT_ONCE,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Measure a denoising step under every variant, for every batch size, and return a row for each.

    SPU reads a program's text at every run. So the first `at_once` of `steps` DDIM steps run in one program, and a step is
    charged its part; a set that parties walk runs one step. Variants of a batch size take turns on the same parties, after a
    warm-up. Memory is measured afterwards, on new parties for each, because the peak of a process never falls.

    Columns are model (its folder's name), batch, variant, repetitions, at_once; and for one step: seconds (wall time that the
    client sees, without compiling, sharing and revealing), seconds_low, seconds_high, bytes, sends, rounds and path_bytes
    (see `cipherdm.costs.latency`), medians; setup_seconds, setup_bytes, setup_sends of what runs once before; peak_memory,
    the most bytes that a party's process held. Raises CipherDMError if there is nothing to run, or the parties fail.
    """
    if not variants or min(repetitions, at_once) < 1 or not batches or min(batches) < 1:
        raise CipherDMError(
            f"there must be at least one variant, repetition, step and image: got {len(variants)} variants, "
            f"{repetitions} repetitions, {at_once} steps at once, batches {list(batches)}."
        )
    model = "" if unet.folder is None else unet.folder.resolve().name
    parts = len(variants) * (repetitions + 3)  # of a batch: compile, warm up, run, measure the memory
    total, rows = len(batches) * parts, []
    for place, batch in enumerate(batches):
        done, names = place * parts, [f"batch {batch} {variant.name}" for variant in variants]
        prepared = []
        for index, variant in enumerate(variants):
            progress(done + index, total, f"{names[index]}: compile")
            settings = {"batch": batch, "steps": steps, "at_once": at_once, "prefix": f"{index}/"}
            prepared.append(prepare(variant.unet or unet, variant, **settings))
        with LocalCluster() as cluster:
            setups = [step.start(cluster) for step in prepared]
            runs = [(name, partial(step.run, cluster)) for name, step in zip(names, prepared, strict=True)]
            costs = take_turns(runs, repetitions, progress, before=done + len(variants), total=total)
        memory = []
        for index, step in enumerate(prepared):
            progress(done + parts - len(variants) + index, total, f"{names[index]}: memory")
            memory.append(_peak_memory(step))
        rows += [
            {"model": model, "batch": batch, **_row(*measured)}
            for measured in zip(prepared, setups, costs, memory, strict=True)
        ]
    return pd.DataFrame(rows)


def measure(
    model: ModelArgument,
    protocols: Annotated[
        str | None,
        typer.Option(
            help="Names of protocol sets, and direct-pade, separated by commas; the published ones and ours by default."
        ),
    ] = None,
    distilled: Annotated[
        str | None,
        typer.Option(help="Model distilled from this one, to measure beside it with fast; MODEL-quad if there is one."),
    ] = None,
    batch: BatchOption = "1,4,16",
    repetitions: RepetitionsOption = 5,
    steps: StepsOption = 20,
    at_once: AtOnceOption = AT_ONCE,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="Extent of one program: block, step or loop; by default a loop, or a step for sets that are walked."
        ),
    ] = None,
    record: RecordOption = None,
) -> None:
    """Measure a denoising step under several protocol sets, taking turns: time, bytes, messages, memory.

    Ratios are against direct or direct-pade, whichever is faster; more is better.
    """

    def chosen(unet: UNet) -> tuple[Variant, ...]:
        names = default_names(unet) if protocols is None else split_names(protocols)
        return (*variants_named(names, granularity), *_distilled(model, distilled))

    settings = {"batch": batch, "repetitions": repetitions, "steps": steps, "at_once": at_once}
    measure_variants("step", model, chosen, record, **settings)


def measure_variants(
    benchmark: str,
    model: str,
    variants_of: Callable[[UNet], Sequence[Variant]],
    record: Path | None,
    *,
    batch: str,
    steps: int,
    **settings,
) -> None:
    """Measure a step with the variants that a function makes for a model, as a command: write the record, print its table."""
    batches, folder = parse_numbers(batch, "--batch"), find_model(model)
    unet = load_unet(folder)
    with ProgressBar("run") as bar:
        frame = run(unet, variants=variants_of(unet), batches=batches, steps=steps, progress=bar, **settings)
    found = {"benchmark": "step", "scheduler": "ddim", "steps": steps, "rows": frame.to_dict("records")}
    finish(record_path(record, f"{benchmark}_{folder.resolve().name}"), found, ratios(frame))


def _distilled(model: str, name: str | None) -> list[Variant]:
    """Return the variant of the distilled model: that of the given name, or `model`-quad if there is one."""
    folder = find_model(name or model)
    beside = folder if name else folder.with_name(f"{folder.resolve().name}-quad")
    return [of_distilled(load_unet(beside))] if name or beside.is_dir() else []


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `run` with time_ratio, bytes_ratio and sends_ratio: baseline divided by variant, more is better.

    The baseline of a model and batch is "direct" or "direct-pade", whichever took less time; without both, ratios are NaN.
    """

    def with_ratios(group: pd.DataFrame) -> pd.DataFrame:
        candidates = group[group["variant"].isin(BASELINES)]
        if candidates.empty:
            return group.assign(**dict.fromkeys(_RATIOS, float("nan")))
        baseline = candidates.loc[candidates["seconds"].idxmin()]
        return group.assign(**{ratio: baseline[column] / group[column] for ratio, column in _RATIOS.items()})

    return pd.concat(with_ratios(group) for _, group in frame.groupby(["model", "batch"], sort=False)).sort_index()


def _peak_memory(step: PreparedStep) -> int:
    """Return the bytes that a party holds at most, on parties that do nothing else."""
    with LocalCluster() as cluster:
        step.start(cluster)
        step.run(cluster)
        return most_memory(cluster.session(step.variant.engine).peak_memory())


def _row(step: PreparedStep, setup: CostReport | None, costs: list[CostReport], memory: int) -> dict[str, Any]:
    times = [cost.seconds / step.count for cost in costs]
    medians = {
        name: round(statistics.median(getattr(cost, name) for cost in costs) / step.count)
        for name in ("bytes", "sends", "rounds", "path_bytes")
    }
    return {
        "variant": step.variant.name,
        "at_once": step.count,
        "seconds": statistics.median(times),
        "seconds_low": min(times),
        "seconds_high": max(times),
        **medians,
        "peak_memory": memory,
        "repetitions": len(costs),
        "setup_seconds": setup.seconds if setup else 0.0,
        "setup_bytes": setup.bytes if setup else 0,
        "setup_sends": setup.sends if setup else 0,
    }


def batches_table(measurements: Path) -> str:
    """Return what each set gains in a step, for every batch size that was measured, as Markdown."""
    frame = _measured(measurements, "step")
    frame["gain"] = [", ".join(map(times, gains)) for gains in frame[list(_RATIOS)].itertuples(index=False)]
    table = frame.pivot_table(index=["model", "variant"], columns="batch", values="gain", aggfunc="first", sort=False)
    header = ["model", "protocols", *(f"{batch} at a time" for batch in sorted(table))]
    return markdown(header, [[*index, *row.fillna("-")] for index, row in table[sorted(table)].iterrows()])


def steps_table(
    measurements: Path, benchmark: str = "step", shown: Callable[[pd.DataFrame], pd.Series] | None = None
) -> str:
    """Return one step of one image against the faster exact baseline, as Markdown; the rows that `shown` takes, or all."""
    frame = _measured(measurements, benchmark)
    chosen = frame[(frame["batch"] == 1) & (True if shown is None else shown(frame))]
    if chosen.empty:
        raise CipherDMError(
            f"no record {benchmark}_*.json has batch 1: make one with `cipherdm bench {benchmark} MODEL --batch 1`."
        )
    rows = [
        [row["model"], str(row["batch"]), row["variant"], *_costs(row), *(times(row[ratio]) for ratio in _RATIOS)]
        + [megabytes(row["setup_bytes"]), mebibytes(row["peak_memory"])]
        for row in chosen.to_dict("records")
    ]
    header = ["model", "batch", "protocols", "time", "MB", "messages", "faster", "fewer bytes", "fewer messages"]
    return markdown([*header, "setup MB", "peak MiB"], rows)


def _measured(measurements: Path, benchmark: str) -> pd.DataFrame:
    """Return the rows of all records of a benchmark, with ratios."""
    records = records_named(measurements, f"{benchmark}_*.json", f"cipherdm bench {benchmark} MODEL")
    return ratios(pd.concat([pd.DataFrame(record["rows"]) for record in records], ignore_index=True))


def _costs(row: Mapping[str, Any]) -> list[str]:
    return [duration(row["seconds"]), megabytes(row["bytes"]), f"{row['sends']:,}"]


def _is_distilled(frame: pd.DataFrame) -> pd.Series:
    return frame["variant"].str.contains(" on ")


def _with_its_distilled(frame: pd.DataFrame) -> pd.Series:
    """Return which rows tell what distilling a model brings."""
    distilled = _is_distilled(frame)
    taught = frame["model"].isin(frame.loc[distilled, "model"])
    return taught & (frame["variant"].isin(["direct", "fast"]) | distilled)


TABLES = {
    "step": partial(steps_table, shown=lambda frame: ~_is_distilled(frame)),
    "step_batches": batches_table,
    "ladder": partial(steps_table, benchmark="ladder"),
    "distilled": partial(steps_table, shown=_with_its_distilled),
}
"""Tables of documents, by name."""
