"""`cipherdm train`, `distill`, `evaluate` and `read-back`. Torch, which takes seconds, is imported once it is needed."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from cipherdm.cli.options import (
    ModelArgument,
    ProtocolsOption,
    ReuseOption,
    SchedulerOption,
    ScoresOption,
    StartOption,
    StepsOption,
)
from cipherdm.files import check_writable, checkout

AT_A_TIME = 64
"""Images that `evaluate` compares with exact ones at a time."""


def train(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe: mnist10, mnist01-tiny, mnist10-turbo-2, sd-mini, sd-mini-control, glyphs-dp10, ..."
        ),
    ],
    steps: Annotated[int | None, typer.Option(help="Optimisation steps; the recipe's own by default.")] = None,
    resume: Annotated[bool, typer.Option(help="Whether to go on from the last checkpoint in runs/NAME.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder of the model; data/models/NAME by default.")] = None,
) -> None:
    """Train a model on MNIST (privately too) or on the reviews, and export it as a folder of diffusers or transformers."""
    from .control.recipe import CONTROLS, SD_MINI_DP10_CONTROL, PlainControlConfig, SplitControlConfig
    from .private_digits.recipe import PRIVATE_DIGITS, SHIPPED
    from .students import STUDENTS

    own = Path("runs") / name
    # MiniLM is too large for the repository, others are there to compare with, or are on the way to one that ships.
    kept = name.startswith(("reviews-minilm", SD_MINI_DP10_CONTROL.name)) and name not in STUDENTS
    kept |= name in PRIVATE_DIGITS and PRIVATE_DIGITS[name] not in SHIPPED
    usual = own / "model" if kept else checkout() / "data" / "models" / name
    out = usual if out is None else out
    for folder in (out, own):
        check_writable(folder / "training.json")
    from .control.plain import train_plain_control
    from .control.split import train_split_control
    from .control.train import train_control
    from .digits import train as train_digits
    from .few_steps import train_student
    from .private_digits.train import train_private_digits
    from .reviews.recipe import REVIEWS
    from .reviews.train import train_reviews
    from .sd_mini.private import SD_MINI_DP10, train_private_sd_mini
    from .sd_mini.train import train_sd_mini

    settings = {"out": out, "steps": steps, "resume": resume}
    if name in STUDENTS:
        folder = train_student(name, **settings)
    elif name in REVIEWS:
        folder = train_reviews(name, **settings)
    elif name in PRIVATE_DIGITS:
        folder = train_private_digits(name, **settings)
    elif name == SD_MINI_DP10.name:
        folder = train_private_sd_mini(**settings)
    elif name in CONTROLS:
        ways = {SplitControlConfig: train_split_control, PlainControlConfig: train_plain_control}
        folder = ways.get(type(CONTROLS[name]), train_control)(config=CONTROLS[name], **settings)
    else:
        folder = train_sd_mini(**settings) if name == "sd-mini" else train_digits(name, **settings)
    typer.echo(f"Wrote {folder}.")


def distill(
    model: Annotated[str, typer.Argument(help="The teacher: reviews-tiny, mnist-dit, reviews-minilm.")],
    protocols: ProtocolsOption = "ditto",
    steps: Annotated[int | None, typer.Option(help="Optimisation steps; the recipe's own by default.")] = None,
    resume: Annotated[bool, typer.Option(help="Whether to go on from the last checkpoint in runs/STUDENT.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder of the student; data/models/STUDENT by default.")] = None,
) -> None:
    """Teach a student the quadratic that a protocol set computes in the place of GELU; it is called MODEL-quad."""
    from cipherdm.approximations.gelu import gelu_quad
    from cipherdm.errors import CipherDMError
    from cipherdm.protocols import named

    from .recipes import RECIPES
    from .reviews.recipe import REVIEWS

    if named(protocols).gelu is not gelu_quad:
        raise CipherDMError(
            f"{protocols} computes GELU itself, so there is nothing to distill; take ditto or mpcformer."
        )
    name = f"{model}-quad"
    if name not in RECIPES | REVIEWS:
        raise CipherDMError(f"There is no recipe {name!r}, of a student of {model}.")
    train(name, steps=steps, resume=resume, out=out)


def evaluate(
    name: ModelArgument,
    count: Annotated[int, typer.Option(help="Number of images, labels balanced.")] = 2000,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; 50 by default, or those of the model's sampling.json.")
    ] = None,
    start: StartOption = 0,
    reuse: ReuseOption = 1,
    scheduler: SchedulerOption = "ddim",
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: ProtocolsOption = "direct",
    compare: Annotated[int, typer.Option(help="Number of images to compare with exact ones from the same noise.")] = 64,
    secure: Annotated[int, typer.Option(help="Number of images to compare that three parties draw.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    record: ScoresOption = None,
) -> None:
    """Draw images in plaintext with a protocol set, and have a classifier judge them.

    Prints the accuracy (LeNet reads the digit that was asked for), F1, and LeNet-FID, the Frechet distance to MNIST's
    test images in LeNet's features; and how near images are to those of the exact functions from the same noise, in
    plaintext and, if asked for, on three parties.
    """
    import cipherdm as cdm
    from cipherdm.likeness import Likeness
    from cipherdm.models import find_model, sampling_defaults
    from cipherdm.protocols import named
    from cipherdm.records import write_record
    from cipherdm.sampling.sample import make_task, run_task

    from .evaluation import evaluate as score
    from .evaluation import model_digits, score_images

    folder = find_model(name)
    steps = sampling_defaults(folder, steps=50)["steps"] if steps is None else steps
    unet = cdm.load_unet(folder)
    settings = {"steps": steps, "start": start, "reuse": reuse, "scheduler": scheduler, "eta": eta}
    chosen = named(protocols)
    granularity = "block" if chosen.small_bits else "step" if chosen.walk_bits or reuse > 1 else "loop"

    def sampler(labels: np.ndarray, seed: int, protocols=chosen, cluster=None) -> np.ndarray:
        # Images that overflowed are counted below, so they are no error here.
        plan = {"protocols": protocols, "seed": seed, "ring": cluster is not None, **settings}
        return run_task(make_task(unet, labels=labels.tolist(), **plan), cluster, granularity=granularity).images

    digits = model_digits(folder)
    with tqdm(total=count, unit="picture") as bar:
        scores = score(sampler, digits, count=count, seed=seed, on_batch=lambda done, _: bar.update(done - bar.n))
    typer.echo(
        f"{name}, {scheduler}-{steps}, {protocols}, {scores.count} pictures: accuracy {scores.accuracy:.4f}, "
        f"F1 {scores.f1:.4f}, LeNet-FID {scores.lenet_fid:.2f}"
        + (f"; {scores.overflowed} overflowed" if scores.overflowed else "")
    )
    likeness = {}
    clusters = {"emulated": (compare if chosen != cdm.DIRECT else 0, nullcontext), "secure": (secure, cdm.LocalCluster)}
    for way, (pictures, cluster_of) in clusters.items():
        if not pictures:
            continue
        labels, parts = np.arange(pictures) % len(digits), range(0, pictures, AT_A_TIME)
        with cluster_of() as cluster:
            ways = ({"cluster": cluster}, {"protocols": cdm.DIRECT})
            drawn, exact = (
                np.concatenate([sampler(labels[n : n + AT_A_TIME], seed + n, **how) for n in parts]) for how in ways
            )
        found = Likeness.of(drawn, exact)
        right = {"accuracy": score_images(drawn, labels, digits).accuracy}
        right["accuracy_exact"] = score_images(exact, labels, digits).accuracy
        typer.echo(
            f"{way}, {pictures} pictures against exact ones: PSNR {found.psnr:.1f} dB, lowest {found.psnr_lowest:.1f}, "
            f"SSIM {found.ssim:.3f}; accuracy {right['accuracy']:.4f}, and {right['accuracy_exact']:.4f}"
        )
        likeness[way] = found.as_json() | right
    if record is not None:
        parameters = sum(array.size for array in unet.params.values())
        about = {"model": folder.name, "parameters": parameters, "seed": seed, **settings, "protocols": protocols}
        write_record(record, about | asdict(scores) | likeness)


def read_back(
    model: Annotated[str, typer.Argument(help="A name in data/models, or the path of a folder that was trained here.")],
    count: Annotated[int, typer.Option(help="Number of images, captions balanced.")] = 500,
    steps: StepsOption = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of classifier-free guidance; 1 is none. 4 by default, or that of sampling.json."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of captions and noise.")] = 0,
    reader: Annotated[Path | None, typer.Option(help="Folder of the LeNet that reads digits; the model's own.")] = None,
    record: ScoresOption = None,
) -> None:
    """Draw captions with a Stable Diffusion pipeline in plaintext, and read digit, colours, size and place back.

    Prints the share of images that show what their caption says. Beside it stand the shares for images composed from MNIST's
    test images, as they are and after the autoencoder, which is the most that the reader can find.
    """
    from cipherdm.errors import check_whole
    from cipherdm.models import find_model, sampling_defaults
    from cipherdm.records import write_record

    folder = find_model(model)
    usual = sampling_defaults(folder, guidance_scale=4.0)
    steps = usual["steps"] if steps is None else steps
    guidance = usual["guidance_scale"] if guidance is None else guidance
    for name, value, least in (("count", count, 1), ("steps", steps, 1), ("the seed", seed, 0)):
        check_whole(name, value, least)
    from .sd_mini.score import read_back as score

    settings = {"count": count, "steps": steps, "guidance": guidance, "seed": seed, "reader": reader}
    with tqdm(total=count, unit="picture") as bar:
        found = score(folder, **settings, on_batch=lambda done: bar.update(done - bar.n))
    typer.echo(f"{found['model']}, DDIM-{steps}, guidance {guidance:g}, {count} pictures read as their captions say:")
    for kind in ("drawn", "decoded", "real"):
        parts = ("digit", "colour", "background", "size", "place", "all")
        shares = ", ".join(f"{part} {found[kind][part]:.1%}" for part in parts if part in found[kind])
        typer.echo(f"{kind:>8}: {shares}")
    if record is not None:
        write_record(record, found)
