"""`cipherdm sample`: images from labels or from prompts, beside plaintext ones from the same noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import cipherdm as cdm

from ..errors import CipherDMError
from ..files import check_writable, replacing
from ..progress import ProgressBar
from ..records import write_record
from .options import (
    SETS,
    ConditioningOption,
    GuidanceOption,
    ModelOption,
    OutOption,
    ReuseOption,
    SchedulerOption,
    StartOption,
    StepsOption,
    parse_labels,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROMPT_LAYOUT = {"across": 4, "width": 2.0}
"""Layout of a figure of images with prompts above them."""


def sample(
    model: ModelOption = "mnist10",
    labels: Annotated[
        str | None, typer.Option(help='One image per label: "0-9", "3", "1,1,7"; all classes by default.')
    ] = None,
    count: Annotated[int | None, typer.Option(help="Number of images, for a model without classes.")] = None,
    steps: StepsOption = None,
    start: StartOption = 0,
    reuse: ReuseOption = 1,
    scheduler: SchedulerOption = None,
    eta: Annotated[float, typer.Option(help="Share of fresh noise of ddim and tcd, 0 to 1.")] = 0.0,
    protocols: Annotated[str | None, typer.Option(help=f"{SETS}; fast-64 by default, and fast for a loop.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the client's noise.")] = 0,
    granularity: Annotated[str, typer.Option(help="Unit that becomes one program: block, step or loop.")] = "block",
    prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt (Stable Diffusion models). Repeat for several images.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Prompt to lead away from, for all images.")] = None,
    guidance_scale: GuidanceOption = None,
    image: Annotated[Path | None, typer.Option(help="Image file to start from instead of noise.")] = None,
    strength: Annotated[float, typer.Option(help="Share of the schedule applied to --image, 0 to 1.")] = 0.8,
    control_image: Annotated[
        Path | None, typer.Option(help="Image file that a ControlNet reads as a hint, for all images.")
    ] = None,
    conditioning_scale: ConditioningOption = 1.0,
    plaintext: Annotated[bool, typer.Option(help="Draw with the exact model in plaintext too, and compare.")] = True,
    save_images: Annotated[Path | None, typer.Option(help="Folder for each image as a PNG file of its own.")] = None,
    out: OutOption = Path("sample.png"),
) -> None:
    """Sample on three parties, and compare with plaintext sampling from the same noise. Without options, all digits of mnist10.

    Three processes on this machine compute on secret shares of the weights, the labels or prompts, and the noise. The
    image file shows each result below the one that the exact model gives in plaintext.
    """
    from .. import sampling
    from ..likeness import psnr
    from ..models import sampling_defaults, takes_prompts
    from ..protocols import default, named
    from ..schedules import scheduler_of
    from ..views.pictures import image_row, sample_sheet, wrapped

    if save_images is not None:
        check_writable(save_images / "0000.png")
    folder = cdm.find_model(model)
    chosen = default(granularity) if protocols is None else named(protocols)
    usual = sampling_defaults(folder)
    steps = usual["steps"] if steps is None else steps
    guidance_scale = usual["guidance_scale"] if guidance_scale is None else guidance_scale
    settings: dict[str, Any] = {"steps": steps, "start": start, "scheduler": scheduler, "eta": eta, "seed": seed}
    settings |= {"reuse": reuse}
    if takes_prompts(folder):
        if not prompt or labels is not None or count is not None:
            raise CipherDMError(f"{folder} draws from prompts: give --prompt for each image, no labels and no count.")
        loaded, draw, layout = cdm.load_pipeline(folder), cdm.text_to_image, PROMPT_LAYOUT
        prepare = sampling.text_to_image_task
        about = {"prompts": prompt, "negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
        asked = {"prompts": prompt, "negative_prompts": negative_prompt, "guidance_scale": guidance_scale}
        if image is not None:
            about |= {"image": image.name, "strength": strength}
            start = read_image(image, loaded.image_size)
            asked |= {"images": np.stack([start] * len(prompt)), "strength": strength}
        if control_image is not None:
            about |= {"control_image": control_image.name, "conditioning_scale": conditioning_scale}
            hint = read_image(control_image, loaded.image_size) / 2 + 0.5  # in [0, 1], as diffusers has hints
            asked |= {"control": np.stack([hint] * len(prompt)), "conditioning_scale": conditioning_scale}
        captions = [wrapped(text) for text in prompt]
    else:
        if prompt or negative_prompt or image or control_image:
            raise CipherDMError(f"{folder} is no Stable Diffusion folder, and takes no prompts and no images.")
        loaded, draw, prepare, layout = cdm.load_unet(folder), cdm.sample, sampling.make_task, {}
        chosen_labels, classes = parse_labels(labels), loaded.config.num_class_embeds
        if chosen_labels is None and count is None and classes:
            chosen_labels = list(range(classes))
        about = asked = {"labels": chosen_labels, "count": count}
        captions = [str(label) for label in asked["labels"] or range(count or 1)]

    if scheduler is None:
        settings["scheduler"] = scheduler_of(getattr(loaded, "unet", loaded).scheduler_config)
    # What this set cannot compute, such as a model that is not calibrated, is told before anything is computed.
    sampling.sampling_nodes(prepare(loaded, protocols=chosen, **asked, **settings).shape, granularity)
    exact = draw(loaded, None, protocols=cdm.DIRECT, **asked, **settings) if plaintext else None
    with cdm.LocalCluster() as cluster, ProgressBar("call") as bar:
        secure = draw(loaded, cluster, protocols=chosen, granularity=granularity, progress=bar, **asked, **settings)
    if exact is None:
        figure, likeness, told = image_row(secure.images, captions, **layout), {}, ""
    else:
        found = psnr(secure.images, exact.images)
        figure, likeness = sample_sheet(secure.images, exact.images, found, captions, **layout), {"psnr_db": found}
        told = f"PSNR of secure against exact plaintext: mean {np.mean(found):.1f} dB, lowest {min(found):.1f} dB.\n"
    if save_images is not None:
        save_images.mkdir(parents=True, exist_ok=True)
        for index, image_drawn in enumerate(secure.pil):
            image_drawn.save(save_images / f"{index:04}.png")
    cost = secure.cost
    run = {"model": folder.resolve().name, "protocols": chosen.name, "granularity": granularity, **about, **settings}
    measured = {**likeness, "peak_memory_bytes": secure.peak_memory, "cost": cost.to_dict()}
    held = f" and held at most {max(secure.peak_memory) / 2**20:.0f} MiB each" if secure.peak_memory else ""
    typer.echo(
        f"{counted(len(secure.images), 'image')} in {cost.seconds:.1f} s; the parties sent {cost.bytes / 1e6:.1f} MB in "
        f"{cost.sends} messages{held}.\n"
        f"{told}{write_figure(figure, out, run | measured)}"
    )


def counted(count: int, thing: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{count} {thing}{'s' * (count != 1)}"


def write_figure(figure: "Figure", out: Path, contents: dict[str, Any]) -> str:
    """Write a figure, and a record beside it; return what to print about them."""
    record = out.with_suffix(".json")
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)
    write_record(record, contents)
    return f"Wrote {out} and {record}."


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file as float32 [3, H, W] in [-1, 1], resized if a size is given.

    Raises CipherDMError if it cannot be read.
    """
    from PIL import Image, ImageOps  # slow to import, and needed for --image alone
    from skimage import color, transform

    try:
        with Image.open(path) as stored:
            turned = ImageOps.exif_transpose(stored)  # as its camera says that a photograph is to be shown
            wide = turned.mode.startswith(("I", "F"))  # more than 8 bits of grey, which Pillow would cut off
            pixels = np.asarray(turned if wide else turned.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CipherDMError(f"{path} cannot be read as an image ({error}).") from error
    pixels = color.gray2rgb(pixels) if wide else color.rgba2rgb(pixels)
    resized = transform.resize(pixels, size or pixels.shape[:2], anti_aliasing=True)  # to [0, 1], whatever the type was
    return np.clip(resized.transpose(2, 0, 1) * 2 - 1, -1, 1).astype(np.float32)
