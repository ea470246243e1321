"""For users of diffusers: its objects as models of this package, and a pipeline with its names that three parties draw for."""

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from PIL import Image

from ..engine import LocalCluster
from ..errors import CipherDMError, refuse
from ..models import UNet, load_unet
from ..models.transformer import Transformer
from ..progress import Progress
from ..protocols import Protocols
from .pipeline import Pipeline, load_model
from .sample import Granularity, SamplingResult, Settings, sample
from .text_to_image import text_to_image


def from_diffusers(
    model: DiffusionPipeline | UNet2DModel | UNet2DConditionModel,
    scheduler: SchedulerMixin | None = None,
    *,
    folder: str | Path | None = None,
) -> UNet | Pipeline:
    """Return an object of diffusers as a model: what `load_unet` or `load_pipeline` gives for what it saves.

    So whatever diffusers reads can be taken, if it is of a kind that is computed here.

    Args:
        model: a StableDiffusionPipeline, the pipeline of a UNet2DModel, or a U-Net by itself.
        scheduler: scheduler of a U-Net by itself.
        folder: where to save it, as calibration for FAST needs it; it is not saved by default.

    Raises:
        CipherDMError: the model is of a kind that is not computed here.
    """
    with TemporaryDirectory() as temporary:
        home = Path(temporary if folder is None else folder)
        for part in (model, scheduler):
            if part is not None:
                part.save_pretrained(home)
        loaded = load_model(home) if isinstance(model, DiffusionPipeline) else load_unet(home)
    if folder is not None:
        return loaded
    if isinstance(loaded, Pipeline):
        return replace(loaded, unet=replace(loaded.unet, folder=None))
    return replace(loaded, folder=None)


@dataclass(frozen=True, eq=False)
class SecurePipelineOutput:
    """What a `SecurePipeline` returns.

    Attributes:
        images: as diffusers' pipelines return them: Pillow's images, or an array [B, H, W, C] in [0, 1], or latents.
        result: the same with costs, as `cipherdm.sample` returns it.
    """

    images: list[Image.Image] | np.ndarray
    result: SamplingResult

    def _repr_png_(self) -> bytes:
        return self.result._repr_png_()


