"""Parts of a model that are trained in turn, each with a checkpoint of its own in one folder."""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .run import OnStep, Run, go_on
from .sd_mini.recipe import Objective


@dataclass(frozen=True)
class Stages:
    """Settings that all parts are trained with.

    `config` has a `seed`, a `source` of data, and for each part one with an `optimisation`; `folder` keeps the checkpoints.
    """

    config: Any
    folder: Path
    resume: bool
    stopped: threading.Event
    progress: bool
    on_step: OnStep | None

    def start(self, name: str, build: Callable[[], nn.Module], **more: Any) -> Run:
        """Return the run of a part in its last state, from `build` if there is none; `more` is what else it depends on."""
        own, seed = getattr(self.config, name), self.config.seed
        optimisation = own.optimisation
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build()
        about = asdict(own)
        about |= {**about.pop("optimisation"), "seed": seed, "source": self.config.source, **more}
        del about["steps"], about["cooldown"]  # how long it goes on may change while it is under way
        adam = {"lr": optimisation.learning_rate, "weight_decay": optimisation.weight_decay, "betas": (0.9, 0.99)}
        run = Run(name, about, model, partial(torch.optim.AdamW, **adam), optimisation)
        if self.resume:
            run.restore(self.folder)
        return run

    def go_on(self, run: Run, objective: Objective, look: Callable[[nn.Module, int], dict], *, every: int = 0) -> None:
        """Take the steps that are left; `look(averaged, step)` gives scores after every `every` steps and at the end."""

        def at_step(model: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            loss = objective(model, np.random.default_rng((self.config.seed, *run.name.encode(), step)))
            return loss, loss

        def visit(run: Run) -> None:
            run.scores.append({"step": run.step, **look(run.averaged.module, run.step)})

        settings = {"progress": self.progress, "on_step": self.on_step, "every": every, "visit": visit}
        go_on(run, at_step, self.folder, self.stopped, **settings)
