"""The command line: the library's commands, and those that other packages register.

Commands import large libraries when they run, so that `cipherdm --help` answers at once.
"""

import sys
from importlib.metadata import entry_points

import typer

from ..errors import CipherDMError
from . import conversion, explorer, hosts, inspection, owner, sample, split, texts

COMMANDS = "cipherdm.commands"
"""Group of entry points whose functions and Typer applications become commands under their names."""


def build() -> typer.Typer:
    """Return the application with all commands: the library's own, and those registered under `COMMANDS`."""
    app = typer.Typer(
        help="Secure three-party sampling of diffusion models.", no_args_is_help=True, pretty_exceptions_enable=False
    )
    here = (
        sample.sample,
        texts.classify,
        owner.calibrate,
        owner.check_ranges,
        owner.plan,
        inspection.inspect,
        inspection.privacy,
        conversion.convert,
        explorer.explorer,
    )
    of_hosts = (hosts.certificates, hosts.party, hosts.status, hosts.register, hosts.unregister, hosts.request)
    for command in (*here, *of_hosts, split.split_server, split.split_client):
        app.command()(command)
    for entry in entry_points(group=COMMANDS):
        command = entry.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)
    return app


def main() -> None:
    """Run the command line. A CipherDMError is printed without a traceback, with exit code 1."""
    try:
        build()()
    except CipherDMError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
