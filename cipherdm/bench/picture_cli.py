"""The commands of benchmarks that record pictures: `cipherdm bench trajectory`, `prompts` and `grid`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import ProgressBar
from .cli import ModelArgument, RecordOption, measurements, numbers

if TYPE_CHECKING:
    import numpy as np

PromptModel = Annotated[str, typer.Argument(help="A name in data/models, or the path of a Stable Diffusion folder.")]


def trajectory(
    model: ModelArgument,
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm or dpmsolver++.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20,
    batch: Annotated[int, typer.Option(help="Pictures; labels go through the model's classes.", min=1)] = 10,
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: Annotated[str, typer.Option(help="The name of a set.")] = "fast",
    seed: Annotated[int, typer.Option(help="Of the client's noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Record sampling step by step, on three parties and in plaintext from the same noise: pictures, PSNR, costs.

    The client fetches the sample after every step, which it does for the recording alone. The pictures go into .npz
    files beside the record.
    """
    from .. import protocols as protocol_sets
    from ..models import find_model, load_unet
    from . import recording
    from . import trajectory as benchmark

    folder = find_model(model)
    record = record or measurements() / f"trajectory_{folder.resolve().name}_{scheduler}.json"
    settings = {"scheduler": scheduler, "steps": steps, "batch": batch, "eta": eta, "seed": seed}
    with ProgressBar("run") as bar:
        found = benchmark.run(load_unet(folder), protocols=protocol_sets.named(protocols), progress=bar, **settings)
    told = _written(record, *found)
    typer.echo(recording.table(recording.read(record)).to_string(float_format="{:.4g}".format))
    typer.echo(told)


def prompts(
    model: PromptModel = "sd-mini",
    file: Annotated[Path | None, typer.Option("--prompts", help="A file with a prompt in each line.")] = None,
    protocols: Annotated[str, typer.Option(help="The name of a set.")] = "fast",
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm or dpmsolver++.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20,
    guidance_scale: Annotated[float, typer.Option(help="Of classifier-free guidance; 1 is none.", min=1)] = 4.0,
    count: Annotated[int | None, typer.Option(help="Only the first so many of the prompts.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Draw prompts one by one on three parties and in plaintext from the same noise: pictures, PSNR, costs.

    The pictures go into an .npz file beside the record.
    """
    from .. import protocols as protocol_sets
    from ..models import find_model
    from ..sampling.pipeline import load_pipeline
    from ..sampling.prompt_calibration import read_captions
    from . import prompts as benchmark

    folder = find_model(model)
    record = record or measurements() / f"prompts_{folder.resolve().name}.json"
    chosen = (benchmark.PROMPTS if file is None else read_captions(file))[:count]
    settings = {"scheduler": scheduler, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    with ProgressBar("run") as bar:
        found, pictures = benchmark.run(
            load_pipeline(folder), chosen, protocols=protocol_sets.named(protocols), progress=bar, **settings
        )
    told = _written(record, found, pictures)
    typer.echo(benchmark.summary(found))
    typer.echo(told)


def grid(
    model: PromptModel = "sd-mini",
    steps: Annotated[str, typer.Option(help="Numbers of denoising steps.")] = "5,10,20,50",
    guidance_scales: Annotated[str, typer.Option(help="Of classifier-free guidance, whole numbers.")] = "1,2,4,7",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Draw three prompts under all combinations of steps, guidance and sets of protocols, emulated in plaintext.

    The pictures go into an .npz file beside the record.
    """
    from ..models import find_model
    from ..sampling.pipeline import load_pipeline
    from . import grid as benchmark

    folder = find_model(model)
    record = record or measurements() / f"grid_{folder.resolve().name}.json"
    chosen = {"steps": numbers(steps, "--steps"), "guidance_scales": numbers(guidance_scales, "--guidance-scales")}
    with ProgressBar("picture") as bar:
        found, pictures = benchmark.run(load_pipeline(folder), seed=seed, progress=bar, **chosen)
    told = _written(record, found, pictures)
    typer.echo(benchmark.summary(found))
    typer.echo(told)


def _written(record: Path, found: Mapping[str, Any], pictures: "Mapping[str, np.ndarray]") -> str:
    """Write a record with its pictures beside it; returns what to print in the end."""
    from . import recording

    beside = recording.write(record, found, pictures)
    return f"Wrote {record} and {', '.join(map(str, beside))}."
