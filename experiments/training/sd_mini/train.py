"""Training sd-mini: reader, autoencoder, text model and denoiser in turn, then the pipeline's folder."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from cipherdm.datasets import load_mnist
from cipherdm.files import checkout

from ..classifier import LeNet, load_classifier
from ..export import write_grid
from ..glyphs import glyph_digits
from ..modules import ScoreRecorder
from ..run import OnStep, Run, one_thread, stop_requested
from ..stages import Stages
from .captions import all_captions, balanced_captions
from .export import assemble, export
from .networks import (
    autoencoder_objective,
    build_autoencoder,
    build_denoiser,
    denoiser_objective,
    latent_size,
    scaling_factor,
)
from .pictures import Source, captioned, compose
from .reader import agreement, read, reader_objective
from .recipe import SDMiniConfig
from .score import decoded, draw
from .text import CaptionModel, build_tokenizer, text_objective, token_ids, understood

_LOOK_EVERY = 500  # steps between two looks at what the denoiser draws, or the autoencoder decodes


def train_sd_mini(
    out: str | Path | None = None,
    *,
    config: SDMiniConfig | None = None,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Path:
    """Train all parts of sd-mini, and return the folder with the pipeline, `data/models/sd-mini` by default.

    Arguments and errors are those of `digits.train`. `runs/sd-mini/` holds a checkpoint of each part and pictures drawn on the
    way. `steps` replaces the denoiser's count, also of one under way; the last third of them lower the learning rate.
    """
    config = SDMiniConfig() if config is None else config
    if steps is not None:
        optimisation = replace(config.denoiser.optimisation, steps=steps, cooldown=max(1, steps // 3))
        config = replace(config, denoiser=replace(config.denoiser, optimisation=optimisation))
    out = checkout() / "data" / "models" / config.name if out is None else Path(out)
    mnist = config.source == "mnist"
    digits = map(load_mnist, ("train", "test")) if mnist else (glyph_digits(), glyph_digits(10_000, seed=1))
    source, held_out = map(Source.of, digits)
    with one_thread(), stop_requested() as stopped:
        _train(_Session(config, Path(runs) / config.name, resume, stopped, progress, on_step, source, held_out), out)
    return out


@dataclass(frozen=True)
class _Session(Stages):
    """Settings and data that all parts are trained with."""

    source: Source
    held_out: Source


def _train(session: _Session, out: Path) -> None:
    config, captions = session.config, all_captions()
    # A model of public glyphs shall have seen nothing of MNIST, which may be private later.
    reader = session.start("reader", load_classifier if config.source == "mnist" else LeNet)
    wanted = balanced_captions(1000)
    pictures = compose(session.held_out, wanted, np.random.default_rng(config.seed))
    objective = reader_objective(config.reader, session.source)
    session.go_on(reader, objective, lambda model, _: agreement(read(pictures, model), wanted))

    autoencoder = _autoencoder(session, reader.averaged.module)
    factor = autoencoder.scores[-1]["scaling_factor"]
    autoencoder.averaged.module.register_to_config(scaling_factor=factor)

    tokenizer = build_tokenizer(config.text.tokens)
    text = session.start("text", lambda: CaptionModel(config.text, tokenizer))
    objective = text_objective(config.text, tokenizer, captions)
    session.go_on(text, objective, lambda model, _: {"understood": understood(model, tokenizer, captions)})
    encoder = text.averaged.module.text
    with torch.no_grad():
        prompts = encoder(token_ids(tokenizer, [*(caption.text for caption in captions), ""])).last_hidden_state

    latent = latent_size(config.autoencoder)
    denoiser = session.start(
        "denoiser", lambda: build_denoiser(config.denoiser, latent, config.text.width), scaling_factor=factor
    )
    pipeline = assemble(tokenizer, encoder, autoencoder.averaged.module, denoiser.averaged.module)

    def look(_: nn.Module, step: int) -> dict[str, float]:
        wanted = balanced_captions(60, seed=step)
        pictures = draw(pipeline, wanted, steps=15)
        write_grid(pictures.numpy(), session.folder / f"drawn-{step:06d}.png")
        return agreement(read(pictures, reader.averaged.module), wanted)

    attention = ScoreRecorder(denoiser.model)
    objective = denoiser_objective(
        config.denoiser, captioned(session.source, captions), prompts, autoencoder.averaged.module, factor, attention
    )
    session.go_on(denoiser, objective, look, every=_LOOK_EVERY)
    export(pipeline, reader.averaged.module, config, [reader, autoencoder, text, denoiser], out)


def _autoencoder(session: _Session, reader: LeNet) -> Run:
    """Train the autoencoder. Its scores have the scaling factor, so the denoiser finds it again after an interruption."""
    own = session.config.autoencoder
    run = session.start("autoencoder", lambda: build_autoencoder(own))
    captions, drawn = balanced_captions(200), captioned(session.source, all_captions())
    pictures = compose(session.held_out, captions, np.random.default_rng(session.config.seed))

    def look(model: AutoencoderKL, step: int) -> dict[str, float]:
        again = decoded(model, pictures)
        pairs = torch.stack([pictures[:40], again[:40]], dim=1).flatten(0, 1)
        write_grid(pairs.numpy(), session.folder / f"decoded-{step:06d}.png")
        return {
            "mean_square_error": float((again - pictures).square().mean()),
            "scaling_factor": scaling_factor(model, drawn),
            **agreement(read(again, reader), captions),
        }

    session.go_on(run, autoencoder_objective(own, drawn), look, every=_LOOK_EVERY)
    return run
