"""Training the private digits: autoencoder and denoiser on glyphs, then the denoiser's attention on MNIST, privately."""

import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from cipherdm.datasets import Digits, load_mnist
from cipherdm.errors import CipherDMError
from cipherdm.files import checkout
from cipherdm.records import write_record

from ..export import replacing_files, write_grid
from ..glyphs.source import DIGITS, LETTERS, Faces, glyph_batch
from ..private_run import PlainRun, PrivateObjective, PrivateRun, noise_losses
from ..run import OnStep, Run, go_on, loss_summary, one_thread, stop_requested
from ..sd_mini.networks import (
    autoencoder_objective,
    build_autoencoder,
    build_denoiser,
    denoiser_objective,
    latent_size,
    scaling_factor,
    scheduler,
)
from ..sd_mini.pictures import MNIST_SIZE, SIZE, Drawn
from ..sd_mini.score import decoded
from ..stages import Stages
from .draw import draw, prompts
from .recipe import CLASSES, PRIVATE_DIGITS, PrivateDigitsConfig

_LOOK_EVERY = 1000
_EMBEDDING = "encoder_hid_proj"  # of classes: what DP-LDM trains besides attention


def train_private_digits(
    name_or_config: str | PrivateDigitsConfig,
    out: str | Path | None = None,
    *,
    private: Digits | None = None,
    faces: Faces = "all",
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
    noise_seed: int | None = None,
) -> Path:
    """Train a recipe (by name) or a configuration, and return the folder of the model, with its statement of privacy.

    Arguments and errors are those of `digits.train`; `steps` are those of the private stage. `private` are the private digits,
    MNIST's training set by default, and `faces` the fonts' faces that are public; `noise_seed` as in `PrivateRun`. Public parts
    have their checkpoints in `runs/SOURCE`, the private one in `runs/NAME`.
    """
    config = PRIVATE_DIGITS[name_or_config] if isinstance(name_or_config, str) else name_or_config
    if steps is not None and config.private is not None:
        config = replace(config, private=config.private.shortened(steps))
    if private is not None and (private.images.shape != (len(private), 1, MNIST_SIZE, MNIST_SIZE) or not len(private)):
        raise CipherDMError(
            f"Private images of shape {private.images.shape} are not like public ones. Give float32 [N, 1, 28, 28], "
            "at least one."
        )
    out = checkout() / "data" / "models" / config.name if out is None else Path(out)
    with one_thread(), stop_requested() as stopped:
        public = _Public(config, Path(runs) / config.source, resume, stopped, progress, on_step, faces)
        autoencoder, factor, run = public.train()
        stages, vae = {"autoencoder": autoencoder, "denoiser": run}, autoencoder.averaged.module
        if config.private is not None:
            private = load_mnist("train") if private is None else private
            run = stages["private"] = further(config, run.averaged.module, noise_seed)
            if resume:
                run.restore(Path(runs) / config.name)
            objective = losses_of(config, encoded(vae, private.images, factor), private.labels, noise_seed)
            go_on(run, objective, Path(runs) / config.name, stopped, progress=progress, on_step=on_step)
        export(run, config, vae, stages, out)
    return out


def further(config: PrivateDigitsConfig, public: UNet2DConditionModel, noise_seed: int | None = None) -> Run:
    """Return the run of the private stage, at step 0, from what public data left."""
    model, stage = copy.deepcopy(public).requires_grad_(True), config.private
    settings = {"also": [_EMBEDDING], "about": {"source": config.source, "seed": config.seed}}
    if stage.epsilon is None:
        return PlainRun("private", stage, model, **settings)
    return PrivateRun("private", stage, model, **settings, noise_seed=noise_seed)


def losses_of(
    config: PrivateDigitsConfig, latents: torch.Tensor, labels: np.ndarray, seed: int | None = None
) -> PrivateObjective:
    """Return the losses of private latents [N, 4, 4, 4] with classes [N]; a seed is for tests."""
    draws, classes = config.private.draws, torch.from_numpy(labels)

    def visit(chosen: torch.Tensor, _: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = chosen.repeat_interleave(draws)
        return latents[rows], classes[rows]

    kept, none = scheduler().alphas_cumprod, config.denoiser.no_caption
    return noise_losses(len(labels), draws, visit, prompts(), kept, none, seed)


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, images: np.ndarray, factor: float) -> torch.Tensor:
    """Return scaled latents [N, 4, 4, 4], the means, of images [N, 1, 28, 28]."""
    parts = torch.from_numpy(images).split(500)
    return factor * torch.cat([autoencoder.encode(framed(part)).latent_dist.mean for part in parts])


def framed(images: torch.Tensor) -> torch.Tensor:
    """Return images [N, 1, 28, 28] with two pixels of black around them."""
    edge = (SIZE - MNIST_SIZE) // 2
    return nn.functional.pad(images, (edge,) * 4, value=-1.0)


