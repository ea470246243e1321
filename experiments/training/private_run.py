"""A network that is trained further on private data: the same checkpoints and averages, and nothing noted of the data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from cipherdm.private import PrivacyBudget, PrivacyStatement, PrivateStep, share, train_only
from cipherdm.private.trainable import PARTS

from .run import Run
from .sd_mini.recipe import Optimisation

PrivateObjective = Callable[[nn.Module], tuple[int, Callable[[torch.Tensor], torch.Tensor]]]
"""Network to the number of private examples, and the losses [n draws] of examples [n], as `PrivateStep.take` has them."""


@dataclass(frozen=True)
class PrivateStage:
    """What is promised about private examples, and how a network learns from them.

    Attributes:
        epsilon, delta, sample_rate: as in `PrivacyBudget`, whose steps are those of the optimisation. Without an epsilon
            nothing is promised: batches of one size, no clipping, no noise.
        optimisation: AdamW's. Its batch is the number of examples that a step takes on average, a public constant.
        clip: largest norm of one example's gradient. So small that nearly all are clipped: Adam does not see its size.
        draws: timesteps and noises per example and step.
        part: what is trained, one of `cipherdm.private.PARTS`.
        microbatch: number of examples that are computed at a time.
    """

    epsilon: float | None
    optimisation: Optimisation
    delta: float = 1e-5
    sample_rate: float = 1 / 30
    clip: float = 0.01
    draws: int = 2
    part: str = "attention"
    microbatch: int = 256

    @property
    def budget(self) -> PrivacyBudget:
        """The budget, with the least noise that keeps it."""
        numbers = {"epsilon": self.epsilon, "delta": self.delta, "sample_rate": self.sample_rate}
        return PrivacyBudget.of(**numbers, steps=self.optimisation.steps)

    def shortened(self, steps: int) -> "PrivateStage":
        """Return the stage with so many steps, of which the second half cools down."""
        return replace(self, optimisation=replace(self.optimisation, steps=steps, cooldown=max(1, steps // 2)))


class PrivateRun(Run):
    """A run whose steps are private ones. Its checkpoint has no loss, no seed and nothing of the data but the weights.

    Args:
        name: the run's.
        stage: what is promised, and how it is kept.
        model: the network, as public data left it.
        also: further submodules that are trained, besides the stage's part.
        about: what else it depends on.
        noise_seed: seed for tests. The result is marked as not private.
    """

    def __init__(
        self,
        name: str,
        stage: PrivateStage,
        model: nn.Module,
        *,
        also: Sequence[str] = (),
        about: dict[str, Any] | None = None,
        noise_seed: int | None = None,
    ) -> None:
        train_only(model, stage.part, also)
        plan, self.stage, self.also = stage.optimisation, stage, tuple(also)

        def private_step(parameters) -> PrivateStep:
            adam = _adam_of_trained(
                parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99)
            )
            size = round(plan.batch / stage.sample_rate)
            settings = {"clip": stage.clip, "draws": stage.draws, "microbatch": stage.microbatch}
            return PrivateStep(model, adam, stage.budget, public_size=size, noise_seed=noise_seed, **settings)

        super().__init__(name, asdict(stage) | (about or {}), model, private_step, plan)

    def take_step(self, objective: PrivateObjective) -> None:
        """Take one private step, and move the averaged weights."""
        step = self.optimizer
        for group in step.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        step.take(*objective(self.model))
        self.step = step.taken
        self.averaged.update_parameters(self.model)

    def statement(self, data: str, public: str) -> PrivacyStatement:
        """Return what is stated about the model: the private data, and what it was before."""
        step, stage = self.optimizer, self.stage
        trained = " and ".join((PARTS[stage.part], *("the embedding of classes" for _ in self.also)))
        told = {"clip": stage.clip, "draws": stage.draws, "unit": "image", "share": share(self.model)}
        return PrivacyStatement(step.budget, data=data, public=public, trained=trained, private=step.private, **told)


class PlainRun(Run):
    """A run of the same stage without privacy, to compare with; arguments are those of `PrivateRun`."""

    def __init__(
        self,
        name: str,
        stage: PrivateStage,
        model: nn.Module,
        *,
        also: Sequence[str] = (),
        about: dict[str, Any] | None = None,
    ) -> None:
        train_only(model, stage.part, also)
        plan = stage.optimisation
        adam = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay, "betas": (0.9, 0.99)}
        super().__init__(name, asdict(stage) | (about or {}), model, partial(_adam_of_trained, **adam), plan)
        # PyTorch 2.13 crashes in a backward pass of a GroupNorm on channels_last whose input has no gradient.
        self.model.to(memory_format=torch.contiguous_format)
        self._batch, self._random = plan.batch, np.random.default_rng()

    def take_step(self, objective: PrivateObjective) -> None:
        """Take one step on a batch of random examples, and move the averaged weights."""
        size, losses = objective(self.model)

        def of_batch(model: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            loss = losses(torch.from_numpy(self._random.choice(size, self._batch))).mean()
            return loss, loss

        super().take_step(of_batch)


def _adam_of_trained(parameters: Iterable[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([each for each in parameters if each.requires_grad], **settings)


Visit = Callable[[torch.Tensor, np.random.Generator], tuple[torch.Tensor, torch.Tensor]]
"""(examples [n], generator) to clean latents [n draws, C, H, W] and numbers of prompts [n draws], an example's side by side."""


def noise_losses(
    size: int,
    draws: int,
    visit: Visit,
    prompts: torch.Tensor,
    kept: torch.Tensor,
    no_prompt: float,
    seed: int | None = None,
) -> PrivateObjective:
    """Return the mean square errors of the predicted noise for `size` private examples, as `visit` shows them.

    The last of the `prompts` [P, tokens, width] is the empty one, which replaces some. `kept` are alphas_cumprod, float32.
    Everything random comes from the operating system's entropy (or from a seed, for tests), for each example alone; its own
    draws are one from each of as many equal slices of time.
    """
    generator = np.random.default_rng(seed)

    def objective(model: nn.Module) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
        def losses(chosen: torch.Tensor) -> torch.Tensor:
            clean, told = visit(chosen, generator)
            slices = (np.arange(draws) + generator.random((len(chosen), draws))) / draws
            timesteps = torch.from_numpy((slices * len(kept)).astype(np.int64)).flatten()
            noise = torch.from_numpy(generator.standard_normal(tuple(clean.shape), dtype=np.float32))
            none = torch.from_numpy(generator.random(len(told)) < no_prompt)
            shown = prompts[torch.where(none, len(prompts) - 1, told)]
            left = kept[timesteps][:, None, None, None]
            noisy = left.sqrt() * clean + (1 - left).sqrt() * noise
            predicted = model(noisy.contiguous(), timesteps, shown).sample
            return (predicted - noise).square().mean((1, 2, 3))

        return size, losses

    return objective
