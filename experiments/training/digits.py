"""Training the MNIST models: noise prediction, with guidance, distillation and penalties as a recipe asks for them."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from cipherdm.datasets import Digits, load_mnist
from cipherdm.errors import CipherDMError

from .attention_scores import ScoreRecorder
from .export import export, write_grid
from .guidance import Guide, load_guide, train_guide
from .identity_start import start_at_identity
from .recipes import TrainingConfig, recipe, scheduler
from .run import Objective, Run, go_on, stop_requested, torch_threads


def train(
    name_or_config: str | TrainingConfig,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    threads: int = 1,
    progress: bool = True,
    on_step: Callable[[str, int, float], None] | None = None,
) -> Path:
    """Train a recipe (by name) or a configuration, and return the folder with the diffusers model.

    Ctrl-C (and SIGTERM) ends after the current step with a checkpoint, and raises KeyboardInterrupt.

    Args:
        name_or_config: recipe's name, or a configuration.
        out: folder of the model, `data/models/NAME` by default; rewritten on the way with the averaged weights.
        steps: number of steps instead of the configuration's, also for the cosine of the learning rate.
        resume: True to continue a checkpoint of this configuration, if there is one; the
            result equals that of an uninterrupted run.
        runs: folder whose `NAME/` holds the checkpoint and sample grids.
        data: folder of MNIST.
        threads: number of torch's threads.
        progress: True to show a bar.
        on_step: called as on_step(name, step, loss) after each step.

    Raises:
        CipherDMError: an unknown recipe, bad data, missing initial weights, a loss that is not finite, or a checkpoint that
            is damaged or of another configuration.
    """
    config = recipe(name_or_config)
    if steps is not None:
        config = replace(config, steps=steps)
    out = Path("data/models") / config.name if out is None else Path(out)
    folder = Path(runs) / config.name
    digits = load_mnist("train", digits=config.digits, folder=data)
    if config.images is not None:
        digits = Digits(digits.images[: config.images], digits.labels[: config.images])

    def visit(run: Run) -> None:
        export(run, config, len(digits), out)
        write_grid(run.averaged.module, config, folder / f"samples-{run.step:06d}.png")

    with torch_threads(threads):
        run = start(config)
        if resume:
            run.restore(folder)
        guide = _guide(config, digits, folder, progress) if config.guidance else None
        objective = noise_objective(run.model, config, digits, guide)
        with stop_requested() as stopped:
            settings = {"progress": progress, "every": config.checkpoint_every, "visit": visit, "on_step": on_step}
            go_on(run, objective, folder, stopped, **settings)
    return out


def start(config: TrainingConfig) -> Run:
    """Return a run at step 0, its weights drawn from the configuration's seed or read from `config.initial`.

    Raises CipherDMError if the initial weights cannot be read or have other shapes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = config.unet()
    if config.identity:
        start_at_identity(model)
    if config.initial is not None:
        _load_initial(model, config)
    # How often a checkpoint is written changes nothing that is trained.
    about = {key: value for key, value in config.as_json().items() if key != "checkpoint_every"}
    settings = {"steps": config.steps, "ema_decay": config.ema_decay, "clip_norm": config.clip_norm}
    return Run.start(
        config.name, about, model, torch.optim.Adam, rate=lambda step: learning_rate(config, step), **settings
    )


