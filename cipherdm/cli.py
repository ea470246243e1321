"""The command line: `cipherdm sample | train | calibrate | check-ranges | evaluate | bench | tables`."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from . import protocols as protocol_sets
from .bench.cli import app as bench_app
from .bench.picture_cli import grid, prompts, trajectory
from .comparison import psnr, write_comparison
from .documents import DOCUMENTS, rewrite, root
from .engine import LocalCluster
from .errors import CipherDMError
from .hosts.commands import add_commands
from .labels import parse_labels
from .models import find_model, load_unet
from .models.checkpoint import PIPELINE
from .progress import ProgressBar
from .protocols import DIRECT
from .read_back_command import read_back
from .records import write_record
from .reproduce.cli import full_call, reproduce, segments
from .sampling import sample as draw

app = typer.Typer(
    help="Secure three-party sampling of diffusion models.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(bench_app, name="bench", help="Measure what protocols cost on three parties of this machine.")
bench_app.command()(trajectory)
bench_app.command()(prompts)
bench_app.command()(grid)
bench_app.command()(segments)
bench_app.command()(full_call)
app.command()(reproduce)
app.command("read-back")(read_back)
add_commands(app, bench_app)

ModelOption = Annotated[str, typer.Option(help="A name in data/models, or the path of a diffusers folder.")]
ModelArgument = Annotated[str, typer.Argument(help="A name in data/models, or the path of a diffusers folder.")]
_SETS = "A named set: " + ", ".join(protocol_sets.NAMES)
ProtocolsOption = Annotated[str, typer.Option(help=f"{_SETS}.")]
SchedulerOption = Annotated[str, typer.Option(help="ddim, ddpm or dpmsolver++.")]


@app.command()
def sample(
    model: ModelOption = "mnist10",
    labels: Annotated[str | None, typer.Option(help='One picture a label: "0-9", "3", "1,1,7".')] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures, for a model without classes.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    scheduler: SchedulerOption = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: Annotated[
        str | None,
        typer.Option(help=f"{_SETS}; fast-shares by default, and fast for a loop."),
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
    folder = find_model(model)
    chosen = protocol_sets.default(granularity) if protocols is None else protocol_sets.named(protocols)
    if (folder / PIPELINE).is_file():
        from .prompt_command import PromptOptions, sample_prompts  # transformers take seconds to import

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

    from .views import sample_sheet  # matplotlib takes a second to import, which --help need not wait for

    unet = load_unet(folder)
    settings = {
        "labels": parse_labels(labels),
        "count": count,
        "steps": steps,
        "scheduler": scheduler,
        "eta": eta,
        "seed": seed,
    }
    plaintext = draw(unet, None, protocols=protocol_sets.DIRECT, **settings).images
    with LocalCluster() as cluster, ProgressBar("call") as bar:
        secure = draw(unet, cluster, protocols=chosen, granularity=granularity, progress=bar, **settings)
    found = psnr(secure.images, plaintext)
    captions = [str(label) for label in settings["labels"] or range(len(found))]
    about = {"model": model, "protocols": chosen.name, "granularity": granularity, **settings}
    figure = sample_sheet(secure.images, plaintext, found, captions)
    typer.echo(write_comparison(out, figure, about, secure, found))


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A recipe: mnist10, mnist01-tiny, mnist10-quad, sd-mini, ...")],
    steps: Annotated[int | None, typer.Option(help="Optimisation steps; the recipe's own by default.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in runs/NAME, if there is one.")] = True,
    out: Annotated[Path | None, typer.Option(help="Where the model goes; data/models/NAME by default.")] = None,
) -> None:
    """Train a model on MNIST, and export it as a diffusers folder."""
    from .training import train as run_training
    from .training.sd_mini import train_sd_mini

    settings = {"out": out, "steps": steps, "resume": resume}
    folder = train_sd_mini(**settings) if name == "sd-mini" else run_training(name, **settings)
    typer.echo(f"Wrote {folder}.")


@app.command()
def evaluate(
    name: ModelArgument,
    count: Annotated[int, typer.Option(help="Pictures to draw, labels balanced.")] = 2000,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    scheduler: SchedulerOption = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: ProtocolsOption = "direct",
    compare: Annotated[int, typer.Option(help="Pictures to compare with exact ones from the same noise.")] = 64,
    secure: Annotated[int, typer.Option(help="Pictures to draw on three parties too, for the same comparison.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    record: Annotated[Path | None, typer.Option(help="Also write the scores to this JSON file.")] = None,
) -> None:
    """Draw pictures in plaintext with a set of protocols, and have a classifier judge them.

    Prints the accuracy (LeNet reads the digit that was asked for), F1, and LeNet-FID, the Frechet distance to MNIST's
    test images in LeNet's features; and how near pictures are to those of the exact functions from the same noise, in
    plaintext and, if asked for, on three parties.
    """
    from .evaluation import Likeness, balanced_labels, model_digits
    from .evaluation import evaluate as score

    folder = find_model(name)
    unet = load_unet(folder)
    settings = {"steps": steps, "scheduler": scheduler, "eta": eta}
    chosen = protocol_sets.named(protocols)

    def sampler(labels: np.ndarray, seed: int, protocols=chosen, cluster=None) -> np.ndarray:
        result = draw(
            unet, cluster, labels=labels.tolist(), seed=seed, protocols=protocols, granularity="loop", **settings
        )
        return result.images

    digits = model_digits(folder)
    with tqdm(total=count, unit="picture") as bar:
        scores = score(sampler, digits, count=count, seed=seed, on_batch=lambda done, _: bar.update(done - bar.n))
    typer.echo(
        f"{name}, {scheduler}-{steps}, {protocols}, {scores.count} pictures: accuracy {scores.accuracy:.4f}, "
        f"F1 {scores.f1:.4f}, LeNet-FID {scores.lenet_fid:.2f}"
        + (f"; {scores.overflowed} overflowed" if scores.overflowed else "")
    )
    likeness = {}
    clusters = {"emulated": (compare if chosen != DIRECT else 0, nullcontext), "secure": (secure, LocalCluster)}
    for way, (pictures, cluster_of) in clusters.items():
        if not pictures:
            continue
        labels = balanced_labels(len(digits), pictures)
        with cluster_of() as cluster:
            found = Likeness.of(sampler(labels, seed, cluster=cluster), sampler(labels, seed, protocols=DIRECT))
        typer.echo(
            f"{way}, {pictures} pictures against exact ones: PSNR {found.psnr:.1f} dB, lowest {found.psnr_lowest:.1f}, "
            f"SSIM {found.ssim:.3f}"
        )
        likeness[way] = found.as_json()
    if record is not None:
        parameters = sum(array.size for array in unet.params.values())
        about = {"model": folder.name, "parameters": parameters, "seed": seed, **settings, "protocols": protocols}
        write_record(record, about | scores.as_json() | likeness)


@app.command()
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
    from .models.calibration import save_calibration
    from .models.fast_calibration import calibrate as fit
    from .sampling import make_schedule

    folder = find_model(name)
    if products:
        from .products_command import add_products

        if (folder / PIPELINE).is_file() or captions is not None:
            raise CipherDMError("--products is for fast-mixed, which does not compute models that take a prompt.")
        with ProgressBar("call") as bar:
            text = add_products(folder, steps=timesteps or 10, per_class=images or 4, seed=seed, progress=bar)
        typer.echo(text)
        return
    if (folder / PIPELINE).is_file():
        from .prompt_command import calibrate_folder

        settings = {"timesteps": timesteps or 50, "guidance_scale": guidance_scale, "count": images or 64}
        typer.echo(f"Wrote {calibrate_folder(folder, captions, seed=seed, **settings)}.")
        return
    if captions is not None:
        raise CipherDMError(f"{folder} is no Stable Diffusion folder, and takes no captions.")
    images, timesteps = images or 24, timesteps or 100
    unet = load_unet(folder)
    schedule = make_schedule(unet.scheduler_config, "ddim", timesteps)
    typer.echo(f"Wrote {save_calibration(fit(unet, schedule, images_per_class=images, seed=seed), unet)}.")


@app.command("check-ranges")
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
    from .range_command import report

    with ProgressBar("call") as bar:
        text, code = report(model, protocols, steps=steps, count=count, seed=seed, progress=bar)
    typer.echo(text)
    raise typer.Exit(code)


@app.command()
def explorer(
    port: Annotated[int, typer.Option(help="Where the page is served.", min=1, max=65535)] = 8866,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Serve sliders as a page on this machine: how long sampling takes, by network, protocols, batch and steps."""
    from .explorer_command import serve

    serve(port, browser=browser, announce=typer.echo)


@app.command()
def tables() -> None:
    """Rewrite the tables in README.md and FUNCTIONS.md from the records in data/measurements."""
    for document in DOCUMENTS:
        changed = rewrite(root() / document, root() / "data" / "measurements")
        typer.echo(f"{document}: {'rewritten' if changed else 'up to date'}")


def main() -> None:
    """Entry point of the command: an error of ours is printed without a traceback, with exit code 1."""
    try:
        app()
    except CipherDMError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)
