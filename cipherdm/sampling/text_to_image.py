"""Text to image: what diffusers' StableDiffusionPipeline computes, with the U-Net's part on three parties or in plaintext.

The client tokenises and embeds its prompt, and decodes the latents to the image, on its own machine and in the clear.
Sampling stands between the two, as for any model: the client shares the embedding and its noise, the model owner shares the
U-Net, and the parties compute on shares. Keys and values of all cross-attention are computed once, before the first step.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..engine import EngineConfig, LocalCluster
from ..errors import CipherDMError, check_whole
from ..models import at_conditioning_scale, at_guidance, sampling_defaults
from ..progress import Progress
from ..protocols import DIRECT, Protocols, named
from ..schedules import Schedule
from .pipeline import (
    Pipeline,
    checked_hints,
    decode_latents,
    embed_prompts,
    encode_images,
    known_captions,
    known_hints,
)
from .rings import IMAGES_MET
from .roles import Task
from .sample import Granularity, SamplingResult, Settings, check_sample, initial_noise, run_task


def text_to_image(
    pipeline: Pipeline,
    cluster: LocalCluster | None,
    prompts: Sequence[str] | str,
    *,
    negative_prompts: Sequence[str] | str | None = None,
    guidance_scale: float | None = None,
    control: np.ndarray | None = None,
    conditioning_scale: float = 1.0,
    images: np.ndarray | None = None,
    strength: float = 0.8,
    latents: np.ndarray | None = None,
    steps: int | None = None,
    start: int = 0,
    reuse: int = 1,
    scheduler: str | None = None,
    eta: float = 0.0,
    protocols: Protocols | str = DIRECT,
    seed: int = 0,
    granularity: Granularity = "block",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> SamplingResult:
    """Draw one image per prompt, secretly if there is a cluster.

    On a cluster the prompts' embeddings, the hints, the noise, the weights, every intermediate value and the latents are
    secret-shared. Public are the architecture, the number of tokens, the schedule, guidance_scale, conditioning_scale,
    strength, the batch size and the protocol set. This function plays both roles, model owner and client.

    Args:
        pipeline: the model.
        cluster: three parties, or None to compute here in plaintext, from the same noise and with the same protocol set.
        prompts: one for each image; a text is one.
        negative_prompts: descriptions to lead away from, one for each image or a text for all; empty by default.
        guidance_scale: weight of the prompt, from 1 on; 7.5 by default, or that of the model's `sampling.json`. With 1, or 0,
            there is no guidance, at half the cost, and negative prompts are ignored, as in diffusers. So it is with any scale
            for a U-Net that is told the scale (`time_cond_proj_dim`).
        control: hints for the ControlNet, if there is one: [B, 3, H, W] in [0, 1], in the size of the images that are drawn.
        conditioning_scale: factor, from 0 on, of what the ControlNet adds; the owner multiplies weights by it.
        images: [B, 3, H, W] in [-1, 1], to start from instead of noise.
        strength: share of the schedule applied to `images`, above 0, up to 1.
        latents: [B, C, h, w], the initial noise, if the client brings its own. Not with `images`.
        steps: denoising steps, of which the share `strength` is taken if there are `images`.
        start, reuse, scheduler, eta, protocols, seed, granularity, engine, progress: as in `cipherdm.sample`.

    Raises:
        CipherDMError: an argument out of its range or of the wrong shape, numbers that left the ring's range, or a failure of
            the cluster.
    """
    asked = {"negative_prompts": negative_prompts, "guidance_scale": guidance_scale}
    asked |= {"control": control, "conditioning_scale": conditioning_scale}
    asked |= {"images": images, "strength": strength, "latents": latents, "protocols": named(protocols)}
    settings = {"steps": steps, "start": start, "reuse": reuse, "scheduler": scheduler, "eta": eta, "seed": seed}
    task = text_to_image_task(pipeline, prompts, **asked, **settings, ring=cluster is not None)
    result = run_task(task, cluster, granularity=granularity, engine=engine, progress=progress)
    check_sample(result.images, task.shape)
    return replace(result, images=decode_latents(pipeline, result.images), latents=result.images)


def text_to_image_task(
    pipeline: Pipeline,
    prompts: Sequence[str] | str,
    *,
    negative_prompts: Sequence[str] | str | None = None,
    guidance_scale: float | None = None,
    control: np.ndarray | None = None,
    conditioning_scale: float = 1.0,
    images: np.ndarray | None = None,
    strength: float = 0.8,
    latents: np.ndarray | None = None,
    **settings,
) -> Task:
    """Return what `text_to_image` runs for the same arguments; `settings` are fields of `Settings`.

    Raises CipherDMError if an argument is out of its range or of the wrong shape.
    """
    chosen, unet = Settings(**settings), at_conditioning_scale(pipeline.unet, conditioning_scale)
    usual = sampling_defaults(unet.folder)
    guidance_scale = usual["guidance_scale"] if guidance_scale is None else guidance_scale
    if not (guidance_scale >= 1 or guidance_scale == 0):  # NaN is refused too
        raise CipherDMError(f"guidance_scale must be at least 1, which means no guidance; got {guidance_scale}.")
    told = at_guidance(unet, guidance_scale)
    if told is not unet:
        unet, guidance_scale = told, 1.0
    if isinstance(prompts, str):  # as diffusers takes one
        prompts = [prompts]
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * len(prompts)
    embeddings = embed_prompts(pipeline, prompts, negative_prompts, guided=guidance_scale > 1)
    given = {"prompts": embeddings, "hints": checked_hints(unet.config, control, len(prompts))}
    if images is not None:
        if latents is not None or chosen.start:
            raise CipherDMError("give images to start from, or latents, or start, and not two of them.")
        steps = usual["steps"] if chosen.steps is None else chosen.steps
        chosen = replace(chosen, start=steps - _steps_taken(steps, strength))
    schedule = chosen.schedule(unet)
    latents = initial_noise(unet, schedule, len(prompts), latents)
    if images is not None:
        latents = _noised(pipeline, images, schedule, (len(prompts), *unet.config.sample_shape), chosen.seed)
    task = chosen.task(unet, schedule, len(prompts), **given, latents=latents, guidance_scale=guidance_scale)
    if chosen.protocols.significant_bits is None:
        return task
    known = embed_prompts(pipeline, known_captions(pipeline, IMAGES_MET), guided=guidance_scale > 1)
    known = known.reshape(task.shape.branches, -1, *known.shape[1:])
    return replace(task, known_prompts=known, known_hints=known_hints(pipeline, known.shape[1]))


def _steps_taken(steps: int, strength: float) -> int:
    """Number of last steps that an image goes through, counted as diffusers counts them."""
    taken = min(int(steps * strength), steps) if 0 < strength <= 1 else 0
    if taken < 1:
        raise CipherDMError(f"strength must be above 0 and at most 1, and {steps} steps leave none at {strength}.")
    return taken


def _noised(
    pipeline: Pipeline, images: np.ndarray, schedule: Schedule, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """Encode images and add the noise of the schedule's first step, from the client's generator."""
    check_whole("the seed", seed, 0)
    generator = np.random.default_rng(seed)
    clean = encode_images(pipeline, images, generator)
    if clean.shape != shape:
        raise CipherDMError(f"there are {len(clean)} images to start from, and {shape[0]} prompts; give one for each.")
    noise = generator.standard_normal(clean.shape, dtype=np.float32)
    return np.float32(schedule.signal) * clean + np.float32(np.sqrt(1 - schedule.signal**2)) * noise
