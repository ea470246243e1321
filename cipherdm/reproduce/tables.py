"""The tables of REPRODUCING.md: what each target takes, its commands, and what is expected beside the committed records."""

from pathlib import Path
from typing import Any

from ..errors import CipherDMError
from ..records import read_record
from .target import Check, Records, Target
from .targets import TARGETS

COSTS = "reproduce.json"
_SOURCES = {"paper": "the paper", "published": "published", "ours": "ours"}


def targets_table(measurements: Path) -> str:
    """Each target: its claim, whose it is, and the minutes and memory of its full and its reduced run, where measured."""
    rows = [
        [f"`{t.name}`", t.title, t.claim, _SOURCES[t.source], full(t, measurements), reduced(t, measurements)]
        for t in TARGETS
    ]
    return _markdown(["target", "shows", "claim", "whose", "full run", "reduced run"], rows)


def pieces_table(measurements: Path) -> str:
    """Each piece: the command of its full run, what the reduced one changes, and the record that it makes."""
    rows = [
        [
            f"`{target.name}`",
            f"`{piece.command_line(reduced=False)}`",
            f"`{' '.join(piece.reduced)}`" if piece.reduced else "the same",
            f"{target.place}/{piece.stem}.json",
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
            f"± {check.shown(check.tolerance)}",
            "-" if check.reduced is None else f"± {check.shown(check.reduced)}",
            _found(target, check, measurements),
        ]
        for target in TARGETS
        for check in target.checks
    ]
    return _markdown(["target", "number", "expected", "full", "reduced", "committed"], rows)


def full(target: Target, measurements: Path) -> str:
    """ "12 min, 2.1 GiB": what the committed records of a target took, as far as they say it."""
    folder = _folder(target, measurements)
    records = [read_record(folder / f"{stem}.json") for stem in target.stems if (folder / f"{stem}.json").exists()]
    known = [(seconds(record), (record.get("run") or {}).get("memory", 0)) for record in records]
    missing = len(target.stems) - sum(1 for took, _ in known if took)
    return _took([(took, memory) for took, memory in known if took], missing)


def reduced(target: Target, measurements: Path) -> str:
    """The same of the reduced run, from the record of `cipherdm reproduce --costs`."""
    path = measurements / COSTS
    rows = read_record(path)["rows"] if path.exists() else []
    known = {row["piece"]: row for row in rows if row["reduced"]}
    mine = [known[piece.name] for piece in target.pieces if piece.name in known]
    return _took([(row["seconds"], row["memory"]) for row in mine], len(target.pieces) - len(mine))


def seconds(record: dict[str, Any]) -> float | None:
    """How long the run took that made a record: as `cipherdm reproduce` or the command measured it; None if neither did."""
    run = record.get("run") or {}
    return run.get("seconds") or record["environment"].get("process_seconds") or record.get("seconds")


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
        return check.shown(check.value(Records(_folder(target, measurements))))
    except CipherDMError:
        return "not run"


def _folder(target: Target, measurements: Path) -> Path:
    return measurements.parent.parent / "figures" if target.place == "figures" else measurements


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
