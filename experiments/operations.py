"""Cost of each elementary operation on three parties: time, bytes and messages, from an addition to a softmax."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import typer
from jax import lax

from cipherdm.engine import CostReport, LocalCluster, Session
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols.fixed import spread

from .commands import RecordOption, RepetitionsOption, finish, record_path, silent, take_turns, typical
from .target import Check, Command, Target, Value

ROW = 100  # numbers in a softmax row, and rows and columns of the matrices
ADDITIONS = 20  # one after the other, because a single one is over before it can be measured


@dataclass(frozen=True)
class Operation:
    """An operation to measure: its name in tables and figures, its function on shares, and names of its `inputs`."""

    name: str
    function: Callable
    arguments: tuple[str, ...] = ("x",)


def _times_public(x):
    return x * jnp.float32(0.3)


def _additions(words, others):
    for _ in range(ADDITIONS):
        words = words + others
    return words


def _additions_of_views(words):
    for _ in range(ADDITIONS):
        words = words + words[:, :1]
    return words


def _additions_written_out(words):
    for _ in range(ADDITIONS):
        words = words + spread(words[:, :1], words.shape)
    return words


def _select(x, y, is_larger):
    return jnp.where(is_larger, x, y)


OPERATIONS = (
    Operation("addition", jnp.add, ("x", "y")),
    Operation("secret x public", _times_public),
    Operation("secret x secret", jnp.multiply, ("x", "y")),
    Operation("matrix product", jnp.matmul, ("rows", "columns")),
    Operation("less-than", jnp.less, ("x", "y")),
    Operation("select", _select, ("x", "y", "is_larger")),
    Operation("maximum", jnp.maximum, ("x", "y")),
    Operation("exp", jnp.exp, ("negative",)),
    Operation("reciprocal", jnp.reciprocal),
    Operation("rsqrt", lax.rsqrt),
    Operation("sigmoid", jax.nn.sigmoid, ("scores",)),
    Operation("softmax", jax.nn.softmax, ("rows",)),
)

# The same sums with operands that lie differently in memory, see `protocols.layout`.
LAYOUTS = (
    Operation(f"{ADDITIONS} additions", _additions, ("words", "others")),
    Operation(f"{ADDITIONS} additions of a column", _additions_of_views, ("words",)),
    Operation(f"{ADDITIONS} of a column, written out", _additions_written_out, ("words",)),
)


def inputs(elements: int) -> dict[str, np.ndarray]:
    """Return the secrets that operations take, by name, `elements` numbers each (rounded to whole rows for matrices)."""
    generator = np.random.default_rng(0)
    x, y = generator.uniform(0.5, 4, (2, elements)).astype(np.float32)
    scores = generator.normal(0, 1.5, elements).astype(np.float32).clip(-4, 4)
    rows = np.resize(scores, (max(1, elements // ROW), ROW))
    words = np.resize(np.arange(-500, 500, dtype=np.int32), rows.shape)
    others = words[::-1].copy()
    columns = generator.normal(0, 1, (ROW, ROW)).astype(np.float32)
    arrays = {"rows": rows, "columns": columns, "words": words, "others": others}
    return {"x": x, "y": y, "negative": -x, "scores": scores, "is_larger": x > y} | arrays


def run(
    session: Session,
    elements: int = 10_000,
    repetitions: int = 3,
    progress: Progress = silent,
    chosen: Sequence[Operation] = OPERATIONS,
) -> dict[str, Any]:
    """Measure operations on a session's parties, in turns after a warm-up, on `elements` numbers each; return the record."""
    values = inputs(elements)
    errors = dict.fromkeys((operation.name for operation in chosen), 0.0)

    def run_operation(operation: Operation) -> CostReport:
        arguments = [values[name] for name in operation.arguments]
        result, cost = session.run_once(operation.function, *arguments)
        expected = np.asarray(operation.function(*arguments), np.float64)
        errors[operation.name] = max(errors[operation.name], float(np.abs(result - expected).max()))
        return cost

    runs = [(operation.name, partial(run_operation, operation)) for operation in chosen]
    costs = take_turns(runs, repetitions, progress)
    rows = []
    for operation, found in zip(chosen, costs, strict=True):
        result = jax.eval_shape(operation.function, *(values[name] for name in operation.arguments))
        about = {"operation": operation.name, "elements": result.size}
        costs_of = typical(found)
        parties = [cost.programs[["sent_bytes", "sends"]].max() for cost in found]
        rows.append(
            {
                **about,
                **{name: costs_of[name] for name in ("ms", "ms_low", "ms_high", "bytes")},
                "messages": costs_of["sends"],
                "rounds": costs_of["rounds"],
                "busiest_bytes": int(statistics.median(party["sent_bytes"] for party in parties)),
                "busiest_messages": int(statistics.median(party["sends"] for party in parties)),
                "max_error": errors[operation.name],
            }
        )
    return {"benchmark": "operations", "repetitions": repetitions, "row": ROW, "rows": rows}


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each operation: ms (median), bytes per element and messages of all parties, messages of the busiest."""
    frame = pd.DataFrame(record["rows"]).set_index("operation")
    frame.insert(1, "bytes_per_element", frame["bytes"] / frame["elements"])
    return frame[["ms", "bytes_per_element", "messages", "busiest_messages", "busiest_bytes", "max_error"]]


def measure(
    elements: Annotated[int, typer.Option(help="Numbers that an operation works on at once.", min=100)] = 10_000,
    repetitions: RepetitionsOption = 9,
    record: RecordOption = None,
) -> None:
    """Measure elementary operations on three parties, from an addition to a softmax: time, bytes, messages."""
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        session = cluster.session()
        found = run(session, elements, repetitions, bar)
        found["layouts"] = run(session, elements, repetitions, bar, LAYOUTS)["rows"]
    finish(record_path(record, "operations"), found, table(found), table({"rows": found["layouts"]}))


def bytes_per_element(operation: str) -> Value:
    """Return the function that takes an operation's bytes per element from the record."""
    return lambda records: float(table(records["operations"])["bytes_per_element"][operation])


TARGET = Target(
    "operations",
    "Cost of elementary operations",
    "comparisons and divisions are what costs; additions are free",
    "ours",
    (Command("operations", ("bench", "operations"), (), ("--elements", "1000", "--repetitions", "1")),),
    tuple(
        Check(f"bytes per element, {name}", expected, 1, bytes_per_element(name), 1, 0)
        for name, expected in {"addition": 0, "secret x secret": 52, "less-than": 108, "reciprocal": 1336}.items()
    ),
    order=190,
)
