"""The commands `cipherdm bench EXPERIMENT`, `cipherdm reproduce` and `cipherdm tables`.

To add an experiment, write a module with its command, `measure`, and a `TARGET`. Name the module in `EXPERIMENTS` here, and its
target in `targets.TARGETS`. A table for documents goes into `tables.TABLES`. The record goes into data/measurements.
"""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from cipherdm.files import root

EXPERIMENTS = (
    *("operations", "activations", "piecewise", "step", "ladder", "breakdown", "linear", "network", "latency"),
    *("trajectory", "prompts", "grid", "segments", "full-call", "soak"),
)
"""Commands of `cipherdm bench`, each the function `measure` of the module of its name, or of that in `_MODULES`."""

_MODULES = {"segments": "ddpm1000", "full-call": "sd15"}


class Experiments(TyperGroup):
    """A group of commands that imports an experiment's module when its command is asked for."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Return the names of all commands, in the order of `EXPERIMENTS`."""
        return list(EXPERIMENTS)

    def get_command(self, ctx: typer.Context, name: str):
        """Return an experiment's command, or None if there is none of that name."""
        if name not in EXPERIMENTS:
            return None
        alone = typer.Typer(add_completion=False)
        alone.command(name)(import_module(f".{_MODULES.get(name, name)}", __package__).measure)
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=Experiments,
    help="Measure what protocol sets cost on three parties on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def reproduce(
    names: Annotated[
        list[str] | None, typer.Option("--only", help="Name of a target, or several with commas between.")
    ] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Measure little of each target, into runs/reproduce/reduced.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Only list the targets, and which commands are finished.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Forget what is finished, and measure again.")] = False,
    costs: Annotated[
        Path | None, typer.Option(help="Only write the time and memory of finished commands to this JSON file.")
    ] = None,
) -> None:
    """Measure tables and figures again, and compare them with the expected numbers.

    Each target is one or several commands of the project. Finished commands are kept and skipped, so a run can be
    interrupted and started again. A full run takes hours and puts its records into data/measurements and its figures into
    figures; a reduced one takes a small part of that and touches neither. The exit code is 3 if a number is not as expected.
    """
    from cipherdm.records import read_record, write_record

    from . import runner
    from .commands import split_names
    from .targets import TARGETS

    chosen = runner.choose(TARGETS, [name for text in names or [] for name in split_names(text)])
    folders = runner.Folders.of(reduced)
    if list_:
        typer.echo(runner.listing(chosen, folders))
    elif costs is not None:
        before = read_record(costs)["rows"] if costs.exists() else []
        rows = runner.costs(TARGETS, (runner.Folders.of(True), runner.Folders.of(False)), before)
        write_record(costs, {"what": "what pieces of cipherdm reproduce took", "rows": rows})
        typer.echo(f"Wrote {costs}.")
    elif not runner.reproduce(chosen, folders, typer.echo, again=again):
        raise typer.Exit(3)


def tables() -> None:
    """Rewrite the tables in documents from the records in data/measurements."""
    from .tables import DOCUMENTS, rewrite

    for document in DOCUMENTS:
        changed = rewrite(root() / document, root() / "data" / "measurements")
        typer.echo(f"{document}: {'rewritten' if changed else 'up to date'}")
