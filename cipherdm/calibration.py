"""Calibration: a step of a folder's owner, in plaintext, before FAST can sample from it. And the check of what came of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .engine import Node, compile_plan
from .errors import CipherDMError, check_whole
from .files import check_writable
from .models import UNet, UNetConditionConfig, at_conditioning_scale, at_guidance, sampling_defaults
from .models.transformer import Transformer
from .owner import ranges
from .owner.calibrate import calibrate as fit_layers
from .owner.observe import FILE, load_calibration, save_calibration
from .owner.ranges import LayerRange
from .owner.transformers import fit_transformer
from .progress import Progress
from .protocols import FAST, Protocols
from .sampling import make_task, sampling_nodes, text_to_image_task
from .sampling.ditto_in_the_clear import room_of_steps
from .sampling.pipeline import Pipeline, embed_prompts, known_captions, known_hints, spread_over
from .sampling.rings import IMAGES_MET, drawn, room_taken, walking_of
from .sampling.roles import Task
from .sampling.texts import classification_task, known_texts, text_task, tokenised
from .schedules import Schedule, exploring_scheduler, guided_coefficients, make_schedule

GUIDANCE_SCALE = "guidance_scale"  # name among the fits' arrays; the scale that they were made with


def calibrate(
    model: UNet | Pipeline | Transformer,
    captions: Sequence[str] | None = None,
    *,
    timesteps: int | None = None,
    reuse: int = 1,
    images: int | None = None,
    guidance_scale: float | None = None,
    hints: np.ndarray | None = None,
    conditioning_scale: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Sample with the exact model, fit every layer for FAST, and store the fits in the model's folder.

    Steps are those of DDIM, or of the model's own scheduler if noise levels of its own allow no other.

    A pipeline draws one image per caption. Guidance leads away from the empty prompt, and what both branches carry is
    fitted. Other prompts and another guidance scale lead to other values, so captions should be like the expected prompts.
    For a transformer the captions are texts, by default the lines of `texts.txt`; it takes no steps, and 256 of them.

    Args:
        model: model from a folder, by `load_unet`, `load_pipeline` or `load_transformer`.
        captions: prompts that the owner knows, for a pipeline; the lines of `captions.txt` in its folder by default. They
            are not stored.
        timesteps: number of timesteps, evenly spaced; schedules take the nearest. 100 by default, 50 for a pipeline, or the
            steps of the model's `sampling.json`.
        reuse: as in the sampling to come (`cipherdm.sample`); `timesteps` is then its number of steps.
        images: number of images of each class, 24 by default. For a pipeline, number of captions to take, spread over all
            of them, 64 by default.
        guidance_scale: guidance scale of the sampling to come, as in `cipherdm.text_to_image`; for a pipeline.
        hints: [hints, 3, H, W] in [0, 1] that the owner knows, for a pipeline with a ControlNet, one for each caption or any
            other number; the files `hints/*.png` in its folder by default. They are not stored.
        conditioning_scale: that of the sampling to come, as in `cipherdm.text_to_image`.
        seed: seed of the noise, which is public.
        progress: called as progress(done, timesteps, "calibrate") after each step.

    Returns:
        The path of the stored fits.

    Raises:
        CipherDMError: the model is not from a folder or FAST does not compute it, there are no captions or there should be
            none, a number is out of its range, or the folder cannot be written to.
    """
    if isinstance(model, Transformer):
        return _calibrate_transformer(model, captions, 256 if images is None else images, seed, progress)
    prompts, model = isinstance(model, Pipeline), _at_scale(model, conditioning_scale)
    unet = model.unet if prompts else model
    if unet.folder is None:
        raise CipherDMError("fits are stored beside the weights: save this model to a folder, and load it from there.")
    if not prompts and isinstance(unet.config, UNetConditionConfig):
        raise CipherDMError(f"{unet.folder} takes prompts: load the whole pipeline with load_pipeline.")
    if not prompts and captions is not None:
        raise CipherDMError(f"{unet.folder} is no Stable Diffusion folder, and takes no captions.")
    usual = sampling_defaults(unet.folder, steps=50 if prompts else 100)
    guidance_scale = usual["guidance_scale"] if guidance_scale is None else guidance_scale
    if prompts and not guidance_scale >= 1:  # NaN is refused too
        raise CipherDMError(f"guidance_scale must be at least 1, which means no guidance; got {guidance_scale}.")
    check_writable(unet.folder / FILE)
    images = (64 if prompts else 24) if images is None else images
    check_whole("the number of images", images, 1)
    timesteps = usual["steps"] if timesteps is None else timesteps
    check_whole("reuse", reuse, 1)
    schedule = make_schedule(unet.scheduler_config, exploring_scheduler(unet.scheduler_config), timesteps)
    settings: dict[str, Any] = {"reuse": reuse, "seed": seed, "progress": progress}
    if not prompts:
        fits = fit_layers(unet, schedule, images_per_class=images, **settings)
        return save_calibration(fits, unet)
    known = known_captions(model, images, captions), known_hints(model, images, hints)
    told, schedule, embedded = _prompted(model, schedule, *known, guidance_scale)
    fits = fit_layers(told, schedule, **embedded, **settings)
    return save_calibration(fits | {GUIDANCE_SCALE: np.float32([guidance_scale])}, told)


