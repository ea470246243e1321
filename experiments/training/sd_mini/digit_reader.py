"""The LeNet that reads the digits of pictures: MNIST's, taught further on digits that were scaled down and back."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from cipherdm.files import replacing

from ..classifier import WEIGHTS, LeNet, load_classifier
from .autoencoder import normal
from .pictures import SCALES, Source, placed
from .reader import as_mnist, middle_of
from .recipe import Objective, ReaderConfig


def build_reader() -> LeNet:
    """The LeNet of `data/models/lenet`, to be taught further."""
    return load_classifier()


def reader_objective(config: ReaderConfig, source: Source) -> Objective:
    """Cross-entropy of the digit, from ink that was placed in a picture, made noisy, and brought back to MNIST's form.

    The noise has a deviation of up to `config.noise`, and some of it is smooth, so that what a decoder leaves of a stroke is
    read too.
    """
    digits = np.zeros(len(source.ink), np.int64)
    for digit, rows in enumerate(source.rows):
        digits[rows] = digit
    sizes = np.array(list(SCALES.values()))

    def objective(model: nn.Module, generator: np.random.Generator) -> torch.Tensor:
        rows = generator.integers(len(digits), size=config.optimisation.batch)
        scales = torch.from_numpy(generator.choice(sizes, len(rows))).float()
        varied = scales * torch.from_numpy(generator.uniform(0.95, 1.05, len(rows))).float()
        ink = placed(source.ink[rows], varied, torch.from_numpy(generator.uniform(-3, 3, (len(rows), 2))).float())[:, 0]
        ink = _disturbed(ink, config.noise, generator)
        return functional.cross_entropy(model(as_mnist(ink, middle_of(ink), scales)), torch.from_numpy(digits[rows]))

    return objective


def save_reader(model: LeNet, folder: Path) -> None:
    """Write the weights as `load_classifier` reads them."""
    with replacing(folder / WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)


def _disturbed(ink: torch.Tensor, most: float, generator: np.random.Generator) -> torch.Tensor:
    """Ink [N, 32, 32] plus noise, half of which is of single pixels and half of 4 x 4, clipped to [0, 1]."""
    count, height, width = ink.shape
    coarse = functional.interpolate(normal(generator, (count, 1, height // 4, width // 4)), scale_factor=4)[:, 0]
    deviation = torch.from_numpy(generator.uniform(0, most, (count, 1, 1))).float()
    return (ink + deviation * (normal(generator, ink.shape) + coarse) / 2**0.5).clamp(0, 1)
