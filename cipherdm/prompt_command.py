"""`cipherdm sample` and `cipherdm calibrate` for a Stable Diffusion folder: pictures that prompts ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage import color, io, transform

from .comparison import psnr, write_comparison
from .engine import LocalCluster
from .errors import CipherDMError
from .protocols import DIRECT, Protocols
from .sampling.pipeline import Pipeline, load_pipeline
from .sampling.prompt_calibration import CAPTIONS, calibrate_pipeline, read_captions
from .sampling.text_to_image import text_to_image

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

    def settings(self, pipeline: Pipeline) -> dict[str, Any]:
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
    protocols: Protocols,
    granularity: str,
    out: Path,
    progress: Callable[[int, int, str], None],
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
    from .views.sheet import sample_sheet, wrapped  # matplotlib takes a second to import

    pipeline = load_pipeline(folder)
    arguments = options.settings(pipeline) | settings
    plaintext = text_to_image(pipeline, None, options.prompts, protocols=DIRECT, **arguments)
    with LocalCluster() as cluster:
        secure = text_to_image(
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


def calibrate_folder(
    folder: Path, captions: Path | None, *, timesteps: int, guidance_scale: float, count: int | None, seed: int
) -> Path:
    """Calibrate a pipeline on the captions of a file, or of `captions.txt` in its folder; returns the fits' path.

    With `count` only so many captions are drawn, spread over the file.
    """
    listed = folder / CAPTIONS if captions is None else captions
    if captions is None and not listed.is_file():
        raise CipherDMError(
            f"{folder} has no {CAPTIONS}: give a file of captions like those that are to be drawn, one a line, with --captions."
        )
    texts = read_captions(listed)
    if count is not None and count < len(texts):
        texts = [texts[index] for index in np.linspace(0, len(texts) - 1, count).round().astype(int)]
    return calibrate_pipeline(
        load_pipeline(folder), texts, timesteps=timesteps, guidance_scale=guidance_scale, seed=seed
    )


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
