"""Calibration of a Stable Diffusion folder for FAST: by the model's owner, in plaintext, on captions and noise of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CipherDMError
from ..models.calibration import load_calibration, save_calibration
from ..models.condition_calibration import calibrate_prompted
from .guidance import guided_coefficients
from .pipeline import Pipeline
from .prompts import embed_prompts
from .schedules import make_schedule

GUIDANCE_SCALE = "guidance_scale"  # of the fits' arrays: the one that they were made with
CAPTIONS = "captions.txt"  # in a model's folder: captions to calibrate with, one a line


def calibrate_pipeline(
    pipeline: Pipeline,
    captions: Sequence[str],
    *,
    timesteps: int = 50,
    guidance_scale: float = 7.5,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Draw one picture for each caption by DDIM with the exact model, fit every layer, and store the fits in the folder.

    Pictures are drawn with guidance, away from the empty prompt, and what both branches carry is fitted. Other prompts and
    another guidance scale lead to other values: captions should be like the prompts that are expected.

    Args:
        pipeline: the model, from a folder.
        captions: known to the owner; nothing of them is stored.
        timesteps: how many, evenly spaced; schedules take the nearest.
        guidance_scale: from 1 on; that of the sampling to come.
        seed: of the noise.
        progress: whether to show a bar.

    Returns:
        The path of the stored fits.

    Raises:
        CipherDMError: there is no caption, or guidance_scale is below 1.
    """
    if not guidance_scale >= 1:
        raise CipherDMError(f"guidance_scale must be at least 1, which means no guidance; got {guidance_scale}.")
    guided = guidance_scale > 1
    embeddings = embed_prompts(pipeline, captions, guided=guided)
    schedule = make_schedule(pipeline.unet.scheduler_config, "ddim", timesteps)
    if guided:
        schedule = replace(schedule, coefficients=guided_coefficients(schedule.coefficients, guidance_scale))
    fits = calibrate_prompted(pipeline.unet, schedule, embeddings, guided=guided, seed=seed, progress=progress)
    return save_calibration(fits | {GUIDANCE_SCALE: np.float32([guidance_scale])}, pipeline.unet)


def calibration_of(pipeline: Pipeline) -> dict[str, Any]:
    """What a pipeline's stored fits were made for, as a record says it: guidance scale and number of timesteps.

    The scale is None if the fits do not say it, as those that were made for one call do not.

    Raises:
        CipherDMError: as `load_calibration`.
    """
    stored = load_calibration(pipeline.unet)
    scale = stored.get(GUIDANCE_SCALE)
    return {"guidance_scale": None if scale is None else float(scale[0]), "timesteps": len(stored["timesteps"])}


def read_captions(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty. Raises CipherDMError if it cannot be read or has none."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CipherDMError(f"{path} cannot be read as a list of captions, one a line ({error}).") from error
    captions = [line for line in lines if line]
    if not captions:
        raise CipherDMError(f"{path} has no captions; write one a line.")
    return captions
