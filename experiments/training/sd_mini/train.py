"""Training sd-mini: reader, autoencoder, text model and denoiser in turn, then the pipeline's folder."""

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cipherdm.datasets import load_mnist

from ..attention_scores import ScoreRecorder
from ..classifier import LeNet
from ..run import Run, go_on, stop_requested, torch_threads
from .autoencoder import autoencoder_objective, build_autoencoder, scaling_factor
from .captions import all_captions, balanced_captions
from .denoiser import build_denoiser, denoiser_objective
from .digit_reader import build_reader, reader_objective
from .export import assemble, export, write_grid
from .pictures import SIZE, Source, compose
from .recipe import Objective, SDMiniConfig
from .score import decoded, draw, scores
from .text import CaptionModel, embeddings, text_objective, understood
from .tokenizer import build_tokenizer

_LOOK_EVERY = 500  # steps of the denoiser between two looks at what it draws,

_LOOK_COUNT = 60  # pictures,

_LOOK_STEPS = 15  # in so many steps

OnStep = Callable[[str, int, float], None]


def train_sd_mini(
    out: str | Path | None = None,
    *,
    config: SDMiniConfig | None = None,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    threads: int = 1,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Path:
    """Train all parts of sd-mini, and return the folder with the pipeline, `data/models/sd-mini` by default.

    `runs/sd-mini/` holds a checkpoint of each part, rewritten every two minutes, and pictures drawn on the way. With `resume`
    finished parts are kept and the others continued, on the batches that an uninterrupted run would see. `steps` replaces
    the denoiser's count, also of one that is under way; the last third of them lower the learning rate. `data` is the MNIST
    folder. `on_step(part, step, loss)` is called after each step. Ctrl-C (and SIGTERM) ends after the current step with a
    checkpoint, and raises KeyboardInterrupt.

    Raises CipherDMError for bad data, a count of steps below 1, a checkpoint that is damaged or of another configuration, and
    a loss that is not finite.
    """
    config = SDMiniConfig() if config is None else config
    if steps is not None:
        config = _with_steps(config, steps)
    out = Path("data/models") / config.name if out is None else Path(out)
    source, held_out = (Source.of(load_mnist(part, folder=data)) for part in ("train", "test"))
    with torch_threads(threads), stop_requested() as stopped:
        _train(_Session(config, Path(runs) / config.name, source, held_out, resume, stopped, progress, on_step), out)
    return out


@dataclass(frozen=True)
class _Session:
    """Settings and data that all parts are trained with."""

    config: SDMiniConfig
    folder: Path
    source: Source
    held_out: Source
    resume: bool
    stopped: threading.Event
    progress: bool
    on_step: OnStep | None

    def start(self, name: str, build: Callable[[], nn.Module], **more: Any) -> Run:
        """The run of that part in its last state, from `build` if there is none; `more` is what else it depends on."""
        own, seed = getattr(self.config, name), self.config.seed
        optimisation = own.optimisation
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build()
        settings = {"lr": optimisation.learning_rate, "weight_decay": optimisation.weight_decay, "betas": (0.9, 0.99)}
        run = Run.start(
            name,
            about(own, seed=seed, **more),
            model,
            partial(torch.optim.AdamW, **settings),
            rate=optimisation.rate,
            steps=optimisation.steps,
            ema_decay=optimisation.ema_decay,
            clip_norm=optimisation.clip_norm,
        )
        if self.resume:
            run.restore(self.folder)
        return run

    def go_on(self, run: Run, objective: Objective, **looking: Any) -> None:
        """Take the steps that are left, on batches that depend on the seed, the part and the step alone."""

        def at_step(model: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            loss = objective(model, np.random.default_rng((self.config.seed, *run.name.encode(), step)))
            return loss, loss

        settings = {"progress": self.progress, "on_step": self.on_step, **looking}
        go_on(run, at_step, self.folder, self.stopped, **settings)


def _train(session: _Session, out: Path) -> None:
    config, captions = session.config, all_captions()
    reader = _reader(session)
    autoencoder = _autoencoder(session, reader.averaged.module)
    factor = autoencoder.scores[-1]["scaling_factor"]
    autoencoder.averaged.module.register_to_config(scaling_factor=factor)

    tokenizer = build_tokenizer(config.text.tokens)
    text = session.start("text", lambda: CaptionModel(config.text, tokenizer))

    def look(run: Run) -> None:
        run.scores.append({"step": run.step, "understood": understood(run.averaged.module, tokenizer, captions)})

    session.go_on(text, text_objective(config.text, tokenizer, captions), visit=look)
    encoder = text.averaged.module.text
    prompts = embeddings(encoder, tokenizer, [*(caption.text for caption in captions), ""])

    latent = (config.autoencoder.latent_channels, SIZE // 2 ** (len(config.autoencoder.block_out_channels) - 1))
    denoiser = session.start(
        "denoiser", lambda: build_denoiser(config.denoiser, latent, config.text.width), scaling_factor=factor
    )
    pipeline = assemble(tokenizer, encoder, autoencoder.averaged.module, denoiser.averaged.module)

    def look_at_pictures(run: Run) -> None:
        wanted = balanced_captions(_LOOK_COUNT, seed=run.step)
        pictures = draw(pipeline, wanted, steps=_LOOK_STEPS)
        run.scores.append({"step": run.step, **scores(pictures, wanted, reader.averaged.module)})
        write_grid(pictures, session.folder / f"drawn-{run.step:06d}.png")

    attention = ScoreRecorder(denoiser.model)
    objective = denoiser_objective(
        config.denoiser, session.source, captions, prompts, autoencoder.averaged.module, factor, attention
    )
    session.go_on(denoiser, objective, every=_LOOK_EVERY, visit=look_at_pictures)
    export(pipeline, reader.averaged.module, config, [reader, autoencoder, text, denoiser], out)


def _reader(session: _Session) -> Run:
    """The judge of all pictures, first; its scores are those of pictures composed from images that it has not seen."""
    run = session.start("reader", build_reader)
    captions = balanced_captions(1000)
    pictures = compose(session.held_out, captions, np.random.default_rng(session.config.seed))

    def look(run: Run) -> None:
        run.scores.append({"step": run.step, **scores(pictures, captions, run.averaged.module)})

    session.go_on(run, reader_objective(session.config.reader, session.source), visit=look)
    return run


def _autoencoder(session: _Session, reader: LeNet) -> Run:
    """Train the autoencoder. Its scores are of held-out images, encoded and decoded: the reader's, and the mean square error.

    The scaling factor stands among them, so the denoiser finds this very number again after an interruption.
    """
    own = session.config.autoencoder
    run = session.start("autoencoder", lambda: build_autoencoder(own))
    captions = balanced_captions(200)
    pictures = compose(session.held_out, captions, np.random.default_rng(session.config.seed))

    def look(run: Run) -> None:
        again = decoded(run.averaged.module, pictures)
        found = {
            "step": run.step,
            "mean_square_error": float((again - pictures).square().mean()),
            "scaling_factor": scaling_factor(run.averaged.module, session.source, all_captions()),
        }
        run.scores.append(found | scores(again, captions, reader))
        pairs = torch.stack([pictures[:40], again[:40]], dim=1).flatten(0, 1)
        write_grid(pairs, session.folder / f"decoded-{run.step:06d}.png")

    session.go_on(run, autoencoder_objective(own, session.source, all_captions()), every=_LOOK_EVERY, visit=look)
    return run


def about(config: Any, **more: Any) -> dict[str, Any]:
    """Values that a part's training depends on. How long it goes on may change while it is under way, and so is left out."""
    fields = dataclasses.asdict(config)
    optimisation = fields.pop("optimisation")
    kept = {name: value for name, value in optimisation.items() if name not in ("steps", "cooldown")}
    values = {**fields, **kept, **more}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _with_steps(config: SDMiniConfig, steps: int) -> SDMiniConfig:
    optimisation = dataclasses.replace(config.denoiser.optimisation, steps=steps, cooldown=max(1, steps // 3))
    return dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, optimisation=optimisation))