def _calibrate_transformer(
    model: Transformer, texts: Sequence[str] | None, count: int, seed: int, progress: Progress | None
) -> Path:
    check_whole("the number of texts", count, 1)
    chosen = spread_over(known_texts(model) if texts is None else texts, count)
    check_writable(model.folder / FILE)
    # At all places that the model has, since a text may be filled up to any of them.
    ids, mask = tokenised(model, chosen, model.config.tokens, cut=True)
    return save_calibration(fit_transformer(model, ids, mask, seed=seed, progress=progress), model)


def _at_scale(model: UNet | Pipeline, conditioning_scale: float) -> UNet | Pipeline:
    """A model with this scale in its weights, so that fits and rings are those of what is drawn."""
    if isinstance(model, Pipeline):
        return replace(model, unet=at_conditioning_scale(model.unet, conditioning_scale))
    return at_conditioning_scale(model, conditioning_scale)


def _prompted(
    pipeline: Pipeline,
    schedule: Schedule,
    captions: Sequence[str],
    hints: np.ndarray | None,
    guidance_scale: float,
) -> tuple[UNet, Schedule, dict[str, Any]]:
    """The U-Net as it is told the guidance scale, the schedule with guidance, and captions' embeddings and hints."""
    told = at_guidance(pipeline.unet, guidance_scale)
    guided = guidance_scale > 1 and told is pipeline.unet
    if guided:
        schedule = replace(schedule, coefficients=guided_coefficients(schedule.coefficients, guidance_scale))
    embeddings = embed_prompts(pipeline, captions, guided=guided)
    hints = None if hints is None else hints[: len(captions)]
    return told, schedule, {"embeddings": embeddings, "guided": guided, "hints": hints}


def check_ranges(
    model: UNet | Pipeline | Transformer,
    protocols: Protocols = FAST,
    captions: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    images: int | None = None,
    guidance_scale: float | None = None,
    hints: np.ndarray | None = None,
    conditioning_scale: float = 1.0,
    seed: int = 1,
    progress: Progress | None = None,
) -> list[LayerRange]:
    """Sample with the exact model, and compare what its layers carry with the ranges on which a set's functions are right.

    What is compared for each layer: `owner.ranges.check_ranges`.

    With sets that parties walk, each block has an entry for the function "cut": the largest number that one of its cuts reads,
    as a share of the largest with which the cut is right. So 1 is allowed. Rings are planned here as for single images, in
    so many steps, block by block; a run with other settings has a plan of its own. The images that are looked at are
    others than those which rings are planned from, on real numbers, without the errors of truncations.

    Ditto's functions have no range, and its ring of 32 bits is the same for all models. Its cuts are looked at step by step,
    with all that SPU computes between them. Where one has no room, take fewer `small_bits`
    (`dataclasses.replace(DITTO, small_bits=7)`), or a model that was trained with bounds. Of a GPT-2's last layer the last
    token alone is looked at.

    Args:
        model: by `load_unet`, `load_pipeline` or `load_transformer`; as it was calibrated, if the set needs that.
        protocols: the protocol set.
        captions: as in `calibrate`.
        steps: number of denoising steps; by default 20, or those of the model's `sampling.json`.
        images: number of images of each class, 4 by default. For a pipeline, number of captions, 16 by default, and for a
            transformer number of texts, 64 by default, which should be others than it was calibrated on. All images are
            observed at once, with the scores of all attentions in memory, so a model with large latents needs fewer.
        guidance_scale: as in `calibrate`, whose scale is the default if the model is calibrated.
        hints, conditioning_scale: as in `calibrate`.
        seed: seed of the noise, which is public.
        progress: called as progress(done, total, label).

    Returns:
        One entry for every layer and restricted function, those with the largest fraction outside first.

    Raises:
        CipherDMError: as `owner.ranges.check_ranges`; the model has no scheduler, takes prompts and is no pipeline, or has no
            captions.
    """
    if isinstance(model, Transformer):
        return _check_transformer(model, protocols, captions, 64 if images is None else images, progress)
    prompts, model = isinstance(model, Pipeline), _at_scale(model, conditioning_scale)
    unet = model.unet if prompts else model
    if not prompts and isinstance(unet.config, UNetConditionConfig):
        raise CipherDMError(f"{unet.folder} takes prompts: load the whole pipeline with load_pipeline.")
    images = (16 if prompts else 4) if images is None else images
    check_whole("the number of images", images, 1)
    usual = sampling_defaults(unet.folder)
    steps = usual["steps"] if steps is None else steps
    name = exploring_scheduler(unet.scheduler_config)
    schedule = make_schedule(unet.scheduler_config, name, steps)
    settings: dict[str, Any] = {"seed": seed, "progress": progress}
    asked: dict[str, Any] = {"steps": steps, "scheduler": name, "protocols": protocols}
    if prompts:
        if guidance_scale is None and protocols.prepare is not None:
            guidance_scale = calibration_of(model)["guidance_scale"]
        guidance_scale = usual["guidance_scale"] if guidance_scale is None else guidance_scale
        known, hints = known_captions(model, images, captions), known_hints(model, images, hints)
        unet, schedule, embedded = _prompted(model, schedule, known, hints, guidance_scale)
        found = ranges.check_ranges(unet, schedule, protocols, **embedded, **settings)
    else:
        found = ranges.check_ranges(unet, schedule, protocols, per_class=images, **settings)
    if protocols.walk_bits is None:
        return found
    if prompts:
        asked["control"] = None if hints is None else hints[:1]
        task = text_to_image_task(model, known[:1], guidance_scale=guidance_scale, **asked)
        embeddings = embedded["embeddings"].reshape(task.shape.branches, len(known), *embedded["embeddings"].shape[1:])
        checked = replace(task, known_prompts=embeddings, known_hints=embedded["hints"])
    else:
        task = checked = make_task(unet, **asked, **({"labels": [0]} if unet.config.num_class_embeds else {"count": 1}))
        images *= unet.config.num_class_embeds or 1
    first = IMAGES_MET + seed * images
    found += _cuts(task, checked, sampling_nodes(task.shape, "block"), "sample", range(first, first + images), progress)
    return sorted(found, key=lambda entry: (-entry.outside, -entry.excess))


