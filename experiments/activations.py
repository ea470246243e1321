"""Every approximation beside the exact function, on the same values, parties and run: error, time, bytes, messages."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from cipherdm.engine import CostReport, EngineConfig, LocalCluster
from cipherdm.errors import CipherDMError
from cipherdm.progress import Progress, ProgressBar
from cipherdm.records import read_record
from cipherdm.views.pareto import pareto_figure
from cipherdm.views.style import Shown

from .activations_cases import ROW, Case, cases
from .commands import RecordOption, finish, parse_numbers, record_path, silent, take_turns, typical
from .markdown import markdown, records_named
from .target import Check, Command, Records, Target, Value
from .variants import BASELINES

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SHOWN = 100_000  # elements of the rows that tables and figures show
_ONCE = 1_000_000  # from this size on, one repetition: the exact functions take many seconds


def run(
    cluster: LocalCluster,
    sizes: Sequence[int] = SIZES,
    repetitions: int = 3,
    progress: Progress = silent,
    chosen: Sequence[Case] | None = None,
) -> dict[str, Any]:
    """Measure every function, or the `chosen` cases, in turns at every size on the cluster's parties; return the record."""
    measured = [(case, exp) for case in chosen or cases() for exp in case.exps]
    counts = [1 if size >= _ONCE else repetitions for size in sizes]
    rows, done, total = [], 0, sum(counts) * len(measured)
    for size, count in zip(sizes, counts, strict=True):
        names = (f"{case.kind} {case.name} {exp} {size:,}" for case, exp in measured)
        runs = [(name, partial(_measure, cluster, *item, size)) for name, item in zip(names, measured, strict=True)]
        found = take_turns(runs, count, progress, warm_up=False, before=done, total=total)
        rows += [_row(*item, size, results) for item, results in zip(measured, found, strict=True)]
        done += count * len(measured)
    return {"benchmark": "activations", "repetitions": repetitions, "softmax_row": ROW, "rows": rows}


def table(record: dict[str, Any], size: int | None = None) -> pd.DataFrame:
    """Return the record's rows as a table, of one size or of all, with bytes per element."""
    frame = pd.DataFrame(record["rows"])
    frame.insert(frame.columns.get_loc("sends"), "bytes_per_element", frame["bytes"] / frame["elements"])
    return frame if size is None else frame[frame["elements"] == size].reset_index(drop=True)


def measure(
    sizes: Annotated[str, typer.Option(help="Numbers of elements.")] = "1000,10000,100000,1000000",
    repetitions: Annotated[int, typer.Option(help="Repetitions of every function at every size.")] = 3,
    record: RecordOption = None,
) -> None:
    """Measure every approximation beside the exact function on three parties: error, time, bytes, messages."""
    chosen = parse_numbers(sizes, "--sizes")
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        found = run(cluster, chosen, repetitions, bar)
    finish(record_path(record, "activations"), found, table(found))


def _measure(cluster: LocalCluster, case: Case, exp: str, size: int) -> tuple[CostReport, float]:
    session = cluster.session(EngineConfig(exp=exp))
    values = case.values(size)
    result, cost = session.run_once(case.function, case.inputs(values))
    return cost, case.max_error(values, result)


def _row(case: Case, exp: str, size: int, results: Sequence[tuple[CostReport, float]]) -> dict[str, Any]:
    costs, errors = zip(*results, strict=True)
    found = typical(costs)
    return {
        "kind": case.kind,
        "function": case.name,
        "exp": exp,
        "elements": case.values(size).size,
        "max_error": max(errors),
        "relative": case.relative,
        **{name: found[name] for name in ("ms", "ms_low", "ms_high", "bytes", "sends")},
    }


def activations_table(measurements: Path) -> str:
    """Return error and cost of every function on `SHOWN` elements, as Markdown."""
    command = "cipherdm bench activations"
    (record,) = records_named(measurements, "activations.json", command)
    rows = []
    for row in (row for row in record["rows"] if row["elements"] == SHOWN):
        # An approximation's own name begins with the kind.
        exact = f"{row['kind']}, direct" + (", pade" if row["exp"] == "pade" else "")
        name = exact if row["function"] == "direct" else row["function"]
        error = f"{row['max_error']:.2g}" + (" of the value" if row["relative"] else "")
        rows.append([name, error, f"{row['ms']:,.0f}", f"{row['bytes'] / row['elements']:,.0f}", f"{row['sends']:,}"])
    if not rows:
        raise CipherDMError(f"activations.json has no rows of {SHOWN:,} elements: measure them with `{command}`.")
    return markdown(["function", "max error", "ms", "bytes/element", "messages"], rows)


