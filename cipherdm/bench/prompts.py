"""Pictures of several prompts, each drawn by itself on three parties and in plaintext from the same noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from ..comparison import extent_psnr, psnr
from ..engine import LocalCluster
from ..errors import CipherDMError
from ..protocols import DIRECT, FAST, Protocols
from ..sampling.pipeline import Pipeline
from ..sampling.sample import Granularity
from ..sampling.text_to_image import text_to_image
from .recording import grey_levels, read_with_pictures

Progress = Callable[[int, int, str], None]

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
"""In the words of sd-mini's captions."""


@dataclass(frozen=True, eq=False)
class DrawnPrompts:
    """A run, as `read` gives it.

    Attributes:
        about: the record: model, protocols, scheduler, steps, guidance_scale, a row for each prompt, environment.
        pictures: uint8 [2, prompts, C, H, W], plaintext and secure.
    """

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
    granularity: Granularity = "block",
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Draw one prompt after the other; the record, and its pictures, for `recording.write`.

    Each row has the PSNR in dB of the secure picture to that of the exact functions in plaintext ("psnr_db"), of the latents
    that they were decoded from ("latents_psnr_db"), and of the picture by the same protocols in plaintext to the exact one
    ("emulated_psnr_db"), all from the same noise; what the parties' computation cost; how long the client waited in all,
    with compiling and sharing ("whole_seconds"); and the most bytes that one party's process held ("peak_memory"). Programs
    are compiled for the first prompt, and stay with the parties for the others; shares are made anew for each.

    Raises:
        CipherDMError: there is no prompt; or as `text_to_image`.
    """
    if not prompts:
        raise CipherDMError("there must be at least one prompt to draw.")
    rows, drawn = [], []
    with LocalCluster() as cluster:
        for index, prompt in enumerate(prompts):
            settings = {"steps": steps, "scheduler": scheduler, "guidance_scale": guidance_scale, "seed": seed + index}
            exact = text_to_image(pipeline, None, [prompt], protocols=DIRECT, **settings)
            emulated = text_to_image(pipeline, None, [prompt], protocols=protocols, **settings)
            start = perf_counter()
            secure = text_to_image(
                pipeline,
                cluster,
                [prompt],
                protocols=protocols,
                granularity=granularity,
                progress=_within(progress, index, len(prompts)),
                **settings,
            )
            rows.append(
                {
                    "prompt": prompt,
                    "seed": seed + index,
                    "psnr_db": psnr(secure.images, exact.images)[0],
                    "latents_psnr_db": extent_psnr(secure.latents, exact.latents)[0],
                    "emulated_psnr_db": psnr(emulated.images, exact.images)[0],
                    "whole_seconds": perf_counter() - start,
                    **secure.cost.totals(),
                    "peak_memory": max(secure.peak_memory),
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
        "granularity": granularity,
        "psnr_db": {"mean": float(np.mean(found)), "lowest": min(found)},
        "rows": rows,
    }
    return record, {"pictures": np.stack(drawn, axis=1)}


def read(path: str | Path) -> DrawnPrompts:
    """Read what `run` found and `recording.write` wrote. Raises CipherDMError if it is not there or not whole."""
    return DrawnPrompts(**read_with_pictures(path, "make it with `cipherdm bench prompts`."))


def summary(record: Mapping[str, Any]) -> str:
    """A line for each prompt, and what they have in common."""
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


def _within(progress: Progress | None, index: int, count: int) -> Progress | None:
    """A progress of one prompt's run as a part of all."""
    if progress is None:
        return None
    return lambda done, total, label: progress(index * total + done, count * total, f"prompt {index + 1}, {label}")
