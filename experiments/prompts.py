"""Images of several prompts, each drawn by itself on three parties and in plaintext from the same noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure

from cipherdm.cli.options import SchedulerOption
from cipherdm.engine import LocalCluster
from cipherdm.errors import CipherDMError
from cipherdm.likeness import extent_psnr, grey_levels, psnr
from cipherdm.models import find_model
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import DIRECT, FAST, Protocols, named
from cipherdm.sampling.pipeline import Pipeline, load_pipeline, read_captions
from cipherdm.sampling.text_to_image import text_to_image
from cipherdm.views.pictures import wrapped
from cipherdm.views.style import GREY, describe, new_figure

from . import recording
from .commands import PromptModel, ProtocolsOption, RecordOption, most_memory, record_path, silent
from .markdown import markdown, records_named
from .recording import draw_levels, image_axes
from .target import PROMPT_MODEL, Check, Command, Target, of_rows

PROMPTS = (
    "a small red seven on a blue background",
    "a large green two at the top left on a black background",
    "a large yellow eight on a red background",
    "a small white four at the bottom right on a green background",
    "a large black three in the middle on a yellow background",
    "a small blue zero at the top right on a white background",
    "a large white five at the bottom left on a black background",
    "a small green nine in the middle on a yellow background",
)
"""Prompts in the words of sd-mini's captions."""


@dataclass(frozen=True, eq=False)
class DrawnPrompts:
    """A recorded run: the record, and images uint8 [2, prompts, C, H, W], plaintext and secure."""

    about: Mapping[str, Any]
    pictures: np.ndarray


