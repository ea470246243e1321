"""All of it in one model: public pre-training, private fine-tuning, split learning, few steps, rings by value, three hosts."""

import json
import tempfile
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

import cipherdm as cdm
from cipherdm import hosts
from cipherdm.cli.sample import read_image, write_figure
from cipherdm.errors import CipherDMError
from cipherdm.files import check_writable
from cipherdm.likeness import psnr
from cipherdm.models import sampling_defaults
from cipherdm.private import privacy_of
from cipherdm.progress import Progress, ProgressBar
from cipherdm.records import MEASUREMENTS, read_record
from cipherdm.sampling.pipeline import Pipeline, known_hints, load_client_components
from cipherdm.views import image_row
from cipherdm.views.style import describe

from .commands import silent
from .markdown import duration, markdown, megabytes, records_named
from .target import Check, Command, Target, field

MODEL = "sd-mini-dp10-control-turbo-2"
PUBLIC, PRIVATE, SPLIT, PLAIN = "sd-mini-glyphs", "sd-mini-dp10", "sd-mini-dp10-control-split", "sd-mini-dp10-control"
PROMPT = "a large red seven on a blue background"


@dataclass(frozen=True)
class Stage:
    """One stage: the command that runs it, who learns what of whom, what keeps the rest hidden, and what it costs."""

    name: str
    command: str
    learns: str
    hidden: str
    assumes: str
    costs: str


