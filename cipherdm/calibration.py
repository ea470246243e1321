"""Calibration and the check of ranges: steps of a folder's owner, in plaintext, before FAST can sample from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .engine import Graph
from .errors import CipherDMError
from .models import UNet, UNetConditionConfig
from .owner.calibrate import calibrate as fit_layers
from .owner.observe import load_calibration, save_calibration
from .owner.ranges import LayerRange
from .owner.ranges import check_ranges as check_functions
from .owner.ring_ranges import check_small_ring
from .owner.rings import LayerProduct
from .progress import Progress
from .protocols import FAST, Protocols, fast
from .protocols.fixed import Fixed
from .sampling.pipeline import Pipeline, embed_prompts
from .sampling.sample import make_task, plaintext_steps
from .sampling.steps import WEIGHTS, BlockFunction, step_graph
from .schedules import guided_coefficients, make_schedule

GUIDANCE_SCALE = "guidance_scale"  # name among the fits' arrays; the scale that they were made with
CAPTIONS = "captions.txt"  # file in a model's folder with captions to calibrate with, one per line


def calibrate(
    model: UNet | Pipeline,
    captions: Sequence[str] | None = None,
    *,
    timesteps: int | None = None,
    images: int | None = None,
    guidance_scale: float = 7.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Sample with the exact model by DDIM, fit every layer for FAST, and store the fits in the model's folder.

    A pipeline draws one image per caption. Guidance leads away from the empty prompt, and what both branches carry is
    fitted. Other prompts and another guidance scale lead to other values, so captions should be like the expected prompts.

    Args:
        model: model from a folder, by `load_unet` or `load_pipeline`.
        captions: prompts that the owner knows, for a pipeline; the lines of `captions.txt` in its folder by default. They
            are not stored.
        timesteps: number of timesteps, evenly spaced; schedules take the nearest. 100 by default, 50 for a pipeline.
        images: number of images of each class, 24 by default. For a pipeline, number of captions to take, spread over all
            of them, 64 by default.
        guidance_scale: guidance scale of the sampling to come, from 1 on; for a pipeline.
        seed: seed of the noise, which is public.
        progress: called as progress(done, timesteps, "calibrate") after each step.

    Returns:
        The path of the stored fits.

    Raises:
        CipherDMError: the model is not from a folder or FAST does not compute it, there are no captions or there should be
            none, or guidance_scale is below 1.
    """
    unet = model.unet if isinstance(model, Pipeline) else model
    if unet.folder is None:
        raise CipherDMError("fits are stored beside the weights: save this model to a folder, and load it from there.")
    fits = fit_model(
        model,
        captions,
        timesteps=timesteps,
        images=images,
        guidance_scale=guidance_scale,
        seed=seed,
        progress=progress,
    )
    return save_calibration(fits, unet)


