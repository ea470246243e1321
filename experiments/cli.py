"""The commands `cipherdm bench EXPERIMENT`, `cipherdm reproduce` and `cipherdm tables`.

An experiment is a module of this folder, found by `discovery`: its function `measure` is the command.
"""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from cipherdm.cli.options import writable
from cipherdm.files import check_writable, checkout

from . import discovery


class _Experiment(TyperCommand):
    """A command whose module is imported when it is run. Until then only its name and its help are known."""

    def make_context(self, info_name, args, parent=None, **extra):
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(import_module(f".{self.name.replace('-', '_')}", __package__).measure)
        return typer.main.get_command(alone).make_context(info_name, args, parent, **extra)


class _Experiments(TyperGroup):
    """The group of all experiments' commands."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Return the names of all commands."""
        return list(discovery.commands())

    def get_command(self, ctx: typer.Context, name: str) -> TyperCommand | None:
        """Return an experiment's command, or None if there is none of that name."""
        text = discovery.commands().get(name)
        return None if text is None else _Experiment(name, help=text)


app = typer.Typer(
    cls=_Experiments,
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
        Path | None,
        typer.Option(help="Only write the time and memory of finished commands to this JSON file.", callback=writable),
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
        check_writable(checkout() / document)
    for document in DOCUMENTS:
        changed = rewrite(checkout() / document, checkout() / "data" / "measurements")
        typer.echo(f"{document}: {'rewritten' if changed else 'up to date'}")