def noise_objective(
    model: UNet2DModel, config: TrainingConfig, digits: Digits, guide: Guide | None = None
) -> Objective:
    """Mean square error of the predicted noise, or of a teacher's prediction, plus the penalties that the recipe weighs.

    `model` is the network in training, whose attention scores are watched if they are penalised.
    """
    images, class_ids, levels = torch.from_numpy(digits.images), class_ids_of(digits, config), noise_levels()
    teacher = None if config.teacher is None else _teacher(config)
    scores = ScoreRecorder(model) if config.score_weight else None

    def objective(model: UNet2DModel, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, *chosen = batch_at(config, len(class_ids), step)
        timesteps, noise = map(torch.from_numpy, chosen)
        noisy = levels[0][timesteps] * images[rows] + levels[1][timesteps] * noise
        labels = torch.from_numpy(class_ids[rows])
        shown = noisy.to(memory_format=torch.channels_last)
        predicted, target = model(shown, timesteps, class_labels=labels).sample, noise
        if teacher is not None:
            with torch.no_grad():
                target = teacher(shown, timesteps, class_labels=labels).sample
        if guide is not None:
            factor = levels[1][timesteps]
            target = target - config.guidance * factor * guide.gradient(noisy, factor, labels)
        error = predicted - target
        loss = error.square().mean()
        # The error's mean over the image, in units of its deviation for white noise. Any positive quadratic form that
        # depends on the input alone has the same minimiser, the expected noise; the fourth power leaves out the low
        # timesteps, where the mean of the noise cannot be told from that of the image.
        mean = (levels[1][timesteps].flatten() ** 8 * error[0].numel() * error.mean((1, 2, 3)).square()).mean()
        minimised = loss + config.mean_weight * mean
        if scores is not None:
            minimised = minimised + config.score_weight * scores.mean_square()
        return minimised, loss

    return objective


def class_ids_of(digits: Digits, config: TrainingConfig) -> np.ndarray:
    """The position of every label in `config.digits`, int64 [N]."""
    position = np.full(10, -1)
    position[list(config.digits)] = np.arange(len(config.digits))
    return position[digits.labels]


def batch_at(config: TrainingConfig, count: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The random choices of one step: image rows [B] in range(count), timesteps [B], noise [B, 1, 28, 28] float32.

    They depend on the seed and the step alone, so a resumed run sees what an uninterrupted one would. Timesteps are
    stratified, one from each of B equal slices of 0..999: the loss varies strongly with the timestep, and even coverage
    makes its gradient less noisy. With `focus`, those around the middle, where digits take shape, come more often.
    """
    generator = np.random.default_rng((config.seed, step))
    rows = generator.integers(0, count, config.batch)
    slices = (np.arange(config.batch) + generator.random(config.batch)) / config.batch
    slices += config.focus * np.sin(2 * np.pi * slices) / (2 * np.pi)  # density 1 / (1 + focus cos(2 pi u)) at u
    timesteps = generator.permutation(np.minimum(slices * 1000, 999).astype(np.int64))
    noise = generator.standard_normal((config.batch, 1, 28, 28), dtype=np.float32)
    return rows, timesteps, noise


def noise_levels() -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of image and noise at every timestep, float32 [1000, 1, 1, 1] each: x_t = first * x + second * noise."""
    kept = scheduler().alphas_cumprod.reshape(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step counted from 0: linear rise over `warmup` steps, then a cosine to zero at `steps`."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def _guide(config: TrainingConfig, digits: Digits, folder: Path, progress: bool) -> Guide:
    """The classifier beside the run's checkpoint, trained if there is none yet."""
    path = folder / "guide.safetensors"
    guide = load_guide(path, len(config.digits))
    if guide is None:
        images, class_ids = torch.from_numpy(digits.images), torch.from_numpy(class_ids_of(digits, config))
        guide = train_guide(path, images, class_ids, noise_levels(), seed=config.seed, progress=progress)
    return guide


def _load_initial(model: UNet2DModel, config: TrainingConfig) -> None:
    path = Path(config.initial) / "diffusion_pytorch_model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CipherDMError(
            f"{config.name!r} starts from the weights in {path}, which cannot be used ({error}). Train that model "
            "first, or give another folder as initial."
        ) from error


def _teacher(config: TrainingConfig) -> UNet2DModel:
    try:
        teacher = UNet2DModel.from_pretrained(config.teacher, low_cpu_mem_usage=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CipherDMError(
            f"{config.name!r} learns from the model in {config.teacher}, which cannot be used ({error}). Train that model "
            "first, or give another folder as teacher."
        ) from error
    return teacher.to(memory_format=torch.channels_last).requires_grad_(False).eval()
