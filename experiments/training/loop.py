"""The training loop: noise prediction with a moving average of the weights, checkpoints and exact resuming."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cipherdm.datasets import Digits, load_mnist
from cipherdm.errors import CipherDMError

from .checkpoint import Run, load_checkpoint, save_checkpoint
from .export import export, write_grid
from .guidance import Guide, load_guide, train_guide
from .recipes import TrainingConfig, recipe, scheduler
from .stopping import stop_requested


def train(
    name_or_config: str | TrainingConfig,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """Train a recipe (by name) or a configuration, and return the folder with the diffusers model.

    `out` is that folder, `data/models/NAME` by default; it is rewritten at every checkpoint with the averaged weights.
    `runs/NAME/` holds the checkpoint and sample grids. `steps` replaces the configuration's count (and with it the
    cosine of the learning rate). With `resume`, an existing checkpoint of the same configuration is continued, and the
    result equals that of an uninterrupted run. `data` is the MNIST folder. `on_step(step, loss)` is called after each
    step. Ctrl-C (and SIGTERM) ends after the current step with a checkpoint, and raises `KeyboardInterrupt`.

    Raises `CipherDMError` for an unknown recipe, bad data, missing initial weights, and a checkpoint that is
    damaged or of another configuration.
    """
    config = recipe(name_or_config)
    if steps is not None:
        config = replace(config, steps=steps)
    out = Path("data/models") / config.name if out is None else Path(out)
    folder = Path(runs) / config.name
    digits = load_mnist("train", digits=config.digits, folder=data)
    if config.images is not None:
        digits = Digits(digits.images[: config.images], digits.labels[: config.images])

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = load_checkpoint(folder, config, device) if resume else None
        run = Run.start(config, device) if run is None else run
        run.guide = _guide(config, digits, folder, progress).to(device) if config.guidance else None
        with stop_requested() as stopped, _bar(config, run.step, progress) as bar:
            _continue(run, digits, folder, out, stopped, bar, on_step)
    finally:
        torch.set_num_threads(threads_before)
    return out


def _guide(config: TrainingConfig, digits: Digits, folder: Path, progress: bool) -> Guide:
    """The classifier beside the run's checkpoint, trained if there is none yet."""
    path = folder / "guide.safetensors"
    guide = load_guide(path, len(config.digits))
    if guide is None:
        images, class_ids = torch.from_numpy(digits.images), torch.from_numpy(class_ids_of(digits, config))
        guide = train_guide(path, images, class_ids, noise_levels(), seed=config.seed, progress=progress)
    return guide


def _continue(
    run: Run,
    digits: Digits,
    folder: Path,
    out: Path,
    stopped: threading.Event,
    bar: tqdm,
    on_step: Callable[[int, float], None] | None,
) -> None:
    """Take the steps from `run.step` to the end, leaving checkpoints, exports and sample grids on the way."""
    config = run.config
    images, class_ids, levels = torch.from_numpy(digits.images), class_ids_of(digits, config), noise_levels(run.device)
    since = time.perf_counter()
    while run.step < config.steps:
        train_step(run, images, class_ids, levels)
        if not math.isfinite(run.losses[-1]):
            raise CipherDMError(
                f"The loss of {config.name!r} is {run.losses[-1]} at step {run.step}. Lower learning_rate "
                f"({config.learning_rate}) and train again with resume=False; {folder} keeps the last good checkpoint."
            )
        bar.update()
        bar.set_postfix(loss=f"{np.mean(run.losses[-100:]):.4f}", refresh=False)
        if on_step is not None:
            on_step(run.step, run.losses[-1])

        last = run.step == config.steps
        if last or stopped.is_set() or run.step % config.checkpoint_every == 0:
            now = time.perf_counter()
            run.seconds, since = run.seconds + now - since, now
            save_checkpoint(folder, run)
        if last or run.step % config.checkpoint_every == 0:
            export(run, len(digits), out)
            write_grid(run, folder / f"samples-{run.step:06d}.png")
            since = time.perf_counter()  # the record's seconds are of training alone
        if stopped.is_set() and not last:
            raise KeyboardInterrupt(f"Stopped at step {run.step} of {config.steps}. The same command resumes {folder}.")


def train_step(
    run: Run, images: torch.Tensor, class_ids: np.ndarray, levels: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Take the step number `run.step` on images [N, 1, 28, 28] with class ids [N]; `levels` is from `noise_levels`."""
    config = run.config
    rows, *chosen = batch_at(config, len(class_ids), run.step)
    timesteps, noise = (torch.from_numpy(array).to(run.device) for array in chosen)
    noisy = levels[0][timesteps] * images[rows].to(run.device) + levels[1][timesteps] * noise
    labels = torch.from_numpy(class_ids[rows]).to(run.device)
    predicted = run.model(noisy.to(memory_format=torch.channels_last), timesteps, class_labels=labels).sample
    target = noise
    if run.teacher is not None:
        with torch.no_grad():
            target = run.teacher(noisy.to(memory_format=torch.channels_last), timesteps, class_labels=labels).sample
    if run.guide is not None:
        factor = levels[1][timesteps]
        target = target - config.guidance * factor * run.guide.gradient(noisy, factor, labels)
    error = predicted - target
    loss = error.square().mean()
    # The error's mean over the image, in units of its deviation for white noise. Any positive quadratic form that depends
    # on the input alone has the same minimiser, the expected noise; the fourth power leaves out the low timesteps, where
    # the mean of the noise cannot be told from that of the image.
    mean = (levels[1][timesteps].flatten() ** 8 * error[0].numel() * error.mean((1, 2, 3)).square()).mean()
    objective = loss + config.mean_weight * mean
    if run.scores is not None:
        objective = objective + config.score_weight * run.scores.mean_square()
    objective.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, run.step)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    run.average()
    run.losses.append(loss.item())


def class_ids_of(digits: Digits, config: TrainingConfig) -> np.ndarray:
    """The position of every label in `config.digits`, int64 [N]."""
    position = np.full(10, -1)
    position[list(config.digits)] = np.arange(len(config.digits))
    return position[digits.labels]


def batch_at(config: TrainingConfig, count: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The random choices of one step: image rows [B] in range(count), timesteps [B], noise [B, 1, 28, 28] float32.

    They depend on the seed and the step alone, so that a resumed run sees what an uninterrupted one would. Timesteps
    are stratified, one from each of B equal slices of 0..999: the loss varies strongly with the timestep, and even
    coverage makes its gradient less noisy. With `focus`, those around the middle, where digits take shape, come more often.
    """
    generator = np.random.default_rng((config.seed, step))
    rows = generator.integers(0, count, config.batch)
    slices = (np.arange(config.batch) + generator.random(config.batch)) / config.batch
    slices += config.focus * np.sin(2 * np.pi * slices) / (2 * np.pi)  # density 1 / (1 + focus cos(2 pi u)) at u
    timesteps = generator.permutation(np.minimum(slices * 1000, 999).astype(np.int64))
    noise = generator.standard_normal((config.batch, 1, 28, 28), dtype=np.float32)
    return rows, timesteps, noise


def noise_levels(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of image and noise at every timestep, float32 [1000, 1, 1, 1] each: x_t = first * x + second * noise."""
    kept = scheduler().alphas_cumprod.to(device).reshape(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step counted from 0: linear rise over `warmup` steps, then a cosine to zero at `steps`."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _bar(config: TrainingConfig, done: int, progress: bool) -> tqdm:
    return tqdm(
        total=config.steps, initial=done, desc=config.name, unit="step", disable=not progress, mininterval=1.0,
        dynamic_ncols=True,
    )  # fmt: skip
