"""Quality of generated digits: do they show what was asked for, and are they distributed like MNIST's?"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from scipy.linalg import eigh

from cipherdm.datasets import load_mnist
from cipherdm.errors import CipherDMError
from cipherdm.likeness import without_overflows

from .classifier import classify, load_classifier
from .recipes import scheduler

Sampler = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Scores:
    """Scores of generated images.

    LeNet-FID is not the FID on Inception's features: compare it only with LeNet-FIDs of the same classifier and count.
    """

    accuracy: float  # fraction of images that LeNet reads as the digit that was asked for
    f1: float  # mean over the digits of the F1 score of the same predictions
    lenet_fid: float  # Frechet distance to MNIST's test images of these digits in LeNet's features
    count: int
    overflowed: int = 0  # images with values that are not finite, as where the ring overflows: judged as plain grey


def evaluate(
    sampler: Sampler,
    digits: Sequence[int],
    *,
    count: int = 2000,
    batch: int = 250,
    seed: int = 0,
    on_batch: Callable[[int, int], None] = lambda done, count: None,
) -> Scores:
    """Draw `count` images, their labels in turn, and score them as `score_images` does.

    `sampler(labels, seed)` gives images [B, 1, 28, 28] for class ids [B]; batch k is drawn with seed + k.
    """
    labels = np.arange(count) % len(digits)
    parts = []
    for number, start in enumerate(range(0, count, batch)):
        parts.append(np.asarray(sampler(labels[start : start + batch], seed + number)))
        on_batch(min(start + batch, count), count)
    return score_images(np.concatenate(parts), labels, digits)


def score_images(images: np.ndarray, labels: np.ndarray, digits: Sequence[int]) -> Scores:
    """Score images [N, 1, 28, 28] for class ids [N], positions in `digits`. Raises CipherDMError for what does not fit."""
    images, labels, digits = np.asarray(images), np.asarray(labels), np.asarray(digits)
    if images.shape != (len(labels), 1, 28, 28) or len(images) < 2:
        raise CipherDMError(
            f"Images of shape {images.shape} for {len(labels)} labels cannot be scored. Give two or more images, of "
            f"shape [{len(labels)}, 1, 28, 28]."
        )
    if labels.min() < 0 or labels.max() >= len(digits):
        raise CipherDMError(
            f"Labels from {labels.min()} to {labels.max()} do not fit {len(digits)} digits. Labels are class ids, "
            f"positions in digits={digits.tolist()}: use 0 to {len(digits) - 1}."
        )
    images, overflowed = without_overflows(images)
    classifier = load_classifier()
    predicted, features = classify(classifier, np.clip(images, -1, 1))
    _, real = classify(classifier, load_mnist("test", digits=digits.tolist()).images)
    asked = digits[labels]
    pairs = [(predicted == digit, asked == digit) for digit in digits]
    return Scores(
        accuracy=float((predicted == asked).mean()),
        f1=float(np.mean([2 * (one & two).sum() / max(1, one.sum() + two.sum()) for one, two in pairs])),
        lenet_fid=frechet_distance(features, real),
        count=len(images),
        overflowed=int(overflowed.sum()),
    )


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features [N, D] and [M, D], float64.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). Source: Heusel et al. 2017, arXiv 1706.08500.
    """
    difference = first.mean(0) - second.mean(0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # tr (C1 C2)^(1/2) = tr (R C2 R)^(1/2) with R = C1^(1/2). C1 and R C2 R are symmetric and not negative: eigenvalues
    # give their roots, where scipy's sqrtm of C1 C2 becomes complex or fails if a covariance is singular.
    values, vectors = eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    overlap = np.sqrt(np.clip(eigh(root @ two @ root, eigvals_only=True), 0, None)).sum()
    return float(max(0.0, difference @ difference + np.trace(one) + np.trace(two) - 2 * overlap))


def model_digits(folder: str | Path) -> tuple[int, ...]:
    """Return a model's digits by class id from its training record. Raises `CipherDMError` if the folder has none."""
    path = Path(folder) / "training.json"
    try:
        return tuple(json.loads(path.read_text())["config"]["digits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CipherDMError(
            f"Cannot tell which digits the model in {folder} draws: {path} is missing or not a training record "
            f"({error}). Name the digits of its class ids yourself, with digits=..."
        ) from error


def diffusers_sampler(unet: UNet2DModel, *, steps: int, ddim: DDIMScheduler | None = None) -> Sampler:
    """Return a sampler for `evaluate` by diffusers' own module and `DDIMScheduler`, independent of this package's."""
    ddim = DDIMScheduler.from_config(scheduler().config) if ddim is None else ddim
    ddim.set_timesteps(steps)

    @torch.no_grad()
    def sample(labels: np.ndarray, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        class_ids = torch.from_numpy(np.asarray(labels, np.int64))
        images = torch.randn((len(labels), 1, 28, 28), generator=generator)
        for timestep in ddim.timesteps:
            shown = images.to(memory_format=torch.channels_last)
            noise = unet(shown, timestep.expand(len(labels)), class_labels=class_ids).sample
            images = ddim.step(noise, timestep, images, generator=generator).prev_sample
        return images.contiguous().numpy()

    return sample