def stages(record: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of the record's model, with its promise and its costs."""
    told, picture = record["trainings"], record["pictures"][-1]
    private, split = told[PRIVATE], told[SPLIT]
    promise = f"({private['epsilon']:g}, {private['delta']:g})-differential privacy"
    return [
        Stage(
            "1. Public pre-training",
            f"cipherdm train {PRIVATE}",
            "Nobody learns anything: autoencoder, text model and denoiser are trained on digits of free fonts.",
            "nothing is secret here",
            "No private image is used, not to choose settings either.",
            f"{told[PUBLIC]['steps']:,} steps",
        ),
        Stage(
            "2. Private fine-tuning",
            f"cipherdm train {PRIVATE}",
            f"The owner sees the 60,000 images. Whoever gets the model, or pictures of it, learns of one image what {promise} "
            "allows, and no more.",
            "each single image, from everybody but the owner",
            "The noise is the operating system's, and stays secret. One image is one unit: of k images of one person, epsilon "
            "is k times as large. An epsilon above 3 is weak as a guarantee.",
            f"{private['steps']:,} steps of {private['batch']:,} images in the mean; {private['share']:.0%} of the denoiser "
            "learns",
        ),
        Stage(
            "3. A ControlNet by split learning",
            f"cipherdm train {SPLIT}",
            "The server, here the owner, learns every picture and hint of both clients: it computes them from each message. "
            "They are other images than those of stage 2, and nothing is promised about them to whoever gets the model.",
            "captions, from the server; all of it, from whoever listens",
            "The clients trust the server with their pictures. If not, `federate_privately` is the training to take.",
            f"{split['steps']:,} steps; {split['bytes']:,.0f} B for each visit of a picture, and nothing waits for an answer",
        ),
        Stage(
            "4. A plain network, and few steps",
            f"cipherdm train {PLAIN}; cipherdm train {MODEL}",
            "Nothing new: both learn from the model's own pictures, and from outlines of free fonts. What comes out of a "
            "private training keeps its promise, whatever is computed from it.",
            "as before",
            "Hints and captions of this stage are public.",
            f"{told[PLAIN]['steps']:,} and {told[MODEL]['steps']:,} steps; then a picture takes {record['calls']} calls of the "
            "network instead of 40",
        ),
        Stage(
            "5. Rings by value",
            f"cipherdm calibrate {MODEL}",
            "The parties learn the architecture and a plan: how large the numbers of each tensor become, to a power of two.",
            "the weights, from parties and from clients",
            "Captions and hints for calibration are public. A request beyond their ranges may be answered wrongly, unnoticed.",
            f"{megabytes(picture['bytes'])} MB a picture",
        ),
        Stage(
            "6. A picture by three parties",
            "cipherdm pipeline",
            "A party learns who asks, and when. The client learns its picture.",
            "prompt, hint, noise and picture, from parties and owner; weights, from parties and client",
            "Each party follows the protocol, and no two pool what they saw. A client that works with a party may learn more "
            "of the weights.",
            f"{duration(picture['seconds'])} and {picture['sends']:,} messages, with programs cached",
        ),
    ]


def trainings() -> dict[str, dict[str, Any]]:
    """Return what the stages' trainings took, of those that left a folder on this machine."""
    from .training.export import trained

    found: dict[str, dict[str, Any]] = {}
    for name in (PUBLIC, PRIVATE, SPLIT, PLAIN, MODEL):
        try:
            folder = trained(name)
        except CipherDMError:
            continue
        told = json.loads((folder / "training.json").read_text())
        parts = [
            part for part in (*told.get("stages", {}).values(), told, told.get("encoder", {})) if "steps_done" in part
        ]
        found[name] = {"steps": sum(part["steps_done"] for part in parts)}
        if name == PRIVATE:
            stated = privacy_of(folder)
            budget = {"epsilon": stated.budget.epsilon, "delta": stated.budget.delta, "share": stated.share}
            found[name] |= budget | {"batch": told["config"]["private"]["optimisation"]["batch"]}
        if name == SPLIT:
            wire = next(iter(told["wires"].values()))
            visits = told["steps_done"] * told["config"]["training"]["batch"]
            found[name]["bytes"] = sum(wire["fields"].values()) / visits
    return found


def draw_by_hosts(
    pipeline: Pipeline,
    prompt: str,
    hint: np.ndarray,
    *,
    pictures: int = 2,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw a picture [H, W, 3] in [0, 1] by three hosts on this machine, as the owner registers the model and as a client asks.

    Each role is a process or a connection with a certificate of its own. Also returns what each of `pictures` requests took;
    programs are compiled for the first.
    """
    components, took = load_client_components(pipeline.unet.folder), []
    with tempfile.TemporaryDirectory(prefix="cipherdm-pipeline-") as folder:
        files = hosts.make_trial(Path(folder) / "trial", port=hosts.free_ports(6))
        with hosts.LoopbackHosts(files):
            with hosts.RemoteCluster(files["owner"]) as owner:
                options = {"protocols": "fast-rings", "granularity": "step", "progress": progress}
                owner.register(hosts.sampling_model("steered", pipeline, **options))
            with hosts.RemoteCluster(files["client"]) as client:
                for _ in range(pictures):
                    asked = {"prompts": [prompt], "control": hint[None], "components": components}
                    start = time.perf_counter()
                    drawn = hosts.images_of(client, "steered", seed=seed, **asked)
                    seconds, cost = time.perf_counter() - start, drawn.cost
                    took.append({"seconds": seconds, "bytes": cost.bytes, "sends": cost.sends, "rounds": cost.rounds})
    return drawn.images[0], took


def run(
    prompt: str = PROMPT, hint: np.ndarray | None = None, model: str = MODEL, progress: Progress = silent
) -> tuple[dict[str, Any], Figure]:
    """Have three hosts draw the picture twice; return the record, and the hint, the picture and that of plaintext."""
    pipeline = cdm.load_pipeline(model)
    hint = known_hints(pipeline, 1)[0] if hint is None else hint
    image, took = draw_by_hosts(pipeline, prompt, hint, progress=progress)
    usual = sampling_defaults(pipeline.unet.folder, steps=20, guidance_scale=4.0)
    exact = cdm.text_to_image(pipeline, None, [prompt], control=hint[None], seed=0, **usual).images[0]
    path = MEASUREMENTS / "pipeline.json"
    known = read_record(path)["trainings"] if path.exists() else {}
    about = {"benchmark": "pipeline", "model": model, "prompt": prompt, "calls": usual["steps"]}
    near = float(psnr(image[None], exact[None])[0])
    figure = image_row(np.stack([2 * hint - 1, image, exact]), ["hint", "by three hosts", "in plaintext"], width=1.6)
    shown = describe(figure, f"The hint, and {prompt} that follows it: by three hosts, and in plaintext")
    return about | {"psnr": near, "pictures": took, "trainings": known | trainings()}, shown


def stages_table(measurements: Path) -> str:
    """Return the stages, as Markdown."""
    (record,) = records_named(measurements, "pipeline.json", "cipherdm pipeline")
    rows = [
        [each.name, f"`{each.command}`", each.learns, each.hidden, each.assumes, each.costs] for each in stages(record)
    ]
    return markdown(["stage", "command", "who learns what", "what is hidden, from whom", "if", "cost"], rows)


TABLES = {"pipeline": stages_table}


def pipeline(
    prompt: Annotated[str, typer.Option(help="Caption of the picture; the client's secret.")] = PROMPT,
    control_image: Annotated[
        Path | None, typer.Option(help="Outline to draw along, an image; one of the model's own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Image file; the record goes beside it, with the suffix .json.")] = Path(
        "pipeline.png"
    ),
) -> None:
    """Draw a steered picture by three hosts on this machine, with a model that all four systems of this package made.

    Prints its stages as well: at each, who learns what, from whom the rest is hidden and under which assumption, and what it
    took. The stages' trainings are commands of their own.
    """
    check_writable(out)
    with ProgressBar("program") as bar:
        found, figure = run(
            prompt, None if control_image is None else read_image(control_image) / 2 + 0.5, progress=bar
        )
    for each in stages(found):
        typer.echo(f"\n{each.name}: {each.command}")
        for label in ("learns", "hidden", "assumes", "costs"):
            typer.echo(
                textwrap.fill(
                    getattr(each, label), 110, initial_indent=f"  {label + ':':9}", subsequent_indent=" " * 11
                )
            )
    typer.echo(f"\n{write_figure(figure, out, found)} PSNR to plaintext: {found['psnr']:.1f} dB.")


TARGET = Target(
    "pipeline",
    "One model by all systems: private, steered, in few steps, drawn by three hosts",
    "the four systems fit together, and their statements do not",
    "ours",
    (Command("pipeline", ("pipeline",), option="--out"),),
    (
        Check(
            "seconds of a picture by three hosts",
            10,
            0,
            lambda records: records["pipeline"]["pictures"][-1]["seconds"],
            None,
            bound="most",
        ),
        Check("PSNR to plaintext", 33, 4, field("pipeline", "psnr"), None, unit=" dB"),
    ),
    order=108,
)