def fit_model(
    model: UNet | Pipeline,
    captions: Sequence[str] | None = None,
    *,
    timesteps: int | None = None,
    images: int | None = None,
    guidance_scale: float = 7.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Return the arrays that `calibrate` stores, for the same arguments."""
    if not isinstance(model, Pipeline):
        if isinstance(model.config, UNetConditionConfig):
            raise CipherDMError(f"{model.folder} takes prompts: load the whole pipeline with load_pipeline.")
        if captions is not None:
            raise CipherDMError(f"{model.folder} is no Stable Diffusion folder, and takes no captions.")
        if model.scheduler_config is None:
            raise CipherDMError("this model has no scheduler: put its scheduler_config.json beside its config.json.")
        schedule = make_schedule(model.scheduler_config, "ddim", timesteps or 100)
        return fit_layers(model, schedule, images_per_class=images or 24, seed=seed, progress=progress)
    if not guidance_scale >= 1:
        raise CipherDMError(f"guidance_scale must be at least 1, which means no guidance; got {guidance_scale}.")
    guided = guidance_scale > 1
    texts = _spread(_captions_of(model) if captions is None else captions, images or 64)
    embeddings = embed_prompts(model, texts, guided=guided)
    schedule = make_schedule(model.unet.scheduler_config, "ddim", timesteps or 50)
    if guided:
        schedule = replace(schedule, coefficients=guided_coefficients(schedule.coefficients, guidance_scale))
    fits = fit_layers(model.unet, schedule, embeddings=embeddings, guided=guided, seed=seed, progress=progress)
    return fits | {GUIDANCE_SCALE: np.float32([guidance_scale])}


def check_ranges(
    model: UNet,
    protocols: Protocols = FAST,
    *,
    steps: int = 20,
    per_class: int = 4,
    seed: int = 1,
    progress: Progress | None = None,
) -> list[LayerRange]:
    """Check in plaintext whether a model's layers stay in the ranges outside which a protocol set is wrong.

    For FAST_MIXED, products are also compared with the ring of 32 bits.

    Args:
        model: a model with labels, or without conditions.
        protocols: the protocol set.
        steps: number of denoising steps.
        per_class: number of images of each class.
        seed: seed of the noise, which is public.
        progress: called as progress(done, steps, "check") after each step.

    Returns:
        One entry for every layer and restricted function, those with the largest fraction outside first. There are none
        if the set has no restricted function.

    Raises:
        CipherDMError: the model takes prompts, a number is out of its range, or the model lacks a calibration.
    """
    if isinstance(model, Pipeline):
        raise CipherDMError(
            f"{model.unet.folder} takes prompts, and ranges are checked for models with labels only. Compare images instead: "
            "text_to_image(pipeline, None, ...) with FAST and with DIRECT."
        )
    settings = {"steps": steps, "per_class": per_class, "seed": seed, "progress": progress}
    found = check_small_ring(model, **settings) if protocols.prepare == "fast-mixed" else []
    found += check_functions(model, protocols, **settings)
    return sorted(found, key=lambda entry: -entry.outside)


def calibration_of(pipeline: Pipeline) -> dict[str, Any]:
    """Return the guidance scale and the number of timesteps of a pipeline's stored fits.

    The scale is None where the fits do not have it, because they were made for one call of the U-Net.

    Raises:
        CipherDMError: the model is not calibrated, or has other weights.
    """
    stored = load_calibration(pipeline.unet)
    scale = stored.get(GUIDANCE_SCALE)
    return {"guidance_scale": None if scale is None else float(scale[0]), "timesteps": len(stored["timesteps"])}


def read_captions(path: str | Path) -> list[str]:
    """Read the lines of a text file that are not empty. Raises CipherDMError if it cannot be read or has none."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CipherDMError(f"{path} cannot be read as a list of captions, one per line ({error}).") from error
    captions = [line for line in lines if line]
    if not captions:
        raise CipherDMError(f"{path} has no captions; write one per line.")
    return captions


def _captions_of(pipeline: Pipeline) -> list[str]:
    path = pipeline.unet.folder / CAPTIONS
    if not path.is_file():
        raise CipherDMError(
            f"{path.parent} has no {CAPTIONS}: give captions like the prompts to come, or a file with one per line."
        )
    return read_captions(path)


def _spread(captions: Sequence[str], count: int) -> list[str]:
    """Choose at most `count` captions, evenly spread."""
    if count >= len(captions):
        return list(captions)
    return [captions[index] for index in np.linspace(0, len(captions) - 1, count).round().astype(int)]


def measure_products(
    unet: UNet,
    *,
    steps: int = 10,
    per_class: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, LayerProduct]:
    """Return the largest product of every convolution and linear layer, by diffusers' names, for FAST_MIXED.

    The model samples on public noise by DDIM, in FAST's emulation, because the products depend on the weights that the owner
    prepares for it: factors of one layer are folded into another. Products are taken without biases, over all images, steps
    and elements.

    Args:
        unet: a calibrated model without prompts.
        steps: number of denoising steps.
        per_class: number of images of each class.
        seed: seed of the initial noise.
        progress: called as progress(done, steps, "products") after each step.

    Raises:
        CipherDMError: an argument is out of its range, the model is not calibrated, or a number overflows the ring of 64
            bits, in which FAST computes.
    """
    if per_class < 1:
        raise CipherDMError(f"there must be at least 1 image of each class; got {per_class}.")
    classes = unet.config.num_class_embeds
    images = {"count": per_class} if classes is None else {"labels": [*range(classes)] * per_class}
    task = make_task(unet, steps=steps, protocols=FAST, seed=seed, ring=False, **images)
    step = _RecordedStep(step_graph(task.shape), task.shape.batch)
    largest: dict[str, float] = {}
    for index, outputs in enumerate(plaintext_steps(task, step)):
        for name, size in outputs["products"].items():
            largest[name] = max(largest.get(name, 0.0), float(_finite(name, size)))
        if progress is not None:
            progress(index + 1, steps, "products")
    return {name: replace(layer, largest=largest[name]) for name, layer in step.layers.items()}


def _finite(name: str, size: jnp.ndarray) -> np.ndarray:
    if not np.isfinite(size):
        raise CipherDMError(
            f"The product of {name} is no number: something before it overflows the ring. `cipherdm check-ranges` tells which "
            "layers leave their ranges; calibrate the model again, with more images, or take more steps."
        )
    return np.asarray(size)


@dataclass(frozen=True, eq=False)
class _RecordedStep:
    """A step that also returns "products": the largest size of each layer's product, by name.

    `layers` is filled when the step is traced.
    """

    step: Graph
    batch: int
    layers: dict[str, LayerProduct] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.step.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.step.outputs, "products")

    def __call__(self, *arrays) -> tuple:
        values, found = dict(zip(self.inputs, arrays, strict=True)), {}
        for node in self.step.nodes:
            function, inputs = node.function, [values[name] for name in node.inputs]
            if isinstance(function, BlockFunction):
                names = {id(array): name for array, name in zip(inputs, node.inputs, strict=True)}
                note = _note_to(self.layers, found, names, self.batch)
                function = replace(function, protocols=_recording(function.protocols, note))
            results = function(*inputs)
            values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        return (*(values[name] for name in self.step.outputs), found)


def _note_to(layers: dict[str, LayerProduct], found: dict[str, jnp.ndarray], names: dict[int, str], batch: int):
    """Return a function that notes the product of x and a weight, which must be an input of the node itself."""

    def note(weight: Fixed, x: Fixed, product: Fixed) -> None:
        name = names[id(weight.array)].removeprefix(WEIGHTS).removesuffix(".weight")
        found[name] = jnp.max(jnp.abs(product.array))
        inputs, outputs = (array.size // batch for array in (x.array, product.array))
        adds = outputs * weight.array[0].size
        layers[name] = LayerProduct(0.0, fast.room_for(x, weight).bits, inputs, outputs, adds)

    return note


def _recording(protocols: Protocols, note: Callable[[Fixed, Fixed, Fixed], None]) -> Protocols:
    """Return a protocol set that also notes the product of each linear layer."""

    def conv2d(params, x, **geometry):
        note(params["weight"], x, fast.conv2d({"weight": params["weight"]}, x, **geometry))
        return fast.conv2d(params, x, **geometry)

    def linear(params, x):
        note(params["weight"], x, fast.linear({"weight": params["weight"]}, x))
        return fast.linear(params, x)

    def projections(layers, x, *, protocols):
        for layer in layers:
            linear(layer, x)
        return fast.projections(layers, x, protocols=FAST)

    return replace(protocols, conv2d=conv2d, linear=linear, projections=projections)
