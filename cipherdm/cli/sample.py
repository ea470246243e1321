"""`cipherdm sample`: pictures from labels or from prompts, beside plaintext ones from the same noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from skimage import color, io, transform

import cipherdm as cdm

from ..errors import CipherDMError
from ..files import replacing
from ..progress import Progress, ProgressBar
from ..records import write_record
from .options import SETS, ModelOption, SchedulerOption, parse_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..protocols import Protocols
    from ..sampling import SamplingResult
    from ..sampling.pipeline import Pipeline


def sample(
    model: ModelOption = "mnist10",
    labels: Annotated[str | None, typer.Option(help='One picture a label: "0-9", "3", "1,1,7".')] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures, for a model without classes.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    scheduler: SchedulerOption = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: Annotated[
        str | None,
        typer.Option(help=f"{SETS}; fast-kernels by default, and fast for a loop."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the client's noise.")] = 0,
    granularity: Annotated[str, typer.Option(help="What one program computes: block, step or loop.")] = "block",
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw, for a Stable Diffusion folder; again for more pictures.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to lead away from.")] = None,
    guidance_scale: Annotated[float, typer.Option(help="How far to lead; 1 is no guidance, at half the cost.")] = 7.5,
    image: Annotated[Path | None, typer.Option(help="A picture to start from instead of noise.")] = None,
    strength: Annotated[float, typer.Option(help="How much of the schedule that goes through, up to 1.")] = 0.8,
    out: Annotated[Path, typer.Option(help="The picture to write; a record goes beside it as .json.")] = Path(
        "sample.png"
    ),
) -> None:
    """Sample on three parties, and compare with plaintext sampling from the same noise.

    Three processes on this machine compute on secret shares of the weights, the labels or prompts, and the noise. The
    picture shows each result below the one that the exact model gives in plaintext.
    """
    from ..likeness import psnr
    from ..models import find_model
    from ..models.checkpoint import PIPELINE
    from ..protocols import default, named
    from ..views.pictures import sample_sheet

    folder = find_model(model)
    chosen = default(granularity) if protocols is None else named(protocols)
    if (folder / PIPELINE).is_file():
        if not prompt or labels is not None or count is not None:
            raise CipherDMError(
                f"{folder} draws what prompts say: give --prompt for each picture, no labels and no count."
            )
        options = PromptOptions(tuple(prompt), negative_prompt, guidance_scale, image, strength)
        settings = {"steps": steps, "scheduler": scheduler, "eta": eta, "seed": seed}
        with ProgressBar("call") as bar:
            run = {"protocols": chosen, "granularity": granularity, "out": out, "progress": bar}
            text = sample_prompts(folder, options, **run, **settings)
        typer.echo(text)
        return
    if prompt or negative_prompt or image:
        raise CipherDMError(f"{folder} is no Stable Diffusion folder, and takes no prompts and no pictures.")

    unet = cdm.load_unet(folder)
    settings = {
        "labels": parse_labels(labels),
        "count": count,
        "steps": steps,
        "scheduler": scheduler,
        "eta": eta,
        "seed": seed,
    }
    plaintext = cdm.sample(unet, None, protocols=cdm.DIRECT, **settings).images
    with cdm.LocalCluster() as cluster, ProgressBar("call") as bar:
        secure = cdm.sample(unet, cluster, protocols=chosen, granularity=granularity, progress=bar, **settings)
    found = psnr(secure.images, plaintext)
    captions = [str(label) for label in settings["labels"] or range(len(found))]
    about = {"model": model, "protocols": chosen.name, "granularity": granularity, **settings}
    figure = sample_sheet(secure.images, plaintext, found, captions)
    typer.echo(write_comparison(out, figure, about, secure, found))


def write_comparison(
    out: Path,
    figure: "Figure",
    about: Mapping[str, Any],
    secure: "SamplingResult",
    found: list[float],
) -> str:
    """Write the picture of a secure run, and beside it the record as .json; returns what to print.

    Args:
        out: the picture's file.
        figure: secure images beside plaintext ones.
        about: what the record says of the run.
        secure: the run on three parties.
        found: its images' PSNR to plaintext, in dB.
    """
    cost, record = secure.cost, out.with_suffix(".json")
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)
    write_record(record, {**about, "psnr_db": found, "peak_memory_bytes": secure.peak_memory, "cost": cost.to_dict()})
    return (
        f"{len(found)} pictures in {cost.seconds:.1f} s; the parties sent {cost.bytes / 1e6:.1f} MB in {cost.sends} messages "
        f"and held at most {max(secure.peak_memory) / 2**20:.0f} MiB each.\n"
        f"PSNR of secure against exact plaintext: mean {np.mean(found):.1f} dB, lowest {min(found):.1f} dB.\n"
        f"Wrote {out} and {record}."
    )


PROMPT_LAYOUT = {"across": 4, "width": 2.0}
"""Of pictures with prompts above them."""


@dataclass(frozen=True)
class PromptOptions:
    """What the command line says of prompts; as `text_to_image` has them, with one negative prompt for all.

    `image` is the path of a picture to start from.
    """

    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    guidance_scale: float = 7.5
    image: Path | None = None
    strength: float = 0.8

    def settings(self, pipeline: "Pipeline") -> dict[str, Any]:
        """The arguments of `text_to_image`. Raises CipherDMError if the picture cannot be read."""
        negative = None if self.negative_prompt is None else [self.negative_prompt] * len(self.prompts)
        settings = {"negative_prompts": negative, "guidance_scale": self.guidance_scale}
        if self.image is not None:
            picture = read_picture(self.image, pipeline.image_size)
            settings |= {"images": np.stack([picture] * len(self.prompts)), "strength": self.strength}
        return settings

    def about(self) -> dict[str, Any]:
        """What a record says of them."""
        started = {} if self.image is None else {"image": self.image.name, "strength": self.strength}
        asked = {"prompts": list(self.prompts), "negative_prompt": self.negative_prompt}
        return {**asked, "guidance_scale": self.guidance_scale, **started}


def sample_prompts(
    folder: Path,
    options: PromptOptions,
    *,
    protocols: "Protocols",
    granularity: str,
    out: Path,
    progress: Progress,
    **settings: Any,
) -> str:
    """Draw in plaintext and on three parties, write the picture of both and its record, and return what to print.

    Args:
        folder: of the pipeline.
        options: what to draw.
        protocols: of the secure run.
        granularity: of its programs.
        out: the picture's file; the record goes beside it as .json.
        progress: of the secure run.
        settings: steps, scheduler, eta and seed.

    Raises:
        CipherDMError: as `load_pipeline` and `text_to_image`.
    """
    from ..likeness import psnr
    from ..views.pictures import sample_sheet, wrapped

    pipeline = cdm.load_pipeline(folder)
    arguments = options.settings(pipeline) | settings
    plaintext = cdm.text_to_image(pipeline, None, options.prompts, protocols=cdm.DIRECT, **arguments)
    with cdm.LocalCluster() as cluster:
        secure = cdm.text_to_image(
            pipeline,
            cluster,
            options.prompts,
            protocols=protocols,
            granularity=granularity,
            progress=progress,
            **arguments,
        )
    found = psnr(secure.images, plaintext.images)
    captions = [wrapped(prompt) for prompt in options.prompts]
    figure = sample_sheet(secure.images, plaintext.images, found, captions, **PROMPT_LAYOUT)
    about = {"model": folder.resolve().name, "protocols": protocols.name, "granularity": granularity}
    return write_comparison(out, figure, about | options.about() | settings, secure, found)


def read_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture of any kind as float32 [3, H, W] in [-1, 1], resized. Raises CipherDMError if it cannot be read."""
    try:
        pixels = io.imread(path)
    except (OSError, ValueError, SyntaxError) as error:
        raise CipherDMError(f"{path} cannot be read as a picture ({error}).") from error
    if pixels.ndim == 2:
        pixels = color.gray2rgb(pixels)
    elif pixels.shape[-1] == 4:
        pixels = color.rgba2rgb(pixels)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise CipherDMError(
            f"{path} holds an array of shape {pixels.shape}, which is no picture of one, three or four channels."
        )
    resized = transform.resize(pixels, size, anti_aliasing=True)  # to [0, 1], whatever the type was
    return np.clip(resized.transpose(2, 0, 1) * 2 - 1, -1, 1).astype(np.float32)
