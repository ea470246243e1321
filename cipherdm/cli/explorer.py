"""`cipherdm explorer`: the sliders of notebook 05 as a page on this machine, for readers without JupyterLab.

Voila runs a notebook of two cells in a kernel of its own for each visitor, and shows its output. It serves this machine
only, and passes on messages of widgets only, so that a page cannot run code of its own in the kernel.
"""

import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CipherDMError

ADDRESS = "127.0.0.1"
TITLE = "How long does secure sampling take?"

_INTRODUCTION = f"""# {TITLE}

Three parties sample images from a diffusion model on secret shares. The time depends on the network between them and on the
protocol set. Choose a network, or move the sliders; bars and map follow. A cross on the map is your network, the dots are
the networks to choose from.

The times follow from one step, measured with the parties side by side, by the model
*computing + rounds x round trip / 2 + bytes / bandwidth*, which notebook 05 explains and compares with real runs.
"""

_SLIDERS = """from cipherdm.views import latency_explorer

latency_explorer()"""


def write_page(folder: Path) -> Path:
    """Write the notebook that Voila serves into a folder, and return its path."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_markdown_cell(_INTRODUCTION), new_code_cell(_SLIDERS)]
    path = folder / "explorer.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel, "title": TITLE}), path)
    return path


def explorer(
    port: Annotated[int, typer.Option(help="Port of the page.", min=1, max=65535)] = 8866,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Serve sliders as a page on this machine: time of sampling by network, protocol set, batch and steps."""
    from ..views.latency import load_costs

    load_costs()  # a missing record is reported here instead of on the page
    try:
        socket.create_server((ADDRESS, port)).close()
    except OSError as error:
        raise CipherDMError(
            f"port {port} of this machine cannot be used ({error.strerror}): choose another one with --port."
        ) from None
    typer.echo(f"The page is at http://{ADDRESS}:{port}; Ctrl-C ends it.")
    from voila.app import Voila

    with tempfile.TemporaryDirectory(prefix="cipherdm-explorer-") as folder:
        arguments = [str(write_page(Path(folder))), f"--port={port}", f"--Voila.ip={ADDRESS}", "--Voila.port_retries=0"]
        Voila.launch_instance(arguments if browser else [*arguments, "--no-browser"])