class SecurePipeline:
    """A model with the call of diffusers' pipelines, whose U-Net is computed by three parties on this machine.

    Close it, or use it in a with block: it starts the parties at the first call, unless it is given a cluster.

        with SecurePipeline("sd-mini") as pipe:
            pipe("a red two", num_inference_steps=10, guidance_scale=4.0).images[0]

    Args:
        model: a name in data/models, a folder, an object of diffusers, or a model that was loaded.
        cluster: three parties; its own by default.
        protocols: protocol set or its name. "direct" takes every model; the others are faster.
        granularity: as in `cipherdm.sample`.
    """

    def __init__(
        self,
        model: str | Path | DiffusionPipeline | UNet | Pipeline,
        cluster: LocalCluster | None = None,
        *,
        protocols: Protocols | str = "fast-64",
        granularity: Granularity = "step",
    ):
        if isinstance(model, str | Path):
            model = load_model(model)
        if isinstance(model, Transformer):
            raise CipherDMError(
                "this is a transformer, which draws nothing: take cipherdm.classify or cipherdm.generate."
            )
        self.model = model if isinstance(model, UNet | Pipeline) else from_diffusers(model)
        self.protocols, self.granularity = protocols, granularity
        self._cluster, self._own = cluster, cluster is None

    def __call__(
        self,
        prompt: Sequence[str] | str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Sequence[str] | str | None = None,
        num_images_per_prompt: int = 1,
        *,
        class_labels: Any = None,
        batch_size: int | None = None,
        eta: float = 0.0,
        generator: torch.Generator | int | None = None,
        latents: Any = None,
        output_type: Literal["pil", "np", "latent"] = "pil",
        callback_on_step_end: Callable[["SecurePipeline", int, float, dict], Any] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> SecurePipelineOutput:
        """Draw images.

        Args:
            prompt: one or several, for a model with prompts; `negative_prompt` and `guidance_scale` go with it.
            num_inference_steps: denoising steps; 20 by default, or those of the model's `sampling.json`.
            num_images_per_prompt: images of each prompt.
            class_labels: a class or several, for a model with classes.
            batch_size: number of images, for a model without conditions.
            eta: share of fresh noise of DDIM and TCD.
            generator: diffusers' initial noise is drawn from it, so the image is the one that diffusers draws with it; or a
                seed of this package's own noise. Unpredictable by default.
            latents: the initial noise, in the place of the generator's.
            output_type: "pil", "np", or "latent" for what the U-Net draws, before a VAE decodes it.
            callback_on_step_end: called as callback(pipeline, step, timestep, {}) after each step, counted from 0. The samples
                on the way, which diffusers hands over here, are on shares and nobody's; what it returns is ignored.
            progress, settings: as in `cipherdm.sample`: scheduler, start, reuse, engine; and as in `cipherdm.text_to_image`:
                images, strength, control, conditioning_scale. diffusers' guess_mode is not supported.

        Raises:
            CipherDMError: as `cipherdm.sample` and `cipherdm.text_to_image` do, or an unknown output_type.
        """
        if output_type not in ("pil", "np", "latent"):
            raise CipherDMError(f"unknown output_type {output_type!r}: choose pil, np or latent.")
        refuse({"guess_mode is not supported; leave it out, and give a prompt": settings.pop("guess_mode", False)})
        prompted = isinstance(self.model, Pipeline)
        settings |= {"steps": num_inference_steps, "eta": eta, "protocols": self.protocols}
        if prompted:
            if prompt is None or class_labels is not None or batch_size is not None:
                raise CipherDMError("this model draws from prompts: give prompt, no class_labels and no batch_size.")
            prompts, negative = (_repeated(texts, num_images_per_prompt) for texts in (prompt, negative_prompt))
            asked = {"prompts": prompts, "negative_prompts": negative, "guidance_scale": guidance_scale}
            count, unet, draw = len(prompts), self.model.unet, text_to_image
        else:
            if prompt is not None or negative_prompt is not None:
                raise CipherDMError("this model takes no prompts: give class_labels, or batch_size.")
            asked = {"labels": class_labels, "count": batch_size}
            count = batch_size or (1 if class_labels is None else np.atleast_1d(np.asarray(class_labels)).size)
            unet, draw = self.model, sample
        if isinstance(generator, torch.Generator):
            if latents is None:
                latents = torch.randn((count, *unet.config.sample_shape), generator=generator)
            generator = generator.initial_seed()
        if callback_on_step_end is not None:
            of_schedule = {name: settings[name] for name in ("steps", "start", "scheduler") if name in settings}
            timesteps = Settings(**of_schedule).schedule(unet).timesteps
            progress = _with_step_ends(partial(callback_on_step_end, self), timesteps, progress)
        settings |= {"granularity": self.granularity, "progress": progress}
        settings["seed"] = secrets.randbits(64) if generator is None else generator
        settings["latents"] = None if latents is None else np.asarray(latents, np.float32)
        try:
            result = draw(self.model, self._started(), **asked, **settings)
        except BaseException:
            self.close()  # an interrupt ends the parties; the next call starts others
            raise
        if output_type == "latent":
            return SecurePipelineOutput(result.images if result.latents is None else result.latents, result)
        if output_type == "np":
            return SecurePipelineOutput(np.clip(result.images.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1), result)
        return SecurePipelineOutput(result.pil, result)

    def close(self) -> None:
        """Stop the parties, if they are this pipeline's own."""
        if self._own and self._cluster is not None:
            self._cluster.stop()
            self._cluster = None

    def __enter__(self) -> "SecurePipeline":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _started(self) -> LocalCluster:
        if self._cluster is None:
            self._cluster = LocalCluster().__enter__()
        return self._cluster


def _with_step_ends(
    callback: Callable[[int, float, dict], Any], timesteps: Sequence[float], progress: Progress | None
) -> Progress:
    """Return `progress` that also calls `callback` once all calls of a step are done."""
    left = list(enumerate(timesteps))

    def told(done: int, total: int, label: str) -> None:
        if progress is not None:
            progress(done, total, label)
        if under_way := re.match(r"step (\d+)/", label):  # anything else is still being prepared
            ended = len(timesteps) if done == total else int(under_way[1]) - 1
            while left and left[0][0] < ended:
                index, timestep = left.pop(0)
                callback(index, float(timestep), {})

    return told


def _repeated(texts: Sequence[str] | str | None, count: int) -> list[str] | None:
    """Each text so many times, one after the other."""
    if texts is None:
        return None
    return [text for text in ([texts] if isinstance(texts, str) else texts) for _ in range(count)]
