"""Images that a pipeline draws for captions, and how much of the captions a reader finds in them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file

from cipherdm.datasets import load_mnist
from cipherdm.errors import CipherDMError
from cipherdm.files import data

from ..classifier import LeNet, load_classifier
from ..modules import use_quadratic_activation
from .captions import Caption, balanced_captions
from .pictures import Source, compose
from .reader import agreement, read

READER = "reader"  # the folder, inside a pipeline's, of the LeNet that reads its digits
_BATCH = 50


def draw(
    pipeline: StableDiffusionPipeline | StableDiffusionControlNetPipeline,
    captions: Sequence[Caption],
    *,
    steps: int,
    guidance: float = 4.0,
    seed: int = 0,
    hints: torch.Tensor | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Draw pictures [N, 3, 32, 32] in [-1, 1] by diffusers' own pipeline, batch k of 50 from the noise of seed + k.

    A pipeline with a ControlNet takes hints [N, 3, 32, 32] in [0, 1], one for each caption.
    """
    parts = []
    for number, start in enumerate(range(0, len(captions), _BATCH)):
        chosen = captions[start : start + _BATCH]
        images = pipeline(
            [caption.text for caption in chosen],
            **({} if hints is None else {"image": hints[start : start + _BATCH]}),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed + number),
            output_type="pt",
        ).images
        parts.append(2 * images.float() - 1)
        on_batch(start + len(chosen))
    return torch.cat(parts)


def read_back(
    folder: Path,
    *,
    count: int,
    steps: int,
    guidance: float = 4.0,
    seed: int = 0,
    reader: Path | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Have a folder's pipeline draw balanced captions, read the pictures, and return the record.

    The LeNet that reads digits is in the folder, or in `reader`: a model that is private to MNIST has none of its own.

    Beside "drawn" are pictures composed from MNIST's test images, "real", and those "decoded" after the autoencoder, which
    bound what the reader can find. Raises CipherDMError for another folder.
    """
    pipeline = load_pipeline(folder)
    place = folder / READER if reader is None else reader
    if not place.is_dir():
        raise CipherDMError(
            f"There is no {place}, the LeNet that reads pictures. Give a folder that 'cipherdm train sd-mini' wrote, or "
            "--reader data/models/sd-mini/reader."
        )
    lenet = load_classifier(place)
    captions = balanced_captions(count, seed)
    real = compose(Source.of(load_mnist("test")), captions, np.random.default_rng(seed))
    drawn = draw(pipeline, captions, steps=steps, guidance=guidance, seed=seed, on_batch=on_batch)
    about = {"count": count, "scheduler": "ddim", "steps": steps, "guidance": guidance, "seed": seed}
    kinds = {"drawn": drawn, "real": real, "decoded": decoded(pipeline.vae, real)}
    found = {kind: agreement(read(pictures, lenet), captions) for kind, pictures in kinds.items()}
    return {"model": folder.name, **about, **found}


def load_pipeline(folder: str | Path) -> StableDiffusionPipeline | StableDiffusionControlNetPipeline:
    """Load the pipeline in a folder, by diffusers, with DDIM. Raises CipherDMError if it cannot be loaded."""
    kind = StableDiffusionControlNetPipeline if (Path(folder) / "controlnet").is_dir() else StableDiffusionPipeline
    try:
        config = UNet2DConditionModel.load_config(folder, subfolder="unet", local_files_only=True)
        parts = {}
        if config.get("act_fn") == "quad":  # which diffusers does not know
            unet = UNet2DConditionModel.from_config(config | {"act_fn": "silu"})
            unet.load_state_dict(load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors"))
            parts = {"unet": use_quadratic_activation(unet)}
        pipeline = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **parts)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CipherDMError(
            f"{folder} does not load as a StableDiffusionPipeline ({error}). Train it with 'cipherdm train sd-mini', or "
            "restore it with 'git checkout -- data/models/sd-mini'."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reader_of(folder: Path) -> LeNet:
    """Return the LeNet that reads a pipeline's digits: its own, or sd-mini's for one whose folder may have nothing of MNIST."""
    own = folder / READER
    return load_classifier(own if own.is_dir() else data() / "models" / "sd-mini" / READER)


@torch.no_grad()
def decoded(autoencoder: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures after the autoencoder, from the mean of their latents, clipped to [-1, 1]."""
    latents = autoencoder.encode(pictures).latent_dist.mean
    return autoencoder.decode(latents).sample.clamp(-1, 1)
