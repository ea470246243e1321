"""The three defences of Split-learning ControlNet (arXiv 2409.08503) as switches, and what its policy of timesteps is worth."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from dp_accounting import get_epsilon_gaussian

from ..errors import check_whole

_PUBLISHED = 0.672  # the constant of the paper's rule, which fits sqrt(2 ln(1.25 / delta)) with delta = 1


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


def gaussian_epsilon(distance: float, deviation: float, delta: float = 1e-5) -> float:
    """Return the least epsilon for which one release of a vector with normal noise is (epsilon, delta)-differentially private.

    A client that sent noisy latents and not the noise would release sqrt(abar) z with a deviation of sqrt(1 - abar).

    Args:
        distance: largest distance between two vectors that could be released (L2).
        deviation: standard deviation of the noise in each number.
        delta: probability allowed to the exception.
    """
    return get_epsilon_gaussian(deviation / distance, delta)
