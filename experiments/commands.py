"""Parts that the commands of experiments share: options, runs in turns, medians of their costs, and the end of a command."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
import typer

from cipherdm.engine import CostReport
from cipherdm.errors import CipherDMError
from cipherdm.files import check_writable, checkout
from cipherdm.progress import Progress
from cipherdm.records import write_record


def _writable_record(record: Path | None) -> Path | None:
    check_writable(record_path(record, "record"))
    return record


def _writable_folder(folder: Path | None) -> Path | None:
    if folder is not None:
        check_writable(folder / "journal.json")
    return folder


# Checked when the command line is read, so before any measurement that would be lost.
RecordOption = Annotated[
    Path | None,
    typer.Option(help="The JSON file to write; in data/measurements by default.", callback=_writable_record),
]
KeepOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of finished parts; runs/COMMAND/RECORD by default, COMMAND with underscores.",
        callback=_writable_folder,
    ),
]
ProtocolsOption = Annotated[str, typer.Option(help="Name of a protocol set.")]
RepetitionsOption = Annotated[int, typer.Option(help="Counted runs of each; one more warms up.", min=1)]
BatchOption = Annotated[str, typer.Option(help="Images at a time: one or several numbers, with commas between.")]
StepsOption = Annotated[int, typer.Option(help="Length of the schedule whose first steps are run.")]
AtOnceOption = Annotated[int, typer.Option(help="Steps in one program; costs are divided by them.")]
PromptModel = Annotated[str, typer.Argument(help="A name in data/models, or the path of a Stable Diffusion folder.")]
Result = TypeVar("Result")


def split_names(text: str) -> list[str]:
    """Return the names in a text that has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def silent(done: int, total: int, label: str) -> None:
    """Report no progress."""


def take_turns(
    runs: Sequence[tuple[str, Callable[[], Result]]],
    repetitions: int,
    progress: Progress = silent,
    *,
    warm_up: bool = True,
    before: int = 0,
    total: int = 0,
) -> list[list[Result]]:
    """Run named functions in turns, so that a busy moment of the machine does not fall on one of them alone.

    Return the results of the counted turns, a list per function. With `warm_up` there is one more turn before them. `before`
    and `total` are the parts of the work that were done before, and all of it; by default there are only the turns.
    """
    found: list[list[Result]] = [[] for _ in runs]
    labels = ["warm-up"] * warm_up + [f"run {turn + 1} of {repetitions}" for turn in range(repetitions)]
    for turn, label in enumerate(labels):
        for index, (name, run) in enumerate(runs):
            progress(before + turn * len(runs) + index, total or len(labels) * len(runs), f"{name}: {label}")
            result = run()
            if turn >= warm_up:
                found[index].append(result)
    return found


def typical(costs: Sequence[CostReport]) -> dict[str, Any]:
    """Return the parties' own time for repeated runs of one program (median, least, most), and medians of what they sent."""
    times = [1000 * float(cost.by_program()["seconds"].iloc[0]) for cost in costs]
    sent = {
        name: round(statistics.median(getattr(cost, name) for cost in costs)) for name in ("bytes", "sends", "rounds")
    }
    return {"ms": statistics.median(times), "ms_low": min(times), "ms_high": max(times), **sent}


def parse_numbers(text: str, option: str) -> list[int]:
    """Read positive numbers: "1,4,16" gives [1, 4, 16]. Raises CipherDMError for any other text."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise CipherDMError(
            f"cannot read {option} {text!r}: write positive numbers separated by commas, such as 1,4,16."
        )
    return [int(part) for part in parts]


def most_memory(peaks: Sequence[int]) -> int:
    """Return the largest of `Session.peak_memory`. Raises CipherDMError where the system does not tell, so that it is empty."""
    if not peaks:
        raise CipherDMError(
            "this system does not tell how much memory a process held, so there can be no record of it."
        )
    return max(peaks)


def record_path(record: Path | None, stem: str) -> Path:
    """Return the path of a record: the given one, or `stem` in data/measurements."""
    return record or checkout() / "data" / "measurements" / f"{stem}.json"


def finish(record: Path, found: Mapping[str, Any], *tables: pd.DataFrame) -> None:
    """Write a record, and print its tables and where it is."""
    write_record(record, dict(found))
    for table in tables:
        # A table's numbering of its rows says nothing.
        numbered = isinstance(table.index, pd.RangeIndex)
        typer.echo(table.to_string(index=not numbered, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")
