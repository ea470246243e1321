"""Training one network of several: the resumable loop that sd-mini's stages share."""

import copy
import math
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing

from .recipe import Optimisation

_CHECKPOINT_SECONDS = 120.0

# A batch's loss, from the network in training and a generator for all that is drawn at random.
Objective = Callable[[nn.Module, np.random.Generator], torch.Tensor]


@dataclass
class Stage:
    """A network in training. `step` counts finished steps; `losses` has one entry for each.

    `about` is what the training depends on: a checkpoint of another is refused. `scores` are what was measured on the way.
    """

    name: str
    about: dict[str, Any]
    optimisation: Optimisation
    seed: int
    model: nn.Module
    averaged: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(
        cls, name: str, build: Callable[[], nn.Module], about: dict[str, Any], optimisation: Optimisation, seed: int
    ) -> "Stage":
        """A stage at step 0, the weights of `build()` drawn from the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build()
        # channels_last: oneDNN's convolutions are faster on it, and torch would convert back and forth otherwise.
        model = model.to(memory_format=torch.channels_last).train()
        averaged = copy.deepcopy(model).requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay, betas=(0.9, 0.99)
        )
        return cls(name, about, optimisation, seed, model, averaged, optimizer)

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.optimisation.steps

    def take_step(self, objective: Objective) -> None:
        """One step of AdamW, on a batch that depends on the seed, the stage and the step alone."""
        generator = np.random.default_rng((self.seed, *self.name.encode(), self.step))
        loss = objective(self.model, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optimisation.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optimisation, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.losses.append(loss.item())
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the current ones, faster in the beginning, when they change quickly."""
        decay = min(self.optimisation.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        for kept, current in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            kept.copy_(current)  # such as a batch normalisation's statistics, which are averages already


def learning_rate(optimisation: Optimisation, step: int) -> float:
    """The learning rate of a step counted from 0: a linear rise, a constant, a cosine down to zero."""
    rise = min(1.0, (step + 1) / max(1, optimisation.warmup))
    left = min(1.0, (optimisation.steps - step) / optimisation.cooldown)
    return optimisation.learning_rate * rise * 0.5 * (1 - math.cos(math.pi * left))


def run_stage(
    stage: Stage,
    objective: Objective,
    folder: Path,
    stopped: threading.Event,
    *,
    progress: bool,
    every: int = 0,
    visit: Callable[[Stage], None] | None = None,
    on_step: Callable[[str, int, float], None] | None = None,
) -> None:
    """Take the steps that are left, with a checkpoint in `folder` every two minutes and at the end.

    `visit(stage)` is called after every `every` steps and at the end; what it appends to `stage.scores` is kept.
    `on_step(name, step, loss)` is called after each step. Raises KeyboardInterrupt, after a checkpoint, once `stopped` is
    set, and CipherDMError if the loss is not finite.
    """
    total, begin = stage.optimisation.steps, time.perf_counter()
    saved = begin
    with _bar(stage, progress) as bar:
        while not stage.finished:
            stage.take_step(objective)
            if not math.isfinite(stage.losses[-1]):
                raise CipherDMError(
                    f"The loss of {stage.name} is {stage.losses[-1]} at step {stage.step}. Train with a lower learning_rate "
                    f"than {stage.optimisation.learning_rate} and resume=False; {folder} keeps the last good checkpoint."
                )
            bar.update()
            bar.set_postfix(loss=f"{np.mean(stage.losses[-100:]):.4f}", refresh=False)
            if on_step is not None:
                on_step(stage.name, stage.step, stage.losses[-1])
            visiting = visit is not None and (stage.finished or (every > 0 and stage.step % every == 0))
            now = time.perf_counter()
            if visiting or stage.finished or stopped.is_set() or now - saved > _CHECKPOINT_SECONDS:
                stage.seconds, begin, saved = stage.seconds + now - begin, now, now
                if visiting:
                    visit(stage)
                    begin = time.perf_counter()  # the seconds are of training alone
                save_checkpoint(folder, stage)
            if stopped.is_set():
                raise KeyboardInterrupt(
                    f"Stopped at step {stage.step} of {total} of {stage.name}. The same command resumes."
                )


def save_checkpoint(folder: Path, stage: Stage) -> None:
    """Write `folder/NAME.pt`, whole or not at all."""
    with replacing(folder / f"{stage.name}.pt") as temporary:
        torch.save(
            {
                "about": stage.about,
                "model": stage.model.state_dict(),
                "averaged": stage.averaged.state_dict(),
                "optimizer": stage.optimizer.state_dict(),
                **{name: getattr(stage, name) for name in ("step", "seconds", "losses", "scores")},
            },
            temporary,
        )


def restore(folder: Path, stage: Stage) -> None:
    """Bring a stage to the state of `folder/NAME.pt`, if that file exists.

    Raises CipherDMError if the file is damaged, or of a training that depended on something else.
    """
    path = folder / f"{stage.name}.pt"
    if not path.exists():
        return
    remedy = f"Train with resume=False to begin anew, or move {folder} away."
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        about = saved["about"]
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise CipherDMError(f"The checkpoint {path} cannot be read ({error}). {remedy}") from error
    differing = [key for key in stage.about if about.get(key) != stage.about[key]]
    if differing:
        changes = ", ".join(f"{key} is {about.get(key)} there and {stage.about[key]} now" for key in differing)
        raise CipherDMError(f"The checkpoint {path} is of another training: {changes}. {remedy}")
    stage.model.load_state_dict(saved["model"])
    stage.averaged.load_state_dict(saved["averaged"])
    stage.optimizer.load_state_dict(saved["optimizer"])
    for name in ("step", "seconds", "losses", "scores"):
        setattr(stage, name, saved[name])


def _bar(stage: Stage, progress: bool) -> tqdm:
    return tqdm(
        total=stage.optimisation.steps, initial=stage.step, desc=stage.name, unit="step", disable=not progress,
        mininterval=5.0, dynamic_ncols=True,
    )  # fmt: skip
