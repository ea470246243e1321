"""A plain ControlNet of a split one: diffusers loads it, and three parties compute with it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import nn
from torch.nn import functional

from cipherdm.errors import CipherDMError
from cipherdm.files import checkout
from cipherdm.split import SplitControlNetModel, encoded, load_base, load_split_pipeline

from ..export import trained
from ..glyphs import glyph_digits
from ..run import OnStep, loss_summary, one_thread, stop_requested
from ..sd_mini.captions import all_captions
from ..sd_mini.pictures import Source
from ..sd_mini.score import reader_of
from ..stages import Stages
from .export import controlled_pipeline, export
from .hints import controlled
from .recipe import SD_MINI_DP10_CONTROL, PlainControlConfig
from .score import HeldOut
from .train import without_prompt


def train_plain_control(
    out: str | Path | None = None,
    *,
    config: PlainControlConfig = SD_MINI_DP10_CONTROL,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Path:
    """Make a split ControlNet a plain one, and return the folder of its pipeline.

    Without the activation, the first convolution of a split network reads the sum of noisy latents and the hint's latents, so
    it adds up what it makes of either: a plain network whose hint encoder gives the second part is the same network. The
    encoder learns that from outlines of public fonts alone. Arguments and errors are those of `train_sd_mini`.

    Raises:
        CipherDMError: the split network has the activation, which no plain one computes.
    """
    if steps is not None:
        optimisation = replace(config.encoder.optimisation, steps=steps, cooldown=max(1, steps // 2))
        config = replace(config, encoder=replace(config.encoder, optimisation=optimisation))
    out = checkout() / "data" / "models" / config.name if out is None else Path(out)
    home, folder = trained(config.split.base, runs), trained(config.split.name, runs)
    base, split = load_base(home), load_split_pipeline(folder).controlnet
    if split.config.split_activation:
        raise CipherDMError(f"{folder} has the activation of split learning: train it with Defences(activation=False).")
    with one_thread(), stop_requested() as stopped:
        stages = Stages(config, Path(runs) / config.name, resume, stopped, progress, on_step)
        start = partial(without_prompt, base, config.encoder.hint_channels)
        run = stages.start("encoder", lambda: start().controlnet_cond_embedding)
        source, captions = Source.of(glyph_digits(10_000)), all_captions()

        def objective(encoder: nn.Module, generator: np.random.Generator) -> torch.Tensor:
            rows = generator.integers(len(captions), size=config.encoder.optimisation.batch)
            hints = controlled(source, [captions[row] for row in rows], generator)[1].contiguous()
            return (encoder(hints) - told_by_autoencoder(split, base.vae, hints)).square().mean()

        stages.go_on(run, objective, lambda _, __: {})
        plain = as_plain(split, start())
        plain.controlnet_cond_embedding.load_state_dict(run.averaged.module.state_dict())
        pipeline, held_out = controlled_pipeline(base, plain), HeldOut.of(config.split.judged, reader_of(home), every=2)
        found = held_out.score(held_out.drawn(pipeline))
        export(pipeline, held_out, config, {"encoder": loss_summary(run, 100), "scores": [found]}, home, out)
    return out


def as_plain(split: SplitControlNetModel, plain: ControlNetModel) -> ControlNetModel:
    """Give a plain ControlNet that reads no prompt the weights of a split one, all but the hint encoder's."""
    own = {name for name in plain.state_dict() if name.startswith("controlnet_cond_embedding")}
    own |= {
        name for name in plain.state_dict() if name.endswith("attn2.to_v.weight")
    }  # zeros, as is the split one's context
    plain.load_state_dict(plain.state_dict() | {k: v for k, v in split.state_dict().items() if k not in own})
    return plain


@torch.no_grad()
def told_by_autoencoder(split: SplitControlNetModel, autoencoder: nn.Module, hints: torch.Tensor) -> torch.Tensor:
    """Return what the first convolution makes of the latents of hints [B, 3, H, W], without its bias: [B, width, h, w]."""
    return functional.conv2d(encoded(autoencoder, 2 * hints - 1), split.conv_in.weight, padding=split.conv_in.padding)
