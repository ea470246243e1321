"""What the commands of experiments share: their options, and how they end, with a record and a printed table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from cipherdm.files import root
from cipherdm.records import write_record

RecordOption = Annotated[Path | None, typer.Option(help="The JSON file to write; in data/measurements by default.")]
ProtocolsOption = Annotated[str, typer.Option(help="Name of a protocol set.")]
RepetitionsOption = Annotated[int, typer.Option(help="Counted runs of each; one more warms up.", min=1)]
BatchOption = Annotated[str, typer.Option(help="Images at a time: one or several numbers, with commas between.")]
StepsOption = Annotated[int, typer.Option(help="Length of the schedule whose first steps are run.")]
AtOnceOption = Annotated[int, typer.Option(help="Steps in one program; costs are divided by them.")]
PromptModel = Annotated[str, typer.Argument(help="A name in data/models, or the path of a Stable Diffusion folder.")]


def split_names(text: str) -> list[str]:
    """Return the names in a text that has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def record_path(record: Path | None, stem: str) -> Path:
    """Return the path of a record: the given one, or `stem` in data/measurements."""
    return record or root() / "data" / "measurements" / f"{stem}.json"


def finish(record: Path, found: Mapping[str, Any], *tables: pd.DataFrame) -> None:
    """Write a record, and print its tables and where it is."""
    write_record(record, dict(found))
    for table in tables:
        # A table's numbering of its rows says nothing.
        numbered = isinstance(table.index, pd.RangeIndex)
        typer.echo(table.to_string(index=not numbered, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")
