"""A small LeNet that reads MNIST digits, to judge generated images with."""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from cipherdm.datasets import Digits, load_mnist
from cipherdm.errors import CipherDMError
from cipherdm.files import data, replacing
from cipherdm.records import write_record

from .run import one_thread

FOLDER = data() / "models" / "lenet"
_WEIGHTS = "lenet.safetensors"
_BATCH, _SEED, _LEARNING_RATE = 128, 0, 2e-3


class LeNet(nn.Module):
    """LeNet-5 with ReLU and batch normalisation, 59,000 parameters: images [N, 1, 28, 28] in [-1, 1] to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 5), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(24 * 5 * 5, 84), nn.BatchNorm1d(84),
        )  # fmt: skip
        self.head = nn.Linear(84, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last layer but one, [N, 84], before its ReLU: nearer to a Gaussian, as LeNet-FID assumes, than after."""
        return self.body(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.features(images)))


def save_classifier(model: LeNet, folder: Path) -> None:
    """Write the weights to a folder."""
    with replacing(folder / _WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)


def load_classifier(folder: Path = FOLDER) -> LeNet:
    """Read a trained LeNet from `folder`. Raises `CipherDMError` if it cannot be."""
    path = folder / _WEIGHTS
    model = LeNet()
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CipherDMError(
            f"Cannot read the classifier's weights from {path} ({error}). Restore them with 'git checkout -- "
            "data/models/lenet', or train them again with cipherdm_experiments.training.classifier.train_classifier()."
        ) from error
    return model.eval()


@torch.no_grad()
def classify(model: LeNet, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted digits, int64 [N], and features, float64 [N, 84], of float32 images [N, 1, 28, 28] in [-1, 1]."""
    digits, features = [], []
    for start in range(0, len(images), 1000):
        part = model.features(torch.from_numpy(np.ascontiguousarray(images[start : start + 1000], np.float32)))
        features.append(part.numpy().astype(np.float64))
        digits.append(model.head(torch.relu(part)).argmax(1).numpy())
    return np.concatenate(digits), np.concatenate(features)


def train_classifier(out: Path = FOLDER, *, epochs: int = 5, progress: bool = True) -> float:
    """Train a LeNet on MNIST, write it to the folder `out`, and return its test accuracy."""
    test = load_mnist("test")
    with one_thread():
        model = fit(load_mnist("train"), epochs=epochs, progress=progress)
        predicted, _ = classify(model, test.images)
    accuracy = float((predicted == test.labels).mean())
    save_classifier(model, out)
    settings = {"epochs": epochs, "batch": _BATCH, "seed": _SEED, "learning_rate": _LEARNING_RATE}
    write_record(out / "training.json", {"test_accuracy": accuracy, **settings})
    return accuracy


def fit(data: Digits, *, epochs: int, seed: int = _SEED, progress: bool = True) -> LeNet:
    """Teach a new LeNet images moved by up to two pixels each way, so that a digit that sits a little off is still read."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LeNet()
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    total = epochs * (len(data) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
    padded = np.pad(data.images, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-1)
    model.train()
    with tqdm(total=total, desc="lenet", unit="step", disable=not progress, mininterval=1.0) as bar:
        for _ in range(epochs):
            order = generator.permutation(len(data))
            for start in range(0, len(data) - _BATCH + 1, _BATCH):
                rows = order[start : start + _BATCH]
                down, right = generator.integers(0, 5, 2)  # one shift for the batch: a slice instead of a gather
                images = torch.from_numpy(padded[rows, :, down : down + 28, right : right + 28])
                loss = nn.functional.cross_entropy(model(images), torch.from_numpy(data.labels[rows]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return model.eval()
