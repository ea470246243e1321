"""The command line. The library's commands are in this folder; whatever else is installed may register more.

Commands import what they need when they run, so that `cipherdm --help` answers at once.
"""

import sys
from importlib.metadata import entry_points

import typer

from ..errors import CipherDMError
from . import explorer, hosts, owner, sample

COMMANDS = "cipherdm.commands"
"""The group of entry points whose functions and Typer applications become commands under their names."""


def build() -> typer.Typer:
    """The application with all commands: the library's own, and those that are registered under `COMMANDS`."""
    app = typer.Typer(
        help="Secure three-party sampling of diffusion models.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    for command in (
        sample.sample,
        owner.calibrate,
        owner.check_ranges,
        explorer.explorer,
        hosts.certificates,
        hosts.party,
        hosts.status,
        hosts.register,
        hosts.unregister,
        hosts.request,
    ):
        app.command()(command)
    for entry in entry_points(group=COMMANDS):
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)
    return app


def main() -> None:
    """Entry point of the command: an error of ours is printed without a traceback, with exit code 1."""
    try:
        build()()
    except CipherDMError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
