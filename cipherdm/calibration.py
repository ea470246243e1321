"""Calibration of a Stable Diffusion folder for FAST: by the model's owner, in plaintext, on captions and noise of its own."""

# FROM cipherdm.sampling.products:
# How large the products of a model's linear layers are: measured by its owner, in plaintext, on public noise.

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .engine import Graph
from .errors import CipherDMError
from .models import UNet
from .owner.calibrate import calibrate
from .owner.observe import load_calibration, save_calibration
from .owner.rings import LayerProduct
from .progress import Progress
from .protocols import FAST, Protocols, fast
from .protocols.fixed import Fixed
from .sampling.pipeline import Pipeline, embed_prompts
from .sampling.sample import make_task, plaintext_steps
from .sampling.steps import WEIGHTS, BlockFunction, step_graph
from .schedules import guided_coefficients, make_schedule

GUIDANCE_SCALE = "guidance_scale"  # of the fits' arrays: the one that they were made with

CAPTIONS = "captions.txt"  # in a model's folder: captions to calibrate with, one a line


def calibrate_pipeline(
    pipeline: Pipeline,
    captions: Sequence[str],
    *,
    timesteps: int = 50,
    guidance_scale: float = 7.5,
    seed: int = 0,
    progress: Progress | None = None,
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
        progress: called as progress(done, timesteps, "calibrate") after each step.

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
    fits = calibrate(pipeline.unet, schedule, embeddings=embeddings, guided=guided, seed=seed, progress=progress)
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


def measure_products(
    unet: UNet,
    *,
    steps: int = 10,
    per_class: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, LayerProduct]:
    """Sample with FAST's emulation by DDIM; the largest product of every convolution and linear layer, by diffusers' names.

    It has to be FAST's, since products are of the weights that the owner prepares for it: factors of one layer are folded into
    another. Products are taken without biases, over all pictures, steps and elements.

    Args:
        steps: denoising steps.
        per_class: pictures of each class.
        seed: of the initial noise, which is public.
        progress: called as progress(done, steps, "products") after each step.

    Raises:
        CipherDMError: as `make_task`; the model is not calibrated; there is to be no picture; or a number overflows the ring
            of 64 bits, which FAST computes in.
    """
    if per_class < 1:
        raise CipherDMError(f"there must be at least 1 picture of each class; got {per_class}.")
    classes = unet.config.num_class_embeds
    pictures = {"count": per_class} if classes is None else {"labels": [*range(classes)] * per_class}
    task = make_task(unet, steps=steps, protocols=FAST, seed=seed, ring=False, **pictures)
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
            "layers leave their ranges; calibrate the model again, with more pictures, or take more steps."
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
    """A function that notes the product of a weight, a node's very input, and x."""

    def note(weight: Fixed, x: Fixed, product: Fixed) -> None:
        name = names[id(weight.array)].removeprefix(WEIGHTS).removesuffix(".weight")
        found[name] = jnp.max(jnp.abs(product.array))
        inputs, outputs = (array.size // batch for array in (x.array, product.array))
        adds = outputs * weight.array[0].size
        layers[name] = LayerProduct(0.0, fast.room_for(x, weight).bits, inputs, outputs, adds)

    return note


def _recording(protocols: Protocols, note: Callable[[Fixed, Fixed, Fixed], None]) -> Protocols:
    """The same functions, with each linear layer's product noted."""

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
