"""The tables of REPRODUCING.md: what each target takes, its commands, and what is expected beside the committed records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CipherDMError
from ..records import read_record
from .claims import gains_by_batch
from .figures import step_rows
from .target import Check, Piece, Records, Target
from .targets import TARGETS

COSTS = "reproduce.json"
FULL_CALL = "sd15_step.json"
_SOURCES = {"paper": "the paper", "published": "published", "ours": "ours"}


def targets_table(measurements: Path) -> str:
    """Each target: its claim, whose it is, and the minutes and memory of its full and its reduced run, where measured.

    The last row is of all of them one after the other.
    """
    rows = [
        [
            f"`{t.name}`",
            t.title,
            t.claim,
            _SOURCES[t.source],
            full(t.pieces, measurements),
            reduced(t.pieces, measurements),
        ]
        for t in TARGETS
    ]
    everything = [piece for target in TARGETS for piece in target.pieces]
    rows.append(["all", "", "", "", full(everything, measurements), reduced(everything, measurements)])
    return _markdown(["target", "shows", "claim", "whose", "full run", "reduced run"], rows)


def pieces_table(measurements: Path) -> str:
    """Each piece: the command of its full run, what the reduced one changes, and the record that it makes."""
    rows = [
        [
            f"`{target.name}`",
            f"`{piece.command_line(reduced=False)}`",
            f"`{' '.join(piece.reduced)}`" if piece.reduced else "the same",
            f"data/measurements/{piece.name}.json",
        ]
        for target in TARGETS
        for piece in target.pieces
    ]
    return _markdown(["target", "command", "reduced", "record"], rows)


def expected_table(measurements: Path) -> str:
    """Each expected number with its tolerances, and what the committed record says."""
    rows = [
        [
            f"`{target.name}`",
            check.what,
            check.shown(check.expected),
            check.margin(check.tolerance),
            "-" if check.reduced is None else check.margin(check.reduced),
            _found(target, check, measurements),
        ]
        for target in TARGETS
        for check in target.checks
    ]
    return _markdown(["target", "number", "expected", "full", "reduced", "committed"], rows)


def published_table(measurements: Path) -> str:
    """What the published functions gain in a step, in time for each number of pictures, and in bytes, beside both baselines."""
    rows = step_rows(measurements)
    times, sizes = (gains_by_batch(rows, quantity=quantity) for quantity in ("time", "bytes"))
    cells = [
        [*named, *(f"{gain:.2f}" for gain in times.loc[named]), f"{sizes.loc[named].iloc[0]:.2f}"]
        for named in times.index
    ]
    pictures = [f"time, {batch} picture{'s' * (batch > 1)}" for batch in times.columns]
    return _markdown(["model", "baseline", *pictures, "bytes"], cells)


def full_size_table(measurements: Path) -> str:
    """A picture of Stable Diffusion's size, projected from the record of one call, published figures, and what is left out."""
    path = measurements / FULL_CALL
    if not path.exists():
        return f"The record {path.name} is not there yet; `cipherdm bench full-call` makes it."
    # Only this table needs them, which bring the whole library along.
    from ..views.full_size import PARTS, full_size_frame
    from .full_call import summary
    from .full_size import LEFT_OUT, Picture

    record = read_record(path)
    rows = [
        [
            name,
            row["what"],
            *("-" if row[part] != row[part] else f"{row[part]:.2f}" for part in PARTS),
            f"{row['hours']:.2f}",
            f"{row['GB']:,.0f}",
        ]
        for name, row in full_size_frame(record).iterrows()
    ]
    header = ["over", "network", *(f"{part}, h" for part in PARTS), "h", "GB"]
    return (
        f"{summary(record)}\n\nFrom that call, for a picture of {Picture().steps} steps with classifier-free guidance, "
        f"{Picture().calls} calls, with the keys and values of each of two prompts computed once:\n\n"
        f"{_markdown(header, rows)}\n\nNot in these hours: {'; '.join(LEFT_OUT)}."
    )


def full(pieces: Sequence[Piece], measurements: Path) -> str:
    """ "12 min, 2.1 GiB": what the runs behind committed records took, "> 12 min" if a record holds a part of its time."""
    paths = [measurements / f"{piece.name}.json" for piece in pieces]
    records = [read_record(path) for path in paths if path.exists()]
    whole = [seconds(record) for record in records]
    known = [
        (took or least_seconds(record), (record.get("run") or {}).get("memory") or parties_memory(record))
        for took, record in zip(whole, records, strict=True)
    ]
    known = [(took, memory) for took, memory in known if took]
    text = _took(known, len(pieces) - len(known))
    in_part = any(least_seconds(record) and not took for took, record in zip(whole, records, strict=True))
    return f"> {text}" if in_part else text


def reduced(pieces: Sequence[Piece], measurements: Path) -> str:
    """The same of reduced runs, from the record of `cipherdm reproduce --costs`."""
    path = measurements / COSTS
    rows = read_record(path)["rows"] if path.exists() else []
    known = {row["piece"]: row for row in rows if row["reduced"]}
    mine = [known[piece.name] for piece in pieces if piece.name in known]
    return _took([(row["seconds"], row["memory"]) for row in mine], len(pieces) - len(mine))


def seconds(record: dict[str, Any]) -> float | None:
    """How long the run took that made a record: as `cipherdm reproduce` or the command measured it; None if neither did."""
    run = record.get("run") or {}
    return run.get("seconds") or record["environment"].get("process_seconds") or record.get("seconds")


def least_seconds(record: dict[str, Any]) -> float:
    """Seconds that the parties computed for a record, as far as it holds them: less than the run took. 0 if it holds none."""
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


def parties_memory(record: dict[str, Any]) -> int:
    """Three times the most that a party's process held, in bytes; 0 if the record does not say it."""
    found = [record.get("peak_memory", 0), record.get("peak_memory_bytes", 0)]
    found += [row.get("peak_memory", 0) for row in record.get("rows", [])]
    return 3 * max(max(value, default=0) if isinstance(value, list | tuple) else value for value in found)


def _took(known: list[tuple[float, int]], missing: int) -> str:
    if not known:
        return "not timed"
    minutes, memory = sum(took for took, _ in known) / 60, max(memory for _, memory in known) / 2**30
    text = f"{minutes:.0f} min" if minutes >= 1.5 else f"{60 * minutes:.0f} s"
    text += f", {memory:.1f} GiB" if memory else ""
    return text + (f", and {missing} not timed" if missing else "")


def _found(target: Target, check: Check, measurements: Path) -> str:
    """What the committed record says, or "not run" if it is not there."""
    try:
        return check.shown(check.value(Records(measurements)))
    except CipherDMError:
        return "not run"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
