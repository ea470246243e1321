"""What the server of a split training can read from the messages that it gets, without deviating from the protocol.

Both attacks give latents, of which `decoded` makes pictures. They use what the server knows: the pipeline's weights.
"""

import copy
import math

import torch
from torch import nn

from ..errors import CipherDMError
from .client import Client
from .defences import phi_inverse
from .features import Features


def algebraic(features: Features, client: Client) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents of the pictures and of the hints, float64 [B, C, h, w] each, at unit size: exact but for rounding.

    The U-Net's first convolution is a linear map to more numbers than it takes, so least squares undo it; the message has the
    noise and its timestep, so what remains of the noisy latents is the picture; and `phi` has an inverse. The squares are of
    a dense matrix: from latents of 64 x 64 on, lean messages alone are practical here.

    Args:
        features: published or lean messages.
        client: one with the pipeline, the structure and the defences of those who sent them, all of which the server knows.

    Raises:
        CipherDMError: the message has no noise, which the first step cannot do without.
    """
    if features.noise is None:
        raise CipherDMError(
            "this message has no noise, so the picture cannot be computed from it: `averaging` finds the hint without."
        )
    pipeline, noise, noisy = client.pipeline, features.noise.double(), features.noisy.double()
    if client.structure != "lean":
        noisy = undone(pipeline.unet.conv_in, noisy, noise.shape[1:])
    kept = pipeline.scheduler.alphas_cumprod.double()[features.timesteps][:, None, None, None]
    pictures = (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()
    return pictures, _summed(features.h, client.defences.activation) - noisy


@torch.no_grad()
def undone(convolution: nn.Conv2d, outputs: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the inputs, float64 [B, *shape], that a convolution made outputs [B, ...] of, by least squares."""
    exact, size = copy.deepcopy(convolution).double(), math.prod(shape)
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


def _summed(h: torch.Tensor, activation: bool) -> torch.Tensor:
    return phi_inverse(h) if activation else h.double()
