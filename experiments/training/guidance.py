"""Classifier guidance, learnt by the model itself: a target that leans towards images that are plainly of their class.

Dhariwal and Nichol (arXiv 2105.05233, equation 14) subtract from the predicted noise sqrt(1 - alphas_cumprod) times the
gradient of log p(class | noisy image), scaled. Here that goes into the training target, so sampling costs what it cost.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing

_BATCH = 128


class Guide(nn.Module):
    """A classifier of noisy images [B, 1, H, W], which is told the noise's factor [B, 1, 1, 1] on a plane of its own."""

    def __init__(self, classes: int):
        super().__init__()
        pairs = ((2, 16), (16, 32), (32, 64))
        self.layers = nn.ModuleList(nn.Conv2d(inside, outside, 3, 2, 1) for inside, outside in pairs)
        self.head = nn.Linear(16 * 64, classes)

    def forward(self, noisy: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes]."""
        x = torch.cat([noisy, factor.expand_as(noisy)], 1)
        for convolution in self.layers:
            x = functional.silu(convolution(x))
        return self.head(functional.adaptive_avg_pool2d(x, 4).flatten(1))

    def gradient(self, noisy: torch.Tensor, factor: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the gradient of log p(label | noisy image) with respect to the image, [B, 1, H, W]."""
        noisy = noisy.detach().requires_grad_(True)
        chosen = functional.log_softmax(self(noisy, factor), 1).gather(1, labels[:, None])
        return torch.autograd.grad(chosen.sum(), noisy)[0]


def load_guide(path: Path, classes: int) -> Guide | None:
    """Read the guide at `path`; None if there is none. Raises `CipherDMError` if the file is damaged or another model's."""
    if not path.exists():
        return None
    guide = Guide(classes)
    try:
        guide.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CipherDMError(f"{path} cannot be read ({error}); move it away, and it is trained again.") from error
    return guide.requires_grad_(False)


def train_guide(
    path: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    levels: tuple[torch.Tensor, torch.Tensor],
    *,
    steps: int = 3000,
    seed: int = 0,
    progress: bool = True,
) -> Guide:
    """Train a guide on images [N, 1, H, W] with class ids [N] at all noise levels, and save it at `path`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        guide = Guide(int(labels.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(guide.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="guide", unit="step", disable=not progress, mininterval=1.0):
        rows = torch.randint(len(images), (_BATCH,), generator=generator)
        timesteps = torch.randint(len(levels[0]), (_BATCH,), generator=generator)
        noise = torch.randn((_BATCH, *images.shape[1:]), generator=generator)
        kept, factor = (level[timesteps] for level in levels)
        loss = functional.cross_entropy(guide(kept * images[rows] + factor * noise, factor), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with replacing(path) as temporary:
        save_file(guide.state_dict(), temporary)
    return guide.requires_grad_(False)
