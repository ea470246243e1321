"""`cipherdm calibrate` and `cipherdm check-ranges`: what the owner of a checkpoint runs before it is sampled from shares."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import cipherdm as cdm

from ..errors import CipherDMError
from ..progress import ProgressBar
from .options import ModelArgument, ProtocolsOption

if TYPE_CHECKING:
    from ..owner.ranges import LayerRange

LEFT = 3  # exit code if a layer left its range; errors have 1, and wrong usage 2


def calibrate(
    name: ModelArgument,
    images: Annotated[
        int | None,
        typer.Option(help="Number of images: of each class, 24 by default, or of all captions, 64 by default.", min=1),
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            help="Number of timesteps, evenly spaced; schedules take the nearest. 100, or 50 with captions.", min=1
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(help="File with one caption per line (Stable Diffusion models); its captions.txt by default."),
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="Guidance scale of the sampling to come, with captions.")] = 7.5,
    seed: Annotated[int, typer.Option(help="Seed of the noise, which is public.")] = 0,
) -> None:
    """Calibrate a model for the set `fast`: measure in plaintext what its layers carry, and store fits in its folder."""
    from ..calibration import read_captions
    from ..models import UNet
    from ..sampling.pipeline import load_model

    folder = cdm.find_model(name)
    model = load_model(folder)
    if captions is not None and isinstance(model, UNet):
        raise CipherDMError(f"{folder} is no Stable Diffusion folder, and takes no captions.")
    texts = None if captions is None else read_captions(captions)
    settings = {"timesteps": timesteps, "images": images, "guidance_scale": guidance_scale, "seed": seed}
    with ProgressBar("step") as bar:
        path = cdm.calibrate(model, texts, progress=bar, **settings)
    typer.echo(f"Wrote {path}.")


def check_ranges(
    model: ModelArgument,
    protocols: ProtocolsOption = "fast",
    steps: Annotated[int, typer.Option(help="Number of denoising steps.")] = 20,
    count: Annotated[int, typer.Option(help="Number of images of each class.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the noise, which is public.")] = 1,
) -> None:
    """Check in plaintext whether a model's layers stay in the ranges outside which a protocol set is wrong.

    Prints what every layer carries on fresh noise, worst first. The exit code is 0 if no layer leaves its range, 3 if one
    does, and 1 for errors.
    """
    from ..protocols import named

    chosen, unet = named(protocols), cdm.load_unet(cdm.find_model(model))
    with ProgressBar("step") as bar:
        found = cdm.check_ranges(unet, chosen, steps=steps, per_class=count, seed=seed, progress=bar)
    if found:
        typer.echo(f"{table(found)}\n{verdict(found)}")
    else:
        typer.echo(f"No function of {chosen.name} is restricted to a range, so nothing can leave one.")
    raise typer.Exit(LEFT if any(entry.outside for entry in found) else 0)


def table(found: "Sequence[LayerRange]") -> str:
    """Format one line per layer and function, in the order given; steps are counted from 1."""
    import pandas as pd  # slow to import, and --help does not need it

    rows = [
        {
            "layer": entry.layer,
            "function": entry.function,
            "lowest": entry.lowest,
            "highest": entry.highest,
            "allowed": f"{entry.allowed[0]:.4g} to {entry.allowed[1]:.4g}",
            "outside": f"{100 * entry.outside:.2g}%",
            "worst step": "" if entry.step is None else str(entry.step + 1),
            "beyond by": entry.excess,
        }
        for entry in found
    ]
    return pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format)


def verdict(found: "Sequence[LayerRange]") -> str:
    """Name the layers that leave their range, each once, in the order given."""
    layers = {entry.layer for entry in found}
    leaving = list(dict.fromkeys(entry.layer for entry in found if entry.outside))
    if not leaving:
        return f"All {len(layers)} layers stay in their ranges."
    return f"{len(leaving)} of {len(layers)} layers leave their range: {', '.join(leaving)}."
