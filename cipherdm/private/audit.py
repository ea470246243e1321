"""Audits: what somebody who sees the weights can prove about who was in the training, against what the budget promises."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from .budget import PrivacyBudget
from .step import PrivateStep

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Audit:
    """What an audit found: the epsilon that was promised, the one that is at least there with 95% confidence, and the guesses."""

    stated: float
    shown: float
    guesses: int
    right: int


class _Canaries(nn.Module):
    """A linear model in two layers, whose loss for a one-hot example has that example's own weights for its gradient."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.small, self.large = (nn.Linear(count, 1, bias=False) for _ in range(2))
        nn.init.zeros_(self.small.weight)
        nn.init.zeros_(self.large.weight)

    def forward(self, examples: Tensor, size: float) -> Tensor:
        # A norm without the large layer is 0.6, so that clipping at 1 would let everything through.
        return (0.6 * self.small(examples) + size * self.large(examples))[:, 0]


def audit_step(
    make: Callable[..., PrivateStep] = PrivateStep,
    *,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    steps: int = 1,
    canaries: int = 1000,
    size: float = 5.0,
    draws: int = 1,
    seed: int = 0,
) -> Audit:
    """Train once on canaries, tell from the weights which of them took part, and bound epsilon from below.

    Each canary takes part with probability 1/2 and has a gradient of its own direction, about `size` times as long as what is
    clipped. All are in every step (sample rate 1), so that a wrong step shows: with sampling and an epsilon of 10 gross faults
    stay below the promise. An honest step shows about a third of its epsilon.

    Source: Steinke, Nasr and Jagielski, NeurIPS 2023, algorithm 1 and theorem 5.2.

    Args:
        make: makes the step from the arguments of PrivateStep; tests give it faults.
        epsilon: budget that the step is made for.
        delta: delta of the budget.
        steps: number of steps.
        canaries: number of examples.
        size: length of a gradient over the clipping norm.
        draws: number of equal losses per canary.
        seed: seed of who takes part, and of the noise.
    """
    budget = PrivacyBudget.of(epsilon=epsilon, delta=delta, sample_rate=1.0, steps=steps)
    present = np.random.default_rng(seed).random(canaries) < 0.5
    examples = torch.eye(canaries)[torch.from_numpy(present)]
    model = _Canaries(canaries)
    settings: dict[str, Any] = {"clip": 1.0, "public_size": 1, "microbatch": 256, "draws": draws, "noise_seed": seed}
    step = make(model, torch.optim.SGD(model.parameters(), lr=1.0), budget, **settings)
    for _ in range(steps):
        step.take(len(examples), lambda rows: model(examples[rows].repeat_interleave(draws, 0), size))
    # Descent lowers the weights of those who took part.
    scores = -(0.6 * model.small.weight + size * model.large.weight)[0].detach().numpy()
    return _strongest(budget, scores, present)


def _strongest(budget: PrivacyBudget, scores: np.ndarray, present: np.ndarray) -> Audit:
    """The best bound of several numbers of guesses, each with its part of the probability to be wrong."""
    order = np.argsort(scores)
    counts = [max(1, round(len(scores) * part)) for part in (0.02, 0.05, 0.1, 0.2, 0.5)]
    found = []
    for each in counts:
        guesses, right = 2 * each, int((~present[order[:each]]).sum() + present[order[-each:]].sum())
        shown = epsilon_at_least(len(scores), guesses, right, budget.delta, (1 - CONFIDENCE) / len(counts))
        found.append(Audit(budget.epsilon, shown, guesses, right))
    return max(found, key=lambda each: each.shown)


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
        rate = 1 / (
            1 + math.exp(-epsilon)
        )  # of right guesses, at most, by somebody who sees a result with this epsilon
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


def membership_roc(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return false and true positive rates over all thresholds, from (0, 0) to (1, 1), and the area under their curve.

    Args:
        members: scores of examples that were in the training [M]; higher ones speak for it.
        others: scores of examples that were not [N].
    """
    thresholds = np.unique(np.concatenate((members, others)))[::-1]
    rates = [(np.mean(each[:, None] >= thresholds, axis=0)) for each in (np.asarray(others), np.asarray(members))]
    false, true = (np.concatenate(([0.0], rate)) for rate in rates)
    return false, true, float(np.trapz(true, false))


def most_true_positives(false: np.ndarray, epsilon: float, delta: float) -> np.ndarray:
    """Return the largest true positive rate that (epsilon, delta) allows at each false positive rate (Kairouz et al., 2015)."""
    return np.minimum(1, np.minimum(math.exp(epsilon) * false + delta, 1 - math.exp(-epsilon) * (1 - delta - false)))