def glyphs(source: str, faces: Faces) -> Drawn:
    """Return what draws framed glyphs, and their classes."""
    classes, first = (LETTERS, 10) if source == "letters" else (DIGITS + LETTERS, 0)

    def drawn(generator: np.random.Generator, count: int) -> tuple[torch.Tensor, np.ndarray]:
        labels = generator.integers(len(classes), size=count)
        return framed(glyph_batch(classes, labels, generator, part=faces)), first + labels

    return drawn


@dataclass(frozen=True)
class _Public(Stages):
    """The parts that see no private image."""

    faces: Faces

    def train(self) -> tuple[Run, float, Run]:
        """Return the autoencoder, its scaling factor, and the denoiser, trained."""
        config, drawn = self.config, glyphs(self.config.source, self.faces)
        autoencoder = self.start("autoencoder", partial(build_autoencoder, config.autoencoder), faces=self.faces)
        pictures, _ = drawn(np.random.default_rng(config.seed), 200)

        def look(model: AutoencoderKL, step: int) -> dict[str, float]:
            again = decoded(model, pictures)
            pairs = torch.stack([pictures[:40], again[:40]], dim=1).flatten(0, 1)
            write_grid(pairs.numpy(), self.folder / f"decoded-{step:06d}.png")
            error = float((again - pictures).square().mean())
            return {"mean_square_error": error, "scaling_factor": scaling_factor(model, drawn)}

        self.go_on(autoencoder, autoencoder_objective(config.autoencoder, drawn), look, every=_LOOK_EVERY)
        factor, vae = autoencoder.scores[-1]["scaling_factor"], autoencoder.averaged.module
        vae.register_to_config(scaling_factor=factor)
        build = partial(build_denoiser, config.denoiser, latent_size(config.autoencoder), config.width, CLASSES + 1)
        denoiser = self.start("denoiser", build, scaling_factor=factor, faces=self.faces)

        def sheet(model: UNet2DConditionModel, step: int) -> dict[str, float]:
            images = draw(model, vae, np.repeat(np.arange(CLASSES), 4), steps=20)
            write_grid(images, self.folder / f"drawn-{step:06d}.png", columns=12)
            return {}

        objective = denoiser_objective(config.denoiser, drawn, prompts(), vae, factor)
        self.go_on(denoiser, objective, sheet, every=_LOOK_EVERY)
        return autoencoder, factor, denoiser


def export(run: Run, config: PrivateDigitsConfig, vae: AutoencoderKL, stages: dict[str, Run], out: Path) -> None:
    """Write denoiser (in half precision), autoencoder, scheduler, statement, card and record to `out`: nothing of the data."""
    fonts = "letters of fonts" if config.source == "letters" else "letters and digits of fonts"
    told = {
        name: {**loss_summary(each, 100), "scores": each.scores}
        if each.losses
        else {"steps_done": each.step}  # the time follows from the private batches
        for name, each in stages.items()
    }
    with replacing_files(out) as temporary:
        copy.deepcopy(run.averaged.module).half().save_pretrained(temporary / "unet")
        vae.save_pretrained(temporary / "vae")
        scheduler().save_config(temporary / "scheduler")
        text = "Nothing is promised about the data that it learnt from."
        if isinstance(run, PrivateRun):
            statement = run.statement("MNIST's training set", f"a model of {fonts}")
            statement.write(temporary)
            text = f"{statement.text}\n\n`cipherdm privacy {config.name}` computes epsilon anew from `privacy.json`."
        (temporary / "README.md").write_text(_card(config, text, fonts))
        contents = {"config": asdict(config), "stages": told}
        write_record(temporary / "training.json", contents, timed=not isinstance(run, PrivateRun))


def _card(config: PrivateDigitsConfig, statement: str, fonts: str) -> str:
    """Return the model card, in Markdown."""
    stage, way = config.private, "nothing"
    if stage is not None:
        by = "Adam, without privacy" if stage.epsilon is None else "DP-SGD"
        way = f"MNIST's training set, in {stage.optimisation.steps:,} steps of {by}"
    return f"""# {config.name}

A latent diffusion model that draws digits and letters by class: diffusers' `UNet2DConditionModel` on latents of 4 x 4 x 4, and
`AutoencoderKL`. A prompt is one token of {CLASSES + 1} numbers, with a 1 at the class: 0 to 9 are digits, 10 to 35 letters, and
{CLASSES} is no class, for classifier-free guidance.

- **Public**: {fonts}, bent anew for each batch (`cipherdm_experiments.training.glyphs`). The autoencoder has seen nothing else.
- **Private**: {way}.
- **Training**: `cipherdm train {config.name}`. `training.json` has what was configured, and no loss of private images.
- **Data licence**: MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0; DejaVu, STIX and Computer Modern are free fonts.
- **Use**: a teaching and measuring object. MNIST is public: it plays the private data here.

{statement}
"""
