"""A network in training: steps, a moving average of the weights, checkpoints, and going on exactly where it stopped."""

import json
import math
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing
from cipherdm.split import moving_average

_CHECKPOINT_SECONDS = 120.0
Objective = Callable[[nn.Module, int], tuple[torch.Tensor, torch.Tensor]]
"""(model, step) to what is minimised on that step's batch, and the loss that is noted. All randomness follows from the step."""

OnStep = Callable[[str, int, float | None], None]
"""Called as on_step(name, step, loss) after each step; a private one has no loss to tell."""


class Run:
    """A network in training, at step 0 until steps are taken or a checkpoint is restored.

    `about` are JSON-ready values that the training depends on; a checkpoint of others is refused. `averaged.module` has the
    averaged weights. `plan` is a configuration with `steps`, learning `rate(step)` of a step counted from 0, `clip_norm`
    (largest norm of a step's gradient) and `ema_decay` (of the weights' moving average).
    """

    def __init__(
        self,
        name: str,
        about: dict[str, Any],
        model: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        plan: Any,
    ) -> None:
        self.name, self.rate, self.steps, self.clip_norm = name, plan.rate, plan.steps, plan.clip_norm
        self.about = json.loads(json.dumps(about))  # with lists for tuples, as checkpoints have them
        # oneDNN's convolutions are faster on channels_last, and torch would convert back and forth otherwise.
        self.model = model.to(memory_format=torch.channels_last).train()
        self.averaged = moving_average(self.model, plan.ema_decay)
        self.optimizer = optimizer(self.model.parameters())
        self.step = 0  # finished steps
        self.seconds = 0.0
        self.losses: list[float] = []  # one per step
        self.scores: list[dict[str, float]] = []  # JSON-ready measurements made on the way

    @property
    def finished(self) -> bool:
        """True once all steps are taken."""
        return self.step >= self.steps

    def take_step(self, objective: Objective) -> None:
        """Take one step of the optimizer, and move the averaged weights."""
        minimised, noted = objective(self.model, self.step)
        minimised.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.losses.append(noted.item())
        self.averaged.update_parameters(self.model)

    def save(self, folder: Path) -> None:
        """Write the checkpoint `folder/NAME.pt`, whole or not at all."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "optimizer")}
        rest = {name: getattr(self, name) for name in ("about", "step", "seconds", "losses", "scores")}
        with replacing(folder / f"{self.name}.pt") as temporary:
            torch.save(parts | rest, temporary)

    def restore(self, folder: Path) -> None:
        """Bring the run to the state of `folder/NAME.pt`, if there is one. Raises CipherDMError if that does not fit."""
        path = folder / f"{self.name}.pt"
        if not path.exists():
            return
        remedy = f"Train with resume=False to begin anew, or move {folder} away."
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            about = saved["about"]
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise CipherDMError(f"The checkpoint {path} cannot be read ({error}). {remedy}") from error
        differing = [key for key in self.about if about.get(key) != self.about[key]]
        if differing:
            changes = ", ".join(f"{key} is {about.get(key)} there and {self.about[key]} now" for key in differing)
            raise CipherDMError(f"The checkpoint {path} is of another training: {changes}. {remedy}")
        for name in ("model", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        for name in ("step", "seconds", "losses", "scores"):
            setattr(self, name, saved[name])


def go_on(
    run: Run,
    objective: Objective,
    folder: Path,
    stopped: threading.Event,
    *,
    progress: bool,
    every: int = 0,
    visit: Callable[[Run], None] | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Take the steps that are left, with a checkpoint in `folder` every two minutes, before stopping, and at the end.

    `visit(run)` is called after every `every` steps (never, if 0) and at the end; what it appends to `run.scores` is kept.
    Raises KeyboardInterrupt after a step at which `stopped` is set, and CipherDMError if the loss is not finite.
    """
    begin = saved = time.perf_counter()
    shown = {"desc": run.name, "unit": "step", "mininterval": 2.0, "dynamic_ncols": True}
    with tqdm(total=run.steps, initial=run.step, disable=not progress, **shown) as bar:
        while not run.finished:
            run.take_step(objective)
            loss = run.losses[-1] if run.losses else None  # of private examples none is kept
            if loss is not None and not math.isfinite(loss):
                raise CipherDMError(
                    f"The loss of {run.name} is {loss} at step {run.step}. Lower learning_rate and train again "
                    f"with resume=False; {folder} keeps the last good checkpoint."
                )
            bar.update()
            if loss is not None:
                bar.set_postfix(loss=f"{np.mean(run.losses[-100:]):.4f}", refresh=False)
            if on_step is not None:
                on_step(run.name, run.step, loss)
            visiting = visit is not None and (run.finished or (every > 0 and run.step % every == 0))
            now = time.perf_counter()
            if visiting or run.finished or stopped.is_set() or now - saved > _CHECKPOINT_SECONDS:
                run.seconds, begin, saved = run.seconds + now - begin, now, now
                if visiting:
                    visit(run)
                    begin = time.perf_counter()  # the seconds are of training alone
                run.save(folder)
            if stopped.is_set() and not run.finished:
                raise KeyboardInterrupt(
                    f"Stopped at step {run.step} of {run.steps} of {run.name}. The same command resumes."
                )


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set while the block runs, so no step is cut in the middle."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals; elsewhere an interrupt falls back to the last checkpoint
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: event.set()) for number in numbers}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loss_summary(run: Run, last: int) -> dict[str, Any]:
    """Return a training record's part on a run: steps, seconds, the mean of the `last` losses, and a curve."""
    losses = np.asarray(run.losses)
    return {
        "steps_done": run.step,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "seconds": round(run.seconds, 1),
        "loss": float(losses[-last:].mean()),
        "loss_by_100_steps": [round(float(losses[edge : edge + 100].mean()), 5) for edge in range(0, len(losses), 100)],
    }
