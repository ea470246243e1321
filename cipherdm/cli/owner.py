"""`cipherdm calibrate` and `cipherdm check-ranges`: what the owner of a checkpoint runs before it is sampled from shares."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ..errors import CipherDMError
from ..progress import Progress, ProgressBar
from .options import ModelArgument, ProtocolsOption

if TYPE_CHECKING:
    from ..owner.ranges import LayerRange


def calibrate(
    name: ModelArgument,
    images: Annotated[
        int | None,
        typer.Option(help="Pictures to look at: of each class, 24 by default, or of all captions, 64.", min=1),
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(help="How many, evenly spaced; schedules take the nearest. 100, or 50 with captions.", min=1),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(help="For a Stable Diffusion folder, a file with one a line; its captions.txt by default."),
    ] = None,
    guidance_scale: Annotated[float, typer.Option(help="As that of the sampling to come, with captions.")] = 7.5,
    products: Annotated[
        bool,
        typer.Option(
            "--products", help="Add the sizes of products, for fast-mixed, to a calibration. 10 steps, 4 pictures."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the noise, which is public.")] = 0,
) -> None:
    """Measure what a model's layers carry, in plaintext, and store the fits that the set `fast` works with beside it."""
    from ..models import find_model, load_unet
    from ..models.checkpoint import PIPELINE
    from ..owner.calibrate import calibrate as fit
    from ..owner.observe import save_calibration
    from ..schedules import make_schedule

    folder = find_model(name)
    if products:
        if (folder / PIPELINE).is_file() or captions is not None:
            raise CipherDMError("--products is for fast-mixed, which does not compute models that take a prompt.")
        with ProgressBar("call") as bar:
            text = add_products(folder, steps=timesteps or 10, per_class=images or 4, seed=seed, progress=bar)
        typer.echo(text)
        return
    if (folder / PIPELINE).is_file():
        settings = {"timesteps": timesteps or 50, "guidance_scale": guidance_scale, "count": images or 64}
        with ProgressBar("step") as bar:
            path = calibrate_folder(folder, captions, seed=seed, progress=bar, **settings)
        typer.echo(f"Wrote {path}.")
        return
    if captions is not None:
        raise CipherDMError(f"{folder} is no Stable Diffusion folder, and takes no captions.")
    images, timesteps = images or 24, timesteps or 100
    unet = load_unet(folder)
    schedule = make_schedule(unet.scheduler_config, "ddim", timesteps)
    with ProgressBar("step") as bar:
        fits = fit(unet, schedule, images_per_class=images, seed=seed, progress=bar)
    typer.echo(f"Wrote {save_calibration(fits, unet)}.")


def check_ranges(
    model: ModelArgument,
    protocols: ProtocolsOption = "fast",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    count: Annotated[int, typer.Option(help="Pictures of each class.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the noise, which is public.")] = 1,
) -> None:
    """Check in plaintext whether a model's layers stay in the ranges outside which a set's functions are wrong.

    Prints what every layer carries on fresh noise, worst first; for fast-mixed also the products that it computes modulo
    2^32. The exit code is 0 if no layer leaves its range, 3 if
    one does, and 1 for errors.
    """

    with ProgressBar("call") as bar:
        text, code = report(model, protocols, steps=steps, count=count, seed=seed, progress=bar)
    typer.echo(text)
    raise typer.Exit(code)


LEFT = 3  # the exit code that says that a layer left its range; errors have 1, and wrong usage 2


def report(
    model: str,
    protocols: str,
    *,
    steps: int,
    count: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[str, int]:
    """What to print, and the exit code: 0 if every layer stays in its range, LEFT if one leaves it.

    Args:
        model: a name in data/models, or the path of a diffusers folder.
        protocols: a named set. For fast-mixed the products that it computes modulo 2^32 are checked too.
        steps, count, seed, progress: as `check_ranges` has them, `count` being pictures of each class.

    Raises:
        CipherDMError: as `check_ranges` and `check_small_ring`, or there is no such model or set.
    """
    from ..models import find_model, load_unet
    from ..owner.ranges import check_ranges as check
    from ..owner.ring_ranges import check_small_ring
    from ..protocols import named

    chosen, unet = named(protocols), load_unet(find_model(model))
    settings = {"steps": steps, "per_class": count, "seed": seed, "progress": progress}
    found = check_small_ring(unet, **settings) if chosen.prepare == "fast-mixed" else []
    found += check(unet, chosen, **settings)
    if not found:
        return f"No function of {chosen.name} is restricted to a range, so nothing can leave one.", 0
    found = sorted(found, key=lambda entry: -entry.outside)
    return f"{table(found)}\n{verdict(found)}", LEFT if any(entry.outside for entry in found) else 0


def table(found: "Sequence[LayerRange]") -> str:
    """One line for every layer and function, in the order given; steps are counted from 1."""
    import pandas as pd  # which takes a while, and --help need not wait for it

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
    """Which layers leave their range, each named once, in the order given."""
    layers = {entry.layer for entry in found}
    leaving = list(dict.fromkeys(entry.layer for entry in found if entry.outside))
    if not leaving:
        return f"All {len(layers)} layers stay in their ranges."
    return f"{len(leaving)} of {len(layers)} layers leave their range: {', '.join(leaving)}."


def calibrate_folder(
    folder: Path,
    captions: Path | None,
    *,
    timesteps: int,
    guidance_scale: float,
    count: int | None,
    seed: int,
    progress: Progress | None = None,
) -> Path:
    """Calibrate a pipeline on the captions of a file, or of `captions.txt` in its folder; returns the fits' path.

    With `count` only so many captions are drawn, spread over the file.
    """
    from ..calibration import CAPTIONS, calibrate_pipeline, read_captions
    from ..sampling.pipeline import load_pipeline

    listed = folder / CAPTIONS if captions is None else captions
    if captions is None and not listed.is_file():
        raise CipherDMError(
            f"{folder} has no {CAPTIONS}: give a file of captions like those that are to be drawn, one a line, with --captions."
        )
    texts = read_captions(listed)
    if count is not None and count < len(texts):
        texts = [texts[index] for index in np.linspace(0, len(texts) - 1, count).round().astype(int)]
    return calibrate_pipeline(
        load_pipeline(folder),
        texts,
        timesteps=timesteps,
        guidance_scale=guidance_scale,
        seed=seed,
        progress=progress,
    )


def add_products(folder: Path, *, steps: int, per_class: int, seed: int, progress: Progress | None = None) -> str:
    """Measure products and store them, in the place of earlier ones; nothing else in the calibration changes.

    Args:
        folder: of the model.
        steps, per_class, seed, progress: as `measure_products` has them.

    Returns:
        What to print.

    Raises:
        CipherDMError: as `measure_products` and `load_calibration`.
    """
    from ..calibration import measure_products
    from ..models import load_unet
    from ..owner.observe import load_calibration, save_calibration
    from ..owner.rings import products_to_arrays, small_ring_layers, without_products

    unet = load_unet(folder)
    stored = without_products(load_calibration(unet))
    products = measure_products(unet, steps=steps, per_class=per_class, seed=seed, progress=progress)
    path = save_calibration(stored | products_to_arrays(products), unet)
    chosen = small_ring_layers(products)
    return f"Wrote {path}: {len(chosen)} of {len(products)} linear layers go to the ring of 32 bits."
