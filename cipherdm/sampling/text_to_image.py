"""Text to image: what diffusers' StableDiffusionPipeline computes, with the U-Net's part on three parties or in plaintext.

The client tokenises and embeds its prompt, and decodes the latents to the picture, on its own machine and in the clear.
Between the two is sampling as for any model: the client shares the embedding and its noise, the model owner shares the
U-Net, and the parties compute on shares. Keys and values of all cross-attention are computed once, before the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import diffusers
import numpy as np
import torch

from ..engine import CostReport, EngineConfig, LocalCluster
from ..errors import CipherDMError
from ..owner import prepare_weights
from ..progress import Progress
from ..protocols import DIRECT, Protocols
from ..schedules import BRANCHES, Schedule, guided_coefficients, make_schedule
from .pipeline import Pipeline, decode_latents, embed_prompts, encode_images
from .roles import client_values, owner_values, public_values
from .sample import Granularity, Task, run_task
from .steps import StepShape


@dataclass(frozen=True, eq=False)
class TextToImageResult:
    """What the client holds in the end.

    Attributes:
        images: float32 [B, 3, H, W], nominally in [-1, 1], not clipped.
        latents: float32 [B, C, h, w], what was sampled, before the VAE.
        cost: what the run cost the parties, without sharing and revealing; None for a run in plaintext.
        peak_memory: bytes that each party's process held at most, by rank; empty for a run in plaintext.
    """

    images: np.ndarray
    latents: np.ndarray
    cost: CostReport | None = None
    peak_memory: tuple[int, ...] = ()


def text_to_image(
    pipeline: Pipeline,
    cluster: LocalCluster | None,
    prompts: Sequence[str],
    *,
    negative_prompts: Sequence[str] | None = None,
    guidance_scale: float = 7.5,
    images: np.ndarray | None = None,
    strength: float = 0.8,
    latents: np.ndarray | None = None,
    steps: int = 20,
    scheduler: str = "ddim",
    eta: float = 0.0,
    protocols: Protocols = DIRECT,
    seed: int = 0,
    granularity: Granularity = "block",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> TextToImageResult:
    """Draw what prompts say, one picture for each, secretly if there is a cluster.

    On a cluster the prompts' embeddings, the noise, the U-Net's weights, every intermediate value and the latents are
    secret-shared. Public are the architecture, the number of tokens, the schedule, guidance_scale, strength, the batch
    size and the protocols. This function plays both roles, model owner and client.

    Args:
        pipeline: the model.
        cluster: three parties, or None to compute here in plaintext, from the same noise and with the same protocols.
        prompts: one for each picture.
        negative_prompts: what to lead away from, one for each picture; empty by default.
        guidance_scale: how far to lead, from 1 on. With 1 there is no guidance, and half the cost: negative prompts are
            then not looked at, as in diffusers.
        images: [B, 3, H, W] in [-1, 1], to start from instead of noise.
        strength: how much of the schedule those go through, above 0, up to 1.
        latents: [B, C, h, w], the initial noise, if the client brings its own. Not with `images`.
        steps: denoising steps, of which the share `strength` is taken if there are `images`.
        scheduler: "ddim", "ddpm" or "dpmsolver++".
        eta: DDIM's share of fresh noise, 0 to 1.
        protocols: how nonlinear functions and layers are computed.
        seed: of the client's noise.
        granularity: what becomes one program: each "block", each "step", or the whole "loop".
        engine: how the parties compute; what `engine_for(protocols)` says by default.
        progress: called as `progress(done, total, label)`; only with a cluster.

    Raises:
        CipherDMError: an argument out of its range or of the wrong shape, or a failure of the cluster.
    """
    task = text_to_image_task(
        pipeline,
        prompts,
        negative_prompts=negative_prompts,
        guidance_scale=guidance_scale,
        images=images,
        strength=strength,
        latents=latents,
        steps=steps,
        scheduler=scheduler,
        eta=eta,
        protocols=protocols,
        seed=seed,
        ring=cluster is not None,
    )
    result = run_task(task, cluster, granularity=granularity, engine=engine, progress=progress)
    return TextToImageResult(
        decode_latents(pipeline, result.images), result.images, cost=result.cost, peak_memory=result.peak_memory
    )


def text_to_image_task(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    negative_prompts: Sequence[str] | None = None,
    guidance_scale: float = 7.5,
    images: np.ndarray | None = None,
    strength: float = 0.8,
    latents: np.ndarray | None = None,
    steps: int = 20,
    scheduler: str = "ddim",
    eta: float = 0.0,
    protocols: Protocols = DIRECT,
    seed: int = 0,
    ring: bool = True,
) -> Task:
    """What `text_to_image` runs, for the same arguments; with `ring` for three parties, otherwise for plaintext.

    Raises:
        CipherDMError: as `text_to_image`, for the arguments.
    """
    if not guidance_scale >= 1:
        raise CipherDMError(f"guidance_scale must be at least 1, which means no guidance; got {guidance_scale}.")
    guided = guidance_scale > 1
    embeddings = embed_prompts(pipeline, prompts, negative_prompts, guided=guided)
    unet = pipeline.unet
    skipped = 0 if images is None else steps - _steps_taken(steps, strength)
    schedule = make_schedule(unet.scheduler_config, scheduler, steps, eta=eta, start=skipped)
    weights = prepare_weights(unet, schedule.timesteps, protocols)
    shape = StepShape(
        unet.config,
        protocols,
        weights.layout,
        schedule.steps,
        len(prompts),
        schedule.noisy,
        None,
        ring,
        schedule.multistep,
        BRANCHES if guided else 1,
    )
    if latents is not None:
        start = _checked_latents(latents, images, shape)
    else:
        start = None if images is None else _noised(pipeline, images, schedule, shape, seed)
    client = client_values(None, schedule, shape, seed, start=start, prompts=embeddings)
    if guided:
        table = guided_coefficients(schedule.coefficients, guidance_scale)
        schedule = replace(schedule, coefficients=table)
    return Task(shape, owner_values(weights, shape), client, public_values(schedule, shape))


def _steps_taken(steps: int, strength: float) -> int:
    """How many of the last steps an image goes through, counted as diffusers counts them."""
    taken = min(int(steps * strength), steps) if 0 < strength <= 1 else 0
    if taken < 1:
        raise CipherDMError(f"strength must be above 0 and at most 1, and {steps} steps leave none at {strength}.")
    return taken


def _noised(pipeline: Pipeline, images: np.ndarray, schedule: Schedule, shape: StepShape, seed: int) -> np.ndarray:
    """The pictures' latents under the noise of the schedule's first step, from the client's generator."""
    generator = np.random.default_rng(seed)
    clean = encode_images(pipeline, images, generator)
    if clean.shape != shape.image_shape:
        raise CipherDMError(
            f"there are {len(clean)} pictures to start from, and {shape.batch} prompts; give one for each."
        )
    noise = torch.tensor(generator.standard_normal(clean.shape, dtype=np.float32))
    scheduler = diffusers.DDPMScheduler.from_config(dict(pipeline.unet.scheduler_config))
    return scheduler.add_noise(torch.tensor(clean), noise, torch.tensor(schedule.timesteps[:1])).numpy()


def _checked_latents(latents: np.ndarray, images: np.ndarray | None, shape: StepShape) -> np.ndarray:
    latents = np.asarray(latents, np.float32)
    if images is not None:
        raise CipherDMError("give images to start from or latents, not both.")
    if latents.shape != shape.image_shape:
        raise CipherDMError(
            f"the latents have shape {latents.shape}; this model and these prompts take {shape.image_shape}."
        )
    return latents
