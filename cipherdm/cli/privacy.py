"""`cipherdm privacy`: what a model's folder states about the data that it learnt from."""

from pathlib import Path
from typing import Annotated

import typer


def privacy(folder: Annotated[Path, typer.Argument(help="Folder of a model, with privacy.json in it.")]) -> None:
    """Print who is promised what about the training data, after computing epsilon anew from the noise.

    The exit code is 1 if the numbers do not fit together, and if the training was not private because its noise has a seed.
    """
    from ..private.statement import privacy_of

    statement = privacy_of(folder)
    typer.echo(statement.text)
    if not statement.private:
        raise typer.Exit(1)
