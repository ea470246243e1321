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
from cipherdm.files import replacing, root
from cipherdm.records import write_record

WEIGHTS = "lenet.safetensors"

FEATURES = 84


class LeNet(nn.Module):
    """Two convolutions and two linear layers, after LeNet-5, with ReLU and batch normalisation: 59,000 parameters.

    Takes float32 images [N, 1, 28, 28] in [-1, 1], gives logits [N, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 5), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(24 * 5 * 5, FEATURES), nn.BatchNorm1d(FEATURES),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last layer but one, [N, 84], before its ReLU: nearer to a Gaussian, as LeNet-FID assumes, than after."""
        return self.body(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.features(images)))


def default_folder() -> Path:
    """`data/models/lenet` of the checkout that this package runs from."""
    return root() / "data" / "models" / "lenet"


def load_classifier(folder: str | Path | None = None) -> LeNet:
    """Read a trained LeNet from `folder`, or the one in `data/models/lenet`. Raises `CipherDMError` if it cannot be."""
    path = (default_folder() if folder is None else Path(folder)) / WEIGHTS
    model = LeNet()
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CipherDMError(
            f"Cannot read the classifier's weights from {path} ({error}). Restore them with "
            f"'git checkout -- data/models/lenet', or train them again with cipherdm.classifier.train_classifier()."
        ) from error
    return model.eval()


@torch.no_grad()
def classify(model: LeNet, images: np.ndarray, *, batch: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Predicted digits, int64 [N], and features, float64 [N, 84], of float32 images [N, 1, 28, 28] in [-1, 1]."""
    digits, features = [], []
    for start in range(0, len(images), batch):
        part = model.features(torch.from_numpy(np.ascontiguousarray(images[start : start + batch], np.float32)))
        features.append(part.numpy().astype(np.float64))
        digits.append(model.head(torch.relu(part)).argmax(1).numpy())
    return np.concatenate(digits), np.concatenate(features)


def train_classifier(
    out: str | Path | None = None,
    *,
    epochs: int = 5,
    batch: int = 128,
    seed: int = 0,
    data: str | Path | None = None,
    threads: int = 1,
    progress: bool = True,
) -> float:
    """Train a LeNet on MNIST, write it to the folder `out` (`data/models/lenet`), and return its test accuracy.

    Each image is moved by up to two pixels each way, so that a generated digit that sits a little off is still read.
    """
    out = default_folder() if out is None else Path(out)
    train, test = load_mnist("train", folder=data), load_mnist("test", folder=data)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LeNet()
        _fit(model, train, epochs, batch, seed, progress)
        predicted, _ = classify(model.eval(), test.images)
    finally:
        torch.set_num_threads(threads_before)
    accuracy = float((predicted == test.labels).mean())
    with replacing(out / WEIGHTS) as temporary:
        save_file(model.state_dict(), temporary)
    record = {"test_accuracy": accuracy, "epochs": epochs, "batch": batch, "seed": seed, "learning_rate": 2e-3}
    write_record(out / "training.json", record)
    return accuracy


def _fit(model: LeNet, data: Digits, epochs: int, batch: int, seed: int, progress: bool) -> None:
    generator = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    total = epochs * (len(data) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
    padded = np.pad(data.images, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-1)
    model.train()
    with tqdm(total=total, desc="lenet", unit="step", disable=not progress, mininterval=1.0) as bar:
        for _ in range(epochs):
            order = generator.permutation(len(data))
            for start in range(0, len(data) - batch + 1, batch):
                rows = order[start : start + batch]
                down, right = generator.integers(0, 5, 2)  # one shift for the batch: a slice instead of a gather
                images = torch.from_numpy(padded[rows, :, down : down + 28, right : right + 28])
                loss = nn.functional.cross_entropy(model(images), torch.from_numpy(data.labels[rows]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