def _check_transformer(
    model: Transformer,
    protocols: Protocols,
    texts: Sequence[str] | None,
    count: int,
    progress: Progress | None,
) -> list[LayerRange]:
    check_whole("the number of texts", count, 1)
    chosen = spread_over(known_texts(model) if texts is None else texts, count)
    ids, mask = tokenised(model, chosen, model.config.tokens, cut=True)
    found = ranges.check_ranges_of_texts(model, ids, mask, protocols, progress)
    known = {"ids": ids, "mask": mask}
    if protocols.small_bits is not None:
        settings = {"embedded": True, "ring": True, "places": model.config.tokens}
        task = text_task(model, ids[:1], mask[:1], protocols=protocols, known=known, **settings)
    elif protocols.walk_bits is None or model.config.kind != "bert":
        return found
    else:
        task = classification_task(model, chosen[:1], tokens=model.config.tokens, protocols=protocols)
    checked = replace(task, known=known)
    cuts = _cuts(task, checked, task.shape.nodes("block"), "logits", range(len(ids)), progress)
    found += [replace(entry, step=None) for entry in cuts]
    return sorted(found, key=lambda entry: (-entry.outside, -entry.excess))


def _cuts(
    task: Task, checked: Task, nodes: list[Node], output: str, seeds: range, progress: Progress | None
) -> list[LayerRange]:
    """Return how much of their room cuts take: rings are planned for a task, and met by the owner's runs of another."""
    runs, found = drawn(checked, seeds, progress, "checking cuts"), []
    if task.shape.protocols.small_bits is None:
        plan = compile_plan(nodes, task.specs, keep=[output], walking=walking_of(task, nodes, progress))
        taken = room_taken(task, plan, runs)
    else:
        taken = room_of_steps(task, nodes, runs)
    met = pd.DataFrame(taken, columns=["layer", "step", "share"])
    for layer, rows in met.groupby("layer", sort=False):
        outside = ~(rows["share"] <= 1)  # NaN is outside
        step = int(rows["step"][outside].mode()[0]) if outside.any() else None
        ends, excess = (rows["share"].min(), rows["share"].max()), max(0.0, rows["share"].max() - 1)
        found.append(
            LayerRange(layer, "cut", *map(float, ends), (0.0, 1.0), float(outside.mean()), step, float(excess))
        )
    return found


def calibration_of(pipeline: Pipeline) -> dict[str, Any]:
    """Return the guidance scale and the number of timesteps of a pipeline's stored fits.

    The scale is None where the fits do not have it, because they were made for one call of the U-Net. Raises CipherDMError if
    the model is not calibrated, or has other weights.
    """
    stored = load_calibration(pipeline.unet)
    scale = stored.get(GUIDANCE_SCALE)
    return {"guidance_scale": None if scale is None else float(scale[0]), "timesteps": len(stored["timesteps"])}
