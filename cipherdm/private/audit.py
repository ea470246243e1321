"""Audit of a step: what somebody who sees the weights can prove about who was in the training, against the promise."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from .budget import PrivacyBudget
from .step import PrivateStep

_PARTS = (0.02, 0.05, 0.1, 0.2, 0.5)  # of the canaries that are guessed to be in, and as many to be out


class _Canaries(nn.Module):
    """A linear model in two layers, whose loss for a one-hot example has that example's own weights for its gradient."""

    def __init__(self, count: int, size: float) -> None:
        super().__init__()
        self.small, self.large = (nn.Linear(count, 1, bias=False) for _ in range(2))
        self.requires_grad_(False).small.weight.zero_()
        self.large.weight.zero_()
        self.requires_grad_(True)
        self.size = size

    def forward(self, examples: Tensor) -> Tensor:
        # Without the large layer a norm is 0.6, so that clipping at 1 would let everything through.
        return (0.6 * self.small(examples) + self.size * self.large(examples))[:, 0]


def audit_step(
    make: Callable[..., PrivateStep] = PrivateStep,
    *,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    steps: int = 1,
    canaries: int = 2000,
    size: float = 5.0,
    draws: int = 1,
    seed: int = 0,
) -> float:
    """Return an epsilon that one training on canaries reveals at least, with 95% confidence: below `epsilon` for a right step.

    Each canary takes part with probability 1/2, in every step, and the weights tell who did. Sampling and a large epsilon would
    hide gross faults, so there is no sampling, and few steps. A right step shows about a third of its epsilon.

    Source: Steinke, Nasr and Jagielski, NeurIPS 2023, algorithm 1 and theorem 5.2.

    Args:
        make: makes the step from the arguments of PrivateStep.
        epsilon, delta, steps: budget that the step is made for.
        canaries: number of examples, each with a gradient in its own direction.
        size: length of a gradient over the clipping norm.
        draws: number of equal losses per canary.
        seed: seed of who takes part, and of the noise.
    """
    budget = PrivacyBudget.of(epsilon=epsilon, delta=delta, sample_rate=1.0, steps=steps)
    present = np.random.default_rng(seed).random(canaries) < 0.5
    examples = torch.eye(canaries)[torch.from_numpy(present)]
    model = _Canaries(canaries, size)
    settings: dict[str, Any] = {"clip": 1.0, "public_size": 1, "microbatch": 256, "draws": draws, "noise_seed": seed}
    step = make(model, torch.optim.SGD(model.parameters(), lr=1.0), budget, **settings)
    for _ in range(steps):
        step.take(len(examples), lambda rows: model(examples[rows].repeat_interleave(draws, 0)))
    scores = model(torch.eye(canaries)).detach().numpy()  # descent has lowered those of who took part
    order, shown = np.argsort(scores), []
    for part in _PARTS:
        each = max(1, round(canaries * part))
        right = int(present[order[:each]].sum() + (~present[order[-each:]]).sum())
        shown.append(epsilon_at_least(canaries, 2 * each, right, delta, 0.05 / len(_PARTS)))
    return max(shown)


def epsilon_at_least(examples: int, guesses: int, right: int, delta: float, chance: float) -> float:
    """Return the largest epsilon that so many right guesses refute, where a false refutation has probability `chance`.

    Args:
        examples: number of examples whose presence was drawn.
        guesses: number of those that are guessed.
        right: number of right guesses.
        delta: delta of the promise that is tested.
        chance: probability with which a true promise may be refuted.
    """

    def refuted(epsilon: float) -> bool:
        rate = 1 / (1 + math.exp(-epsilon))  # of right guesses at most, if the promise holds
        tail = binom.sf(right - 1, guesses, rate)
        lost = np.arange(1, right + 1)
        just_below = (binom.sf(right - lost - 1, guesses, rate) - tail) / lost
        return tail + 2 * examples * delta * just_below.max(initial=0.0) < chance

    low, high = 0.0, 50.0
    if not refuted(low):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
