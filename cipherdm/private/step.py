"""A step of differentially private training: choose, clip, sum, add noise, divide, update."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_whole, refuse
from .budget import PrivacyBudget
from .chance import gaussian, poisson_sample, source
from .clipping import ClippedSums


class PrivateStep:
    """Steps of DP-SGD on a module's trainable parameters, with any optimizer of torch: Abadi et al. (CCS 2016), algorithm 1.

    Nothing about the data leaves a step but the weights and the optimizer's state, both made from noisy sums alone: no loss, no
    norm, no size of a batch.

    Args:
        module: network in training; `ClippedSums` says which layers it may have.
        optimizer: optimizer of the module's trainable parameters. Its learning rate may follow a schedule.
        budget: promise to keep. Its steps can be taken once.
        clip: largest norm of one example's gradient in a sum.
        public_size: number of examples that may be known, such as a round one. With the rate it gives the sums' divisor.
        microbatch: number of examples that are computed at a time. It changes nothing but memory and time.
        draws: number of losses per example whose gradients are averaged before clipping.
        noise_seed: seed for tests. The result is marked as not private.

    Raises:
        CipherDMError: a setting is out of range, a layer cannot be clipped, or the optimizer has other parameters.
    """

    sums_of = ClippedSums
    """What adds up clipped gradients."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        budget: PrivacyBudget,
        *,
        clip: float,
        public_size: int,
        microbatch: int = 64,
        draws: int = 1,
        noise_seed: int | None = None,
    ) -> None:
        check_whole("public_size", public_size, 1)
        check_whole("microbatch", microbatch, 1)
        self.sums = self.sums_of(module, clip, draws)
        optimized = {each for group in optimizer.param_groups for each in group["params"]}
        others = optimized != set(self.sums.parameters)
        refuse({"The optimizer must have the module's trainable parameters and no others: make it of them": others})
        self.optimizer, self.budget, self.microbatch = optimizer, budget, microbatch
        self.divisor = budget.sample_rate * public_size
        self.taken = 0
        self.private = noise_seed is None
        self._random = source(noise_seed)

    def noise(self, count: int) -> Tensor:
        """Return `count` standard normal numbers, float64."""
        return torch.from_numpy(gaussian(count, self._random))

    def take(self, size: int, losses: Callable[[Tensor], Tensor]) -> None:
        """Take one step on a Poisson sample of the examples 0 to size - 1.

        Args:
            size: number of private examples.
            losses: indices [n] of examples to their losses [n draws], the draws of one example side by side. What is random in
                them must be drawn anew each time or depend on the example and the step alone, not on its place in a batch
                together with a seed that others know.

        Raises:
            CipherDMError: the budget is used up, or a weight is not finite any more, which anybody can see.
        """
        steps = self.budget.steps
        refuse({f"This budget is used up: {self.taken} of {steps} steps are taken": self.taken >= steps})
        chosen = torch.from_numpy(poisson_sample(size, self.budget.sample_rate, self._random))
        try:
            # Not once for an empty sample, whose step is noise alone.
            for start in range(0, len(chosen), self.microbatch):
                rows = chosen[start : start + self.microbatch]
                self.sums.add(len(rows), partial(losses, rows))
            for parameter, total in self.sums.sums.items():
                noise = self.noise(parameter.numel()).reshape(parameter.shape)
                noisy = total.cpu().double() + self.budget.noise_multiplier * self.sums.clip * noise
                # By a constant: the number of chosen examples, or of all, is private (opacus' issue 819).
                parameter.grad = (noisy / self.divisor).to(parameter)
        finally:
            self.sums.clear()  # also if a step is interrupted: sums without noise stay nowhere
        self.taken += 1  # before the weights move, so that an interruption never leaves a step uncounted
        self.optimizer.step()
        self.optimizer.zero_grad()
        broken = not all(each.isfinite().all() for each in self.sums.parameters)
        refuse({f"A weight is not finite after step {self.taken}: lower the learning rate, and begin anew": broken})

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides the weights. It holds no seed, so it is no more secret than they are."""
        state = {"taken": self.taken, "private": self.private, "settings": self._settings()}
        return state | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the steps of a `state_dict`. Raises CipherDMError if that is of another budget or other settings."""
        for name, value in self._settings().items():
            there = state["settings"].get(name)
            refuse({f"The checkpoint has {name} = {there}, not {value}: take that, or begin anew": there != value})
        self.optimizer.load_state_dict(state["optimizer"])
        self.taken = state["taken"]
        self.private = self.private and state["private"]

    def _settings(self) -> dict[str, Any]:
        return asdict(self.budget) | {"clip": self.sums.clip, "draws": self.sums.draws, "divisor": self.divisor}
