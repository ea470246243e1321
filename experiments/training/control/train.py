"""Training sd-mini-control: a ControlNet that diffusers loads by itself, in one place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from torch import nn

from cipherdm.datasets import load_mnist
from cipherdm.files import checkout
from cipherdm.models import find_model
from cipherdm.split import embedded, load_base

from ..run import OnStep, loss_summary, one_thread, stop_requested
from ..sd_mini.captions import all_captions
from ..sd_mini.networks import encode, noised
from ..sd_mini.pictures import Source
from ..sd_mini.recipe import Objective
from ..sd_mini.score import reader_of
from ..stages import Stages
from .export import controlled_pipeline, export
from .hints import controlled
from .recipe import SD_MINI_CONTROL, ControlConfig, ControlNetConfig
from .score import HeldOut

LOOK_EVERY = 250  # steps between two looks at what is drawn


def train_control(
    out: str | Path | None = None,
    *,
    config: ControlConfig = SD_MINI_CONTROL,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Path:
    """Train a plain ControlNet, and return the folder of its pipeline. Arguments and errors are those of `train_sd_mini`."""
    if steps is not None:
        optimisation = replace(config.controlnet.optimisation, steps=steps, cooldown=max(1, steps // 2))
        config = replace(config, controlnet=replace(config.controlnet, optimisation=optimisation))
    out = checkout() / "data" / "models" / config.name if out is None else Path(out)
    folder = find_model(config.base)
    base, held_out = load_base(folder), HeldOut.of(config.judged, reader_of(folder))
    with one_thread(), stop_requested() as stopped:
        stages = Stages(config, Path(runs) / config.name, resume, stopped, progress, on_step)
        run = stages.start("controlnet", lambda: without_prompt(base, config.controlnet.hint_channels))
        pipeline = controlled_pipeline(base, run.averaged.module)

        def look(_: nn.Module, step: int) -> dict[str, float]:
            pictures = held_out.drawn(pipeline)
            held_out.sheet(pictures, stages.folder / f"drawn-{step:06d}.png")
            return held_out.score(pictures)

        objective = control_objective(config.controlnet, base, Source.of(load_mnist("train")))
        stages.go_on(run, objective, look, every=LOOK_EVERY)
        told = {"controlnet": loss_summary(run, 100) | {"scores": run.scores}}
        export(pipeline, held_out, config, told, folder, out)
    return out


def without_prompt(base: StableDiffusionPipeline, hint_channels: tuple[int, ...]) -> ControlNetModel:
    """Return a ControlNet that adds nothing yet, and whatever prompt it is given reads none.

    Its cross-attentions have no values, so each gives the bias of its last layer, in diffusers too; `hide_prompt` says so to
    this package, which then does not compute them.
    """
    made = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=hint_channels)
    made.register_to_config(hide_prompt=True)
    for name, weight in made.named_parameters():
        if name.endswith("attn2.to_v.weight"):
            nn.init.zeros_(weight).requires_grad_(False)
    return made


def control_objective(config: ControlNetConfig, base: StableDiffusionPipeline, source: Source) -> Objective:
    """Return the mean square error of the noise that the frozen U-Net predicts with the ControlNet, on fresh pictures."""
    captions, batch = all_captions(), config.optimisation.batch
    prompts = embedded(base, [*(caption.text for caption in captions), ""])
    none, unet = prompts.new_zeros(batch, 1, prompts.shape[-1]), base.unet.to(memory_format=torch.channels_last)

    def objective(model: nn.Module, generator: np.random.Generator) -> torch.Tensor:
        rows = generator.integers(len(captions), size=batch)
        pictures, hints = controlled(source, [captions[row] for row in rows], generator)
        with torch.no_grad():
            latents = base.vae.config.scaling_factor * encode(base.vae, pictures, generator)[0]
        noisy, noise, timesteps = noised(latents, generator)
        shown = np.where(generator.random(batch) < config.no_caption, len(captions), rows)
        down, middle = model(noisy, timesteps, none, hints.contiguous(), return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return (unet(noisy, timesteps, prompts[shown], **added).sample - noise).square().mean()

    return objective
