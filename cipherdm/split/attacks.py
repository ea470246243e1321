"""What the server of a split training can read from the messages that it gets, without deviating from the protocol.

All attacks give latents, of which `decoded` makes pictures, but for `unsplit`, which gives hints. The server knows the
pipeline's weights: they are its own, or public.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.nn import functional

from ..errors import CipherDMError
from .activation import phi_inverse
from .client import Client
from .controlnet import encoded
from .data import Examples
from .features import Features


def algebraic(
    features: Features, pipeline: StableDiffusionPipeline, *, activation: bool = True, lean: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents of the pictures and of the hints, float64 [B, C, h, w] each, at unit size: exact but for rounding.

    The U-Net's first convolution is a linear map to more numbers than it takes, so least squares undo it; the message has the
    noise and its timestep, so what remains of the noisy latents is the picture; and `phi` has an inverse. The squares are of
    a dense matrix: from latents of 64 x 64 on, lean messages alone are practical here.

    Args:
        features: published or lean messages.
        pipeline: pipeline that the training is for.
        activation: whether clients apply `phi`.
        lean: whether the messages are lean.

    Raises:
        CipherDMError: the message has no noise, which the first step cannot do without.
    """
    if features.noise is None:
        raise CipherDMError(
            "this message has no noise, so the picture cannot be computed from it: `averaging` finds the hint without."
        )
    noise, shape = features.noise.double(), features.noise.shape[1:]
    noisy = features.noisy.double() if lean else undone(pipeline.unet.conv_in, features.noisy, shape)
    kept = pipeline.scheduler.alphas_cumprod.double()[features.timesteps][:, None, None, None]
    pictures = (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()
    return pictures, _summed(features.h, activation) - noisy


@torch.no_grad()
def undone(convolution: nn.Conv2d, outputs: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the inputs, float64 [B, *shape], that a convolution made outputs [B, ...] of, by least squares."""
    exact, size = _double(convolution), math.prod(shape)
    offset = exact(torch.zeros(1, *shape).double())
    columns = exact(torch.eye(size).double().reshape(size, *shape)) - offset
    found = torch.linalg.lstsq(columns.flatten(1).T, (outputs.double() - offset).flatten(1).T)
    return found.solution.T.reshape(-1, *shape)


def averaging(h: torch.Tensor, *, activation: bool = True) -> torch.Tensor:
    """Return the hint's latents, float64 [C, h, w], from h [V, C, h, w] of V visits to one picture: no noise is needed.

    The noise of the visits is independent, so it falls with the square root of V. What remains is the picture, times the
    mean of sqrt(alphas_cumprod) at the timesteps: the later these are, the less.
    """
    return _summed(h, activation).mean(0)


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


def _summed(h: torch.Tensor, activation: bool) -> torch.Tensor:
    return phi_inverse(h) if activation else h.double()


def _double(convolution: nn.Conv2d) -> Callable[[torch.Tensor], torch.Tensor]:
    weight, bias = convolution.weight.double(), convolution.bias.double()
    return lambda values: functional.conv2d(values, weight, bias, convolution.stride, convolution.padding)
