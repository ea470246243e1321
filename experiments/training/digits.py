"""Training the MNIST models: noise prediction, with guidance, distillation and penalties as a recipe asks for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from cipherdm.datasets import Digits, load_mnist
from cipherdm.errors import CipherDMError
from cipherdm.files import checkout

from .evaluation import diffusers_sampler
from .export import export, write_grid
from .guidance import Guide, load_guide, train_guide
from .modules import InnerRecorder, ScoreRecorder, SpreadRecorder
from .recipes import RECIPES, TrainingConfig, scheduler
from .run import Objective, OnStep, Run, go_on, one_thread, stop_requested


def train(
    name_or_config: str | TrainingConfig,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Path:
    """Train a recipe (by name) or a configuration, and return the folder with the diffusers model.

    The folder is `out` or `data/models/NAME`, rewritten on the way with the averaged weights. `runs/NAME/` holds the
    checkpoint and sample grids. With `resume` a checkpoint is continued; the result equals that of an uninterrupted run.
    `steps` replaces the configuration's, also for the cosine of the learning rate. Ctrl-C (and SIGTERM) ends after the
    current step with a checkpoint, and raises KeyboardInterrupt. Raises CipherDMError for what cannot be trained.
    """
    config = RECIPES.get(name_or_config) if isinstance(name_or_config, str) else name_or_config
    if config is None:
        raise CipherDMError(f"No training recipe {name_or_config!r}. There are: {', '.join(RECIPES)}, sd-mini.")
    if steps is not None:
        config = replace(config, steps=steps)
    out = checkout() / "data" / "models" / config.name if out is None else Path(out)
    folder = Path(runs) / config.name
    digits = load_mnist("train", digits=config.digits)
    if config.images is not None:
        digits = Digits(digits.images[: config.images], digits.labels[: config.images])

    def visit(run: Run) -> None:
        export(run, config, len(digits), out)
        labels = np.repeat(np.arange(len(config.digits)), 8)  # a row per digit
        drawn = diffusers_sampler(run.averaged.module, steps=25)(labels, config.seed)
        write_grid(drawn, folder / f"samples-{run.step:06d}.png", columns=8)

    with one_thread():
        run = start(config)
        if resume:
            run.restore(folder)
        guide = None
        if config.guidance:
            path = folder / "guide.safetensors"
            data = map(torch.from_numpy, (digits.images, _class_ids(digits, config)))
            settings = {"seed": config.seed, "progress": progress}
            guide = load_guide(path, len(config.digits)) or train_guide(path, *data, noise_levels(), **settings)
        objective = noise_objective(run.model, config, digits, guide)
        with stop_requested() as stopped:
            settings = {"progress": progress, "every": config.checkpoint_every, "visit": visit, "on_step": on_step}
            go_on(run, objective, folder, stopped, **settings)
    return out


def start(config: TrainingConfig) -> Run:
    """Return a run at step 0. Raises CipherDMError if `config.initial` cannot be read or has weights of other shapes."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = config.network()
    if config.initial is not None:
        path = checkout() / config.initial / "diffusion_pytorch_model.safetensors"
        with _remedy(f"{config.name!r} starts from the weights in {path}", "initial"):
            model.load_state_dict(load_file(path))
    about = asdict(config)
    del about["checkpoint_every"]  # how often a checkpoint is written changes nothing that is trained
    return Run(config.name, about, model, torch.optim.Adam, config)


def noise_objective(
    model: UNet2DModel, config: TrainingConfig, digits: Digits, guide: Guide | None = None
) -> Objective:
    """Return the mean square error of the predicted noise (or a teacher's prediction) plus the recipe's penalties."""
    images, levels = torch.from_numpy(digits.images), noise_levels()
    class_ids = _class_ids(digits, config)
    teacher = None
    if config.teacher is not None:
        with _remedy(f"{config.name!r} learns from the model in {config.teacher}", "teacher"):
            folder, given = checkout() / config.teacher, {"low_cpu_mem_usage": False, "local_files_only": True}
            teacher = type(model).from_pretrained(folder, **given)
        teacher = teacher.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    scores = ScoreRecorder(model) if config.score_weight else None
    spreads = SpreadRecorder(model) if config.spread_weight else None
    inner = InnerRecorder(model) if config.inner_weight else None

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
            size = scores.beyond(config.score_bound) if config.score_bound else scores.mean_square()
            minimised = minimised + config.score_weight * size
        if spreads is not None:
            minimised = minimised + config.spread_weight * spreads.fourth_power()
        if inner is not None:
            minimised = minimised + config.inner_weight * inner.beyond(config.inner_bound)
        return minimised, loss

    return objective


def _class_ids(digits: Digits, config: TrainingConfig) -> np.ndarray:
    """Return the position of every label in `config.digits`, int64 [N]."""
    return np.argmax(digits.labels[:, None] == config.digits, axis=1)


def batch_at(config: TrainingConfig, count: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the choices of one step: image rows [B] in range(count), timesteps [B], noise [B, 1, 28, 28] float32.

    They depend on the seed and the step alone, so a resumed run sees what an uninterrupted one would. One timestep comes
    from each of B equal slices of 0..999, which makes the gradient less noisy. With `focus`, timesteps around the
    middle, where digits take shape, come more often.
    """
    generator = np.random.default_rng((config.seed, step))
    rows = generator.integers(0, count, config.batch)
    slices = (np.arange(config.batch) + generator.random(config.batch)) / config.batch
    slices += config.focus * np.sin(2 * np.pi * slices) / (2 * np.pi)  # density 1 / (1 + focus cos(2 pi u)) at u
    timesteps = generator.permutation(np.minimum(slices * 1000, 999).astype(np.int64))
    noise = generator.standard_normal((config.batch, 1, 28, 28), dtype=np.float32)
    return rows, timesteps, noise


def noise_levels() -> tuple[torch.Tensor, torch.Tensor]:
    """Return factors of image and noise per timestep, float32 [1000, 1, 1, 1] each: x_t = first * x + second * noise."""
    kept = scheduler().alphas_cumprod.reshape(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


@contextmanager
def _remedy(use: str, field: str) -> Iterator[None]:
    """Turn errors of reading the weights of `use` into a `CipherDMError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CipherDMError(
            f"{use}, which cannot be used ({error}). Train that model first, or give another folder as {field}."
        ) from error
