"""sd-mini-dp: a pipeline that saw glyphs of fonts first, and then MNIST's digits under differential privacy."""

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cipherdm.datasets import load_mnist
from cipherdm.files import checkout
from cipherdm.records import write_record
from cipherdm.sampling.pipeline import CAPTIONS

from ..export import replacing_files
from ..private_run import PrivateRun, PrivateStage, noise_losses
from ..run import OnStep, go_on, one_thread, stop_requested
from .captions import all_captions, balanced_captions
from .export import assemble
from .networks import encode, scheduler
from .pictures import Source, painted
from .recipe import Optimisation, SDMiniConfig
from .score import load_pipeline
from .text import save_tokenizer, token_ids
from .train import train_sd_mini

_DATA, _PUBLIC = "MNIST's training set", "a pipeline that draws digits of fonts"


@dataclass(frozen=True)
class PrivateSDMiniConfig:
    """A pipeline like sd-mini whose digits are private. Its public part is trained with `public`, and shared by several."""

    name: str
    private: PrivateStage
    public: SDMiniConfig = SDMiniConfig(name="sd-mini-glyphs", source="glyphs")


_PLAN = Optimisation(
    steps=300, batch=4000, learning_rate=1e-3, warmup=10, cooldown=150, ema_decay=0.98, weight_decay=0.0
)
SD_MINI_DP10 = PrivateSDMiniConfig("sd-mini-dp10", PrivateStage(10, _PLAN, sample_rate=1 / 15, draws=1))


def train_private_sd_mini(
    out: str | Path | None = None,
    *,
    config: PrivateSDMiniConfig = SD_MINI_DP10,
    source: Source | None = None,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
    noise_seed: int | None = None,
) -> Path:
    """Train the public pipeline, and its denoiser's attention on private digits; return the folder of the pipeline.

    Arguments and errors are those of `train_sd_mini`; `steps` are those of the private stage. `source` has the private digits,
    MNIST's training set by default; `noise_seed` as in `PrivateRun`. What is private of an image is its digit: size, colours
    and place are drawn anew at each visit.
    """
    if steps is not None:
        config = replace(config, private=config.private.shortened(steps))
    out = checkout() / "data" / "models" / config.name if out is None else Path(out)
    settings = {"resume": resume, "runs": runs, "progress": progress, "on_step": on_step}
    public = load_pipeline(train_sd_mini(Path(runs) / config.public.name / "model", config=config.public, **settings))
    source = Source.of(load_mnist("train")) if source is None else source
    with one_thread(), stop_requested() as stopped:
        about = {"public": asdict(config.public)}
        run = PrivateRun("private", config.private, public.unet, about=about, noise_seed=noise_seed)
        folder = Path(runs) / config.name
        if resume:
            run.restore(folder)
        captions = all_captions()
        with torch.no_grad():
            texts = token_ids(public.tokenizer, [*(caption.text for caption in captions), ""])
            prompts = public.text_encoder(texts).last_hidden_state
        by_digit = [np.array([n for n, each in enumerate(captions) if each.digit == digit]) for digit in range(10)]
        labels = source.labels

        def visit(chosen: torch.Tensor, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            rows = chosen.repeat_interleave(config.private.draws).numpy()
            told = np.array([generator.choice(by_digit[label]) for label in labels[rows]], np.int64)
            pictures = painted(source.ink[rows], [captions[number] for number in told], generator)
            with torch.no_grad():
                latents = public.vae.config.scaling_factor * encode(public.vae, pictures, generator)[0]
            return latents, torch.from_numpy(told)

        kept, none = scheduler().alphas_cumprod, config.public.denoiser.no_caption
        objective = noise_losses(len(labels), config.private.draws, visit, prompts, kept, none, noise_seed)
        go_on(run, objective, folder, stopped, progress=progress, on_step=on_step)
        _export(run, config, public, out)
    return out


def _export(run: PrivateRun, config: PrivateSDMiniConfig, public, out: Path) -> None:
    """Write the pipeline, its statement, captions, card and record. The reader, which saw MNIST, stays outside."""
    statement, unet = run.statement(_DATA, _PUBLIC), copy.deepcopy(run.averaged.module).half()
    with replacing_files(out) as temporary:
        assemble(public.tokenizer, public.text_encoder, public.vae, unet).save_pretrained(temporary)
        save_tokenizer(public.tokenizer, temporary / "tokenizer")
        statement.write(temporary)
        (temporary / CAPTIONS).write_text("".join(f"{caption.text}\n" for caption in balanced_captions(200, seed=1)))
        (temporary / "README.md").write_text(_card(config, statement.text))
        record = {"config": asdict(config), "stages": {"private": {"steps_done": run.step}}}
        write_record(temporary / "training.json", record, timed=False)


def _card(config: PrivateSDMiniConfig, statement: str) -> str:
    return f"""# {config.name}

A diffusers `StableDiffusionPipeline` like sd-mini, with the same captions. Its autoencoder, text model and denoiser were
trained on digits of fonts; then the denoiser's attention on MNIST's training set, by DP-SGD.

- **Training**: `cipherdm train {config.name}`. `training.json` has what was configured, and no loss of private images.
- **On shares**: `cipherdm sample --model {config.name} --prompt "..." --guidance-scale 4`.
- **Data licence**: MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0; DejaVu, STIX and Computer Modern are free fonts.
- **Use**: a teaching and measuring object. MNIST is public: it plays the private data here.

{statement}

`cipherdm privacy {config.name}` computes epsilon anew from `privacy.json`.
"""
