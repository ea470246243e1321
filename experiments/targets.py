"""The targets: each table and figure of the project, with its commands and the numbers that should come out.

Expected values are those of the committed records, rounded. Bytes, messages and rounds are equal on every machine and for
all data; their tolerances cover rounding and other versions of SPU. Times differ, and their ratios are rough.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cipherdm.records import read_record

from .discovery import modules_with
from .markdown import duration, markdown
from .target import Command, Target

_FOUND = {
    value.name: value
    for module in modules_with(" = Target(\n")
    for value in vars(module).values()
    if isinstance(value, Target)
}

TARGETS = tuple(sorted(_FOUND.values(), key=lambda target: target.order))


def targets_table(measurements: Path) -> str:
    """Return each target as Markdown: its claim, whose it is, and time and memory of both its runs. The last row is of all."""
    rows = []
    for target in TARGETS:
        took = [taken(target.commands, measurements) for taken in (full, reduced)]
        source = "the paper" if target.source == "paper" else target.source
        rows.append([f"`{target.name}`", target.title, target.claim, source, *took])
    everything = [command for target in TARGETS for command in target.commands]
    rows.append(["all", "", "", "", full(everything, measurements), reduced(everything, measurements)])
    return markdown(["target", "shows", "claim", "whose", "full run", "reduced run"], rows)


def full(commands: Sequence[Command], measurements: Path) -> str:
    """Return what the runs behind committed records took: "12 min, 2.1 GiB", or "> 12 min" if a record tells but a part."""
    paths = [measurements / f"{command.name}.json" for command in commands]
    records = [read_record(path) for path in paths if path.exists()]
    known, in_part = [], False
    for record in records:
        took = seconds(record)
        if least := took or least_seconds(record):
            known.append((least, (record.get("run") or {}).get("memory") or parties_memory(record)))
            in_part |= not took
    return "> " * in_part + _took(known, len(commands) - len(known))


def reduced(commands: Sequence[Command], measurements: Path) -> str:
    """Return what reduced runs took, from the record of `cipherdm reproduce --costs`."""
    path = measurements / "reproduce.json"
    rows = read_record(path)["rows"] if path.exists() else []
    known = {row["piece"]: row for row in rows if row["reduced"]}
    mine = [known[command.name] for command in commands if command.name in known]
    return _took([(row["seconds"], row["memory"]) for row in mine], len(commands) - len(mine))


def seconds(record: dict[str, Any]) -> float | None:
    """Return how long the run took that made a record, as its command or `cipherdm reproduce` measured it; else None."""
    run = record.get("run") or {}
    return run.get("seconds") or record["environment"].get("process_seconds") or record.get("seconds")


def least_seconds(record: dict[str, Any]) -> float:
    """Return the seconds that the parties computed for a record: less than the run took. 0 if the record holds none."""
    rows = record.get("rows", [])
    if "cost" in record:  # of `cipherdm sample`
        return record["cost"]["seconds"]
    if rows and "at_once" in rows[0]:  # of steps: each is run once more to warm up, and once for its memory
        return sum(row["seconds"] * row["at_once"] * (row["repetitions"] + 2) for row in rows)
    if rows and "ms" in rows[0]:
        # The largest sizes are run once, whatever the repetitions.
        counts = [1 if row.get("elements", 0) >= 1_000_000 else record["repetitions"] for row in rows]
        return sum(row["ms"] * count for row, count in zip(rows, counts, strict=True)) / 1000
    return sum(row.get("seconds", 0.0) for row in rows)


def parties_memory(record: dict[str, Any]) -> int | None:
    """Return three times the most bytes that a party's process held; None if that was not measured."""
    found = [record.get("peak_memory"), record.get("peak_memory_bytes")]
    found += [row.get("peak_memory") for row in record.get("rows", [])]
    measured = [max(value) if isinstance(value, list | tuple) else value for value in found if value]
    return 3 * max(measured) if measured else None


def _took(known: list[tuple[float, int | None]], missing: int) -> str:
    """Say how long runs took together, and the memory of the one that held most, of those where it was measured."""
    if not known:
        return "not timed"
    measured = [memory for _, memory in known if memory]
    held = f", {max(measured) / 2**30:.1f} GiB" if measured else ""
    text = duration(sum(took for took, _ in known), digits=0) + held
    return text + (f", and {missing} not timed" if missing else "")


TABLES = {"targets": targets_table}