def run(
    pipeline: Pipeline,
    prompts: Sequence[str] = PROMPTS,
    *,
    protocols: Protocols = FAST,
    scheduler: str = "ddim",
    steps: int = 20,
    guidance_scale: float = 4.0,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Draw one prompt after the other. Return the record and its images, for `recording.write`.

    Programs are compiled for the first prompt, and stay with the parties for the others. Shares are made anew for each. In a
    row, "psnr_db" compares the secure image with that of the exact functions in plaintext, "latents_psnr_db" their latents,
    "emulated_psnr_db" the protocols in plaintext with the exact functions. "whole_seconds" is what the client waited. Raises
    CipherDMError as `text_to_image`, or if there is no prompt.
    """
    if not prompts:
        raise CipherDMError("there must be at least one prompt to draw.")
    rows, drawn = [], []
    with LocalCluster() as cluster:
        for index, prompt in enumerate(prompts):
            settings = {"steps": steps, "scheduler": scheduler, "guidance_scale": guidance_scale, "seed": seed + index}
            draw = partial(text_to_image, pipeline, prompts=[prompt], **settings)
            exact, emulated = (draw(None, protocols=chosen) for chosen in (DIRECT, protocols))

            def told(done: int, total: int, label: str, index: int = index) -> None:
                progress(index * total + done, len(prompts) * total, f"prompt {index + 1}, {label}")

            start = perf_counter()
            secure = draw(cluster, protocols=protocols, granularity="block", progress=told)
            rows.append(
                {
                    "prompt": prompt,
                    "seed": seed + index,
                    "psnr_db": psnr(secure.images, exact.images)[0],
                    "latents_psnr_db": extent_psnr(secure.latents, exact.latents)[0],
                    "emulated_psnr_db": psnr(emulated.images, exact.images)[0],
                    "whole_seconds": perf_counter() - start,
                    **secure.cost.totals(),
                    "peak_memory": most_memory(secure.peak_memory),
                }
            )
            drawn.append([grey_levels(exact.images[0]), grey_levels(secure.images[0])])
    found = [row["psnr_db"] for row in rows]
    record = {
        "benchmark": "prompts",
        "model": pipeline.unet.folder.resolve().name,
        "protocols": protocols.name,
        "scheduler": scheduler,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "granularity": "block",
        "psnr_db": {"mean": float(np.mean(found)), "lowest": min(found)},
        "rows": rows,
    }
    return record, {"pictures": np.stack(drawn, axis=1)}


def read(path: str | Path) -> DrawnPrompts:
    """Read a recorded run. Raises CipherDMError as `recording.read`."""
    about, images = recording.read(path, "cipherdm bench prompts")
    return DrawnPrompts(about, **images)


def summary(record: Mapping[str, Any]) -> str:
    """Return a line for each prompt, and a few sentences about all."""
    frame = pd.DataFrame(record["rows"])
    shown = frame[["prompt", "psnr_db", "emulated_psnr_db", "seconds", "whole_seconds", "bytes", "sends"]]
    likeness, seconds = record["psnr_db"], frame["whole_seconds"]
    beside = (seconds - frame["seconds"]).tolist()
    later = f", and {np.median(beside[1:]):.1f} s for each of the others" if beside[1:] else ""
    return (
        f"{shown.to_string(index=False, float_format='{:.4g}'.format)}\n"
        f"PSNR of secure against exact plaintext: mean {likeness['mean']:.1f} dB, lowest {likeness['lowest']:.1f} dB.\n"
        f"A picture takes at most {seconds.max():.0f} s, and a party {frame['peak_memory'].max() / 2**20:.0f} MiB.\n"
        f"Beside computing, compiling and sharing took {beside[0]:.1f} s for the first prompt{later}."
    )


ACROSS = 4
"""Number of prompts side by side."""


def prompts_sheet(drawn: DrawnPrompts) -> Figure:
    """Draw each prompt above its images, plaintext and secure, with PSNR, seconds and MB of all parties below."""
    rows = drawn.about["rows"]
    columns = min(len(rows), ACROSS)
    bands = -(-len(rows) // columns)
    titles = [wrapped(row["prompt"]) for row in rows]
    lines = 1 + max(title.count("\n") for title in titles)
    figure = new_figure(0.4 + 2.0 * columns, (3.9 + 0.17 * lines) * bands)
    axes = image_axes(figure, 2 * bands, columns)
    for index, (row, title) in enumerate(zip(rows, titles, strict=True)):
        band, column = divmod(index, columns)
        for way, levels in enumerate(drawn.pictures[:, index]):
            draw_levels(axes[2 * band + way, column], levels)
        axes[2 * band, column].set_title(title, fontsize=9, pad=4, parse_math=False)
        told = f"{row['psnr_db']:.1f} dB, {row['seconds']:.0f} s\n{row['bytes'] / 1e6:,.0f} MB"
        axes[2 * band + 1, column].set_xlabel(told, fontsize=8.5, color=GREY, labelpad=3)
    for axis, text in zip(axes[:, 0], ("plaintext", "secure") * bands, strict=True):
        axis.set_ylabel(text, fontsize=9)
    about, sampler = drawn.about, f"{drawn.about['scheduler'].upper()}-{drawn.about['steps']}"
    frame = pd.DataFrame(rows)
    likeness, seconds = frame["psnr_db"], frame["seconds"]
    return describe(
        figure,
        f"{len(rows)} prompts drawn by {about['model']} with {sampler}, in plaintext and below it on shares under "
        f"{about['protocols']}, from the same noise. PSNR between the two: mean {likeness.mean():.1f} dB, lowest "
        f"{likeness.min():.1f} dB for {rows[likeness.argmin()]['prompt']!r}. The parties computed {seconds.min():.0f} to "
        f"{seconds.max():.0f} seconds for a picture. Prompts: {'; '.join(frame['prompt'])}.",
    )


def prompts_table(drawn: DrawnPrompts) -> pd.DataFrame:
    """Return a row for each prompt: PSNR in dB, secure and emulated, and the parties' seconds, traffic and most memory."""
    rows = pd.DataFrame(drawn.about["rows"])
    rows = rows.assign(bytes=rows["bytes"] / 1e6, peak_memory=rows["peak_memory"] / 2**20).set_index("prompt")
    names = {"psnr_db": "PSNR", "emulated_psnr_db": "emulated", "seconds": "s", "whole_seconds": "s, with all"}
    names |= {"bytes": "MB", "sends": "messages", "rounds": "rounds", "peak_memory": "MiB a party"}
    return rows[list(names)].rename(columns=names)


def measure(
    model: PromptModel = PROMPT_MODEL,
    file: Annotated[Path | None, typer.Option("--prompts", help="File with a prompt in each line.")] = None,
    protocols: ProtocolsOption = "fast",
    scheduler: SchedulerOption = "ddim",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20,
    guidance_scale: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.", min=1)] = 4.0,
    count: Annotated[int | None, typer.Option(help="Number of prompts to draw; all by default.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt's noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Draw prompts one by one on three parties and in plaintext from the same noise: images, PSNR, costs.

    The images go into an .npz file beside the record.
    """
    folder = find_model(model)
    path = record_path(record, f"prompts_{folder.resolve().name}")
    chosen = (PROMPTS if file is None else read_captions(file))[:count]
    settings = {"scheduler": scheduler, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    with ProgressBar("run") as bar:
        found, images = run(load_pipeline(folder), chosen, protocols=named(protocols), progress=bar, **settings)
    typer.echo(f"{summary(found)}\n{recording.write(path, found, images)}")


def drawn_table(measurements: Path) -> str:
    """Return prompts drawn one by one on three parties, against plaintext."""
    records = records_named(measurements, "prompts_*.json", "cipherdm bench prompts MODEL")
    rows = [
        [row["prompt"], f"{row['psnr_db']:.1f} dB", f"{row['whole_seconds']:.0f} s", f"{row['bytes'] / 1e6:,.0f}"]
        + [f"{row['sends']:,}", f"{row['peak_memory'] / 2**20:.0f}"]
        for record in records
        for row in record["rows"]
    ]
    return markdown(["prompt", "PSNR to exact", "time", "MB", "messages", "MiB of a party"], rows)


TABLES = {"prompts": drawn_table}

DRAWN = f"prompts_{PROMPT_MODEL}"
_SLOWEST = of_rows(DRAWN, "whole_seconds", max, 1 / 60)

TARGET = Target(
    "prompts",
    "Eight prompts, each drawn by itself on three parties",
    "on shares a prompt gives the picture that it gives in plaintext, in minutes on one machine",
    "ours",
    (Command(DRAWN, ("bench", "prompts", PROMPT_MODEL), (), ("--count", "1")),),
    (
        Check("mean PSNR to plaintext", 28, 0, of_rows(DRAWN, "psnr_db"), 0, unit=" dB", bound="least"),
        Check("lowest PSNR to plaintext", 25, 0, of_rows(DRAWN, "psnr_db", min), 0, unit=" dB", bound="least"),
        Check("GB of all parties, for a picture", 1.04, 0.02, of_rows(DRAWN, "bytes", factor=1e-9), 0.02, 2, " GB"),
        Check("minutes of the slowest picture, with sharing", 10, 0, _SLOWEST, 0, unit=" min", bound="most"),
        Check("most memory of a party", 4, 0, of_rows(DRAWN, "peak_memory", max, 2**-30), 0, 2, " GiB", "most"),
    ),
    lambda records: prompts_sheet(read(records / f"{DRAWN}.json")),
    order=70,
)
