"""Commands of a split training: `cipherdm split-server | split-client`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

FileArgument = Annotated[Path, typer.Argument(help="TOML file of this side.")]


def split_server(file: FileArgument) -> None:
    """Train a ControlNet on what clients send, until the last step, Ctrl-C or SIGTERM.

    The same command goes on from the last checkpoint.
    """
    _become("server", file)


def split_client(file: FileArgument) -> None:
    """Take part in the training of a ControlNet with pictures of one's own. The server learns all of them.

    The record that it leaves has the bytes of each field, and the seconds of waiting.
    """
    _become("client", file)


def _become(kind: str, file: Path) -> None:
    from ..split import load_side
    from ..split.process import QUIET, command

    load_side(file, kind)
    os.execve(sys.executable, command(kind, file), os.environ | QUIET)
