"""The three defences of Split-learning ControlNet (arXiv 2409.08503), and what they are worth."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import check_whole

_PUBLISHED = 0.672  # the constant of the paper's rule, which fits sqrt(2 ln(1.25 / delta)) with delta = 1
_STEPS = 60  # of Newton's method; far fewer do except for values next to 0


def phi(values: torch.Tensor) -> torch.Tensor:
    """Return |v| tanh(v / 2) of each value, same shape and dtype; the published code writes |v| (2 sigmoid(v) - 1).

    It is odd and increases everywhere, so it hides nothing: whoever has its value has its argument.
    """
    return values.abs() * torch.tanh(values / 2)


def phi_inverse(values: torch.Tensor) -> torch.Tensor:
    """Return v with phi(v) = y for each value y, float64 of the same shape; exact to about 1e-12 times the largest value."""
    size = values.double().abs()
    # Never below the root: v tanh(v / 2) is at least v^2 / 4 up to 2, and v - phi(v) never exceeds 0.56.
    root = torch.minimum(2 * size.sqrt(), size + 0.56)
    root = torch.where(size > 1, size + 0.56, root)
    for _ in range(_STEPS):
        slope = torch.tanh(root / 2)
        slope = slope + root / 2 * (1 - slope.square())
        root = (root - (phi(root) - size) / slope.clamp_min(1e-150)).clamp_min(0)
    return torch.copysign(root, values.double())


@dataclass(frozen=True)
class Defences:
    """What a client does to its messages before they leave.

    None of them keeps a picture or a hint from the server: `attacks.algebraic` reads both.

    Attributes:
        activation: whether features go through `phi`.
        timesteps_from: first timestep t_s; a picture is noised to one of t_s to the schedule's last, each as likely.
        hide_prompts: whether prompts stay at the client. The server's U-Net then trains with the empty prompt.
    """

    activation: bool = True
    timesteps_from: int = 0
    hide_prompts: bool = True

    def timesteps(self, generator: np.random.Generator, count: int, schedule: int) -> torch.Tensor:
        """Draw timesteps, int64 [count], of a schedule with so many. Raises CipherDMError if t_s is not among them."""
        check_whole("timesteps_from", self.timesteps_from, 0, schedule - 1)
        return torch.from_numpy(generator.integers(self.timesteps_from, schedule, count))


def published_level(betas: np.ndarray, timesteps_from: int) -> float:
    """Return the epsilon that the paper's rule gives a policy, 0.672 sqrt(1 / beta - 1); no privacy comes with it.

    The rule is reconstructed from the published code. Its constant is that of the classical Gaussian mechanism for delta = 1,
    where every mechanism is private.
    """
    return _PUBLISHED * math.sqrt(1 / betas[timesteps_from] - 1)
