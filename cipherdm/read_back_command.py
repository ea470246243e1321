"""`cipherdm read-back`: what sd-mini draws, read by a classifier."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from .errors import CipherDMError
from .models import find_model
from .records import write_record

_PARTS = ("digit", "colour", "background", "size", "place", "all")


def read_back(
    model: Annotated[str, typer.Argument(help="A name in data/models, or the path of a folder that was trained here.")],
    count: Annotated[int, typer.Option(help="Pictures to draw, captions balanced.")] = 500,
    steps: Annotated[int, typer.Option(help="Denoising steps, by DDIM.")] = 20,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of captions and noise.")] = 0,
    record: Annotated[Path | None, typer.Option(help="Also write the scores to this JSON file.")] = None,
) -> None:
    """Draw captions with a Stable Diffusion pipeline in plaintext, and read digit, colours, size and place back.

    Prints the share of pictures that show what their caption says, beside the same for pictures composed from MNIST's test
    images, as they are and after the autoencoder: what the reader can find at best.
    """
    if count < 1 or steps < 1:
        raise CipherDMError(f"Cannot draw {count} pictures in {steps} steps: both numbers must be at least 1.")
    from .training.sd_mini.score import read_back as score  # torch and transformers take seconds to import

    folder = find_model(model)
    settings = {"count": count, "steps": steps, "guidance": guidance, "seed": seed}
    with tqdm(total=count, unit="picture") as bar:
        found = score(folder, **settings, on_batch=lambda done: bar.update(done - bar.n))
    typer.echo(f"{found['model']}, DDIM-{steps}, guidance {guidance:g}, {count} pictures read as their captions say:")
    for kind in ("drawn", "decoded", "real"):
        shares = ", ".join(f"{part} {found[kind][part]:.1%}" for part in _PARTS if part in found[kind])
        typer.echo(f"{kind:>8}: {shares}")
    if record is not None:
        write_record(record, found)