TABLES = {"activations": activations_table}

_GAINS = {  # of each kind: the published function, the corrected one, and ours with its scales folded
    "exp": ("exp_cipherdm", "exp_corrected", "exp_bounded4_folded"),
    "silu": ("silu_cipherdm", "silu_corrected", "silu_degree8_bound6_folded"),
    "mish": ("mish_cipherdm", "mish_corrected", "mish_degree6_bound6_folded"),
    "softmax": ("softmax_cipherdm", "softmax_corrected", "softmax_bounded4_calibrated_folded"),
}

_WAYS = ("published", "corrected", "ours")


def function_gains(record: Mapping[str, Any], elements: int = SHOWN) -> pd.DataFrame:
    """Return each function that CipherDM replaces, exact and approximated, from the record of `bench activations`.

    Indexed by kind and way ("direct", "direct-pade", "published", "corrected", "ours"): largest error, ms, bytes per element;
    how many times less time and fewer bytes than "direct" and than "direct-pade". The error of our exp is a share of the value.
    """
    rows = {(r["kind"], r["function"], r["exp"]): r for r in record["rows"] if r["elements"] == elements}
    found = {}
    for kind, functions in _GAINS.items():
        mine = {base: rows[kind, "direct", exp] for base, exp in zip(BASELINES, ("taylor", "pade"), strict=True)}
        mine |= {way: rows[kind, function, "taylor"] for way, function in zip(_WAYS, functions, strict=True)}
        for way, row in mine.items():
            found[kind, way] = {
                "largest error": row["max_error"],
                "ms": row["ms"],
                "bytes an element": row["bytes"] / elements,
                **{f"time, {base} /": mine[base]["ms"] / row["ms"] for base in BASELINES},
                **{f"bytes, {base} /": mine[base]["bytes"] / row["bytes"] for base in BASELINES},
            }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["function", "way"])


def of_function(kind: str, function: str, name: str = "max_error", exp: str = "taylor") -> Value:
    """Return the function that takes a number of one function, at its smallest size: "max_error", or "bytes" per element."""

    def value(records: Records) -> float:
        named = (kind, function, exp)
        rows = [row for row in records["activations"]["rows"] if (row["kind"], row["function"], row["exp"]) == named]
        row = min(rows, key=lambda row: row["elements"])
        return float(row[name]) / (row["elements"] if name == "bytes" else 1)

    return value


def figure(records: Path) -> Shown:
    """Draw error against bytes of every SiLU."""
    record = read_record(records / "activations.json")
    sizes = {row["elements"] for row in record["rows"]}
    return pareto_figure(record, "silu", "bytes", elements=SHOWN if SHOWN in sizes else max(sizes))


TARGET = Target(
    "activations",
    "Error and cost of every function",
    "exp, SiLU and Mish by polynomials cost less than the exact functions on SPU; as published they are coarse",
    "paper",
    (Command("activations", ("bench", "activations"), (), ("--sizes", "1000", "--repetitions", "1")),),
    (
        *(
            Check(f"largest error of {what}", expected, allowed, of_function(kind, function), allowed, digits)
            for what, expected, allowed, kind, function, digits in (
                ("exp, published", 0.0485, 0.001, "exp", "exp_cipherdm", 4),
                ("exp, corrected", 0.0055, 0.0005, "exp", "exp_corrected", 4),
                ("SiLU, published", 0.064, 0.004, "silu", "silu_cipherdm", 3),
            )
        ),
        *(
            Check(f"bytes an element, SiLU {what}", expected, allowed, of_function("silu", *function), allowed, 0)
            for what, expected, allowed, function in (
                ("direct", 1832, 2, ("direct", "bytes")),
                ("direct, Pade", 3072, 3, ("direct", "bytes", "pade")),
                ("published", 728, 1, ("silu_cipherdm", "bytes")),
            )
        ),
    ),
    figure,
    order=20,
)
