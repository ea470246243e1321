"""`cipherdm explorer`: the sliders of notebook 06 as a page of its own, which needs neither Python nor a network to move."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..files import check_writable, replacing

TITLE = "How long does secure sampling take?"

_INTRODUCTION = (
    "Three parties sample images from a diffusion model on secret shares. The time depends on the network between them and on "
    "the protocol set. Choose a network, or move the sliders; bars and map follow. A cross on the map is your network, the "
    "dots are the networks to choose from.",
    "The times follow from one step, measured with the parties side by side, by the model “computing + rounds × round trip / 2 "
    "+ bytes / bandwidth”, which notebook 06 explains and compares with real runs.",
)


def explorer(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("explorer.html"),
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Write sliders as a page, and open it: time of sampling by network, protocol set, batch and steps."""
    from ..views import latency_explorer
    from ..views.widgets import page

    check_writable(out, [".html"])
    with replacing(out) as temporary:
        temporary.write_text(page(TITLE, _INTRODUCTION, latency_explorer()))
    typer.echo(f"The page is {out}.")
    if browser:
        webbrowser.open(out.absolute().as_uri())
