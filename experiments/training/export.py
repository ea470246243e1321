"""Leaving a diffusers folder and sample grids behind."""

import os
import tempfile
from pathlib import Path

import numpy as np
from diffusers import UNet2DModel

from cipherdm.files import replacing
from cipherdm.records import write_record

from .evaluation import diffusers_sampler
from .recipes import TrainingConfig, scheduler
from .run import Run, loss_summary

_DIFFUSERS_USAGE = """from diffusers import UNet2DModel

unet = UNet2DModel.from_pretrained("data/models/{name}")"""

# The weights are for a quadratic activation and attention without softmax, which diffusers refuses to load by their names.
_OWN_USAGE = """import cipherdm as cdm

unet = cdm.load_unet("data/models/{name}")"""


def export(run: Run, config: TrainingConfig, images: int, out: Path) -> None:
    """Write the averaged weights as a diffusers folder `out`, with a model card and the training record.

    `images` is the number of training images. Each file is replaced whole, and nothing else in `out` is touched.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
        temporary = Path(name)
        run.averaged.module.save_pretrained(temporary)
        scheduler().save_config(temporary)
        (temporary / "README.md").write_text(_card(run, config, images))
        write_record(temporary / "training.json", _record(run, config, images))
        for file in sorted(temporary.iterdir()):
            os.replace(file, out / file.name)


def write_grid(model: UNet2DModel, config: TrainingConfig, path: Path, *, per_digit: int = 8, steps: int = 25) -> None:
    """Write a PNG with one row of `per_digit` DDIM samples of a model per class."""
    from matplotlib.image import imsave

    classes = len(config.digits)
    labels = np.repeat(np.arange(classes), per_digit)
    images = diffusers_sampler(model, steps=steps)(labels, config.seed)
    grid = images.reshape(classes, per_digit, 28, 28).transpose(0, 2, 1, 3).reshape(classes * 28, per_digit * 28)
    with replacing(path) as temporary:
        imsave(temporary, grid, cmap="gray", vmin=-1, vmax=1)


def _record(run: Run, config: TrainingConfig, images: int) -> dict[str, object]:
    return {"config": config.as_json(), "training_images": images, **loss_summary(run, 500)}


def _card(run: Run, config: TrainingConfig, images: int) -> str:
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    digits = ", ".join(map(str, config.digits))
    start = f"It started from the weights of `{config.initial}`." if config.initial else ""
    if config.guidance:
        start += f"\n  The target leans towards plain members of the class (classifier guidance of {config.guidance}, learnt)."
    if config.teacher:
        start += f"\n  The target is the prediction of `{config.teacher}` (distillation)."
    blocks = ", ".join(config.down_block_types)
    kind, usage = "A diffusers `UNet2DModel`", _DIFFUSERS_USAGE
    if config.act_fn == "quad":
        kind, usage = "A `UNet2DModel`, but for its activation and its attention,", _OWN_USAGE
    return f"""# {config.name}

{kind} that draws MNIST digits ({digits}) by request: class ids 0 to {len(config.digits) - 1}
stand for these digits in this order. {parameters:,} parameters; channels
{config.block_out_channels}, {config.layers_per_block} residual block(s) a level, {blocks}, activation {config.act_fn}.

- **Schedule**: 1000 steps, linear betas 1e-4 to 0.02, the model predicts the noise; nothing is clipped while sampling.
- **Training**: `cipherdm train {config.name}`, {run.step} of {config.steps} steps, each of {config.batch} of
  {images:,} images (MNIST's training set, pixels in [-1, 1]), Adam, learning rate {config.learning_rate}
  with {config.warmup} steps of warm-up and a cosine, seed {config.seed}. {start}
  These are the averaged weights (decay {config.ema_decay}).
  `training.json` has the loss, the time, the machine and the versions.
- **Data licence**: MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0.
- **Use**: a teaching and measuring object. It knows nothing but MNIST digits.

```python
{usage.format(name=config.name)}
```
"""
