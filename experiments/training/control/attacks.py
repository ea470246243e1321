"""Attacks that learn or search, for a server that has h and the timestep alone; `cipherdm.split.attacks` computes instead."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cipherdm.split import Client, Examples, encoded


class InverseNetwork(nn.Module):
    """Guesses latents of picture and hint from h and the timestep alone; small, trained on public data."""

    def __init__(self, channels: int, schedule: int, width: int = 64) -> None:
        super().__init__()
        self._schedule = schedule
        self.first = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.last = nn.Conv2d(width, 2 * channels, 3, padding=1)

    def forward(self, h: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return latents of the pictures and, after them, of the hints, float32 [B, 2 C, h, w]."""
        when = (timesteps / self._schedule).float()[:, None, None, None].expand(-1, 1, *h.shape[2:])
        values = self.first(torch.cat([h.float(), when], dim=1))
        for layer in self.middle:
            values = values + layer(functional.silu(values))
        return self.last(functional.silu(values))


def train_inverse(
    client: Client, public: Examples, *, steps: int = 300, batch: int = 64, learning_rate: float = 2e-3, seed: int = 0
) -> InverseNetwork:
    """Return a network that inverts what `client` makes of public pictures.

    An adaptive attacker takes a client with the defences that the attacked ones have, and one that is not takes a client
    without: `Defences(activation=False, timesteps_from=0)`.
    """
    generator, pipeline = np.random.default_rng(seed), client.pipeline
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = InverseNetwork(pipeline.unet.config.in_channels, len(pipeline.scheduler.alphas_cumprod))
    adam = torch.optim.Adam(network.parameters())
    for step in range(steps):
        pictures, hints, captions = public.batch(batch, generator)
        features = client.features(pictures, hints, captions, generator)
        wanted = torch.cat([encoded(pipeline.vae, pictures), encoded(pipeline.vae, 2 * hints - 1)], dim=1)
        adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        adam.zero_grad()
        functional.mse_loss(network(features.h, features.timesteps), wanted).backward()
        adam.step()
    return network.requires_grad_(False).eval()


def unsplit(
    target: torch.Tensor,
    part: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    *,
    weights: list[nn.Parameter] | tuple[()] = (),
    rounds: int = 20,
    steps: int = 20,
    learning_rate: float = 0.05,
    smoothness: float = 1e-3,
) -> torch.Tensor:
    """Return inputs in [0, 1], the shape of `start`, that a client's part turns into what it has sent, as far as can be found.

    In turn the inputs are optimised, and the weights of the part that the server does not know. Source: Erdogan et al.,
    "UnSplit" (WPES 2022).

    Args:
        target: the client's output.
        part: the client's part of the network.
        start: first guess of the inputs, [B, channels, H, W].
        weights: parameters of the part that are guessed too; none where the server knows them all.
        rounds, steps: number of turns, and of Adam's steps in each.
        learning_rate: of the inputs; the weights' is a fiftieth.
        smoothness: weight of the total variation of the inputs, which favours smooth ones.
    """
    guess = start.detach().clone().requires_grad_()
    turns = [torch.optim.Adam([guess], learning_rate)]
    turns += [torch.optim.Adam(weights, learning_rate / 50)] if weights else []
    for _ in range(rounds):
        for adam in turns:
            for _ in range(steps):
                adam.zero_grad()
                variation = guess.diff(dim=2).abs().mean() + guess.diff(dim=3).abs().mean()
                (functional.mse_loss(part(guess), target) + smoothness * variation).backward()
                adam.step()
                guess.data.clamp_(0, 1)
    return guess.detach()
