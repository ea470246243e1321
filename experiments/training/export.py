"""Leaving a diffusers folder and sample grids behind."""

import copy
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from cipherdm.errors import CipherDMError
from cipherdm.files import data, replacing
from cipherdm.records import write_record

from .recipes import TrainingConfig, scheduler
from .run import Run, loss_summary


def export(run: Run, config: TrainingConfig, images: int, out: Path) -> None:
    """Write the averaged weights, of so many training images, as a diffusers folder with a card and the training record."""
    record = {"config": asdict(config), "training_images": images, **loss_summary(run, 500)}
    with replacing_files(out) as temporary:
        model = copy.deepcopy(run.averaged.module)
        (model.half() if config.half else model).save_pretrained(temporary)
        scheduler().save_config(temporary)
        (temporary / "README.md").write_text(_card(run, config, images))
        write_record(temporary / "training.json", record)


@contextmanager
def replacing_files(out: Path) -> Iterator[Path]:
    """Yield an empty folder, and move each of its files into `out` at the end. Nothing else in `out` is touched."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
        temporary = Path(name)
        yield temporary
        for config in temporary.rglob("config.json"):  # in which diffusers notes the folder on this machine
            told = json.loads(config.read_text())
            if told.pop("_name_or_path", None) is not None:
                config.write_text(json.dumps(told, indent=2) + "\n")
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = out / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(file, 0o644)
            os.replace(file, target)


def trained(name: str, runs: str | Path = "runs") -> Path:
    """Return the folder of a model: of data/models, or of the run that trained it. Raises CipherDMError if there is none."""
    for folder in (data() / "models" / name, Path(runs) / name / "model", Path(name)):
        if any((folder / file).is_file() for file in ("config.json", "model_index.json", "unet/config.json")):
            return folder
    raise CipherDMError(f"There is no model {name}: `cipherdm train {name}` makes it.")


def write_grid(images: np.ndarray, path: Path, *, columns: int = 10) -> None:
    """Write images [N, C, H, W] in [-1, 1], grey (C = 1) or coloured (C = 3), as a PNG with rows of `columns`."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * columns, channels, height, width), np.float32)
    sheet[:count] = (np.clip(images, -1, 1) + 1) / 2
    sheet = sheet.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    with replacing(path) as temporary:
        imsave(temporary, sheet if channels == 3 else sheet[:, :, 0], cmap="gray", vmin=0, vmax=1)


def _card(run: Run, config: TrainingConfig, images: int) -> str:
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    digits = ", ".join(map(str, config.digits))
    start = f"It started from the weights of `{config.initial}`." if config.initial else ""
    if config.guidance:
        start += f"\n  The target leans towards plain members of the class (classifier guidance of {config.guidance}, learnt)."
    if config.teacher:
        start += f"\n  The target is the prediction of `{config.teacher}` (distillation)."
    name = type(run.model).__name__
    kind, library, load = f"A diffusers `{name}`", f"from diffusers import {name}", f"{name}.from_pretrained"
    given = run.model.config
    if "quad" in given.get("act_fn", given.get("activation_fn")):  # diffusers refuses our functions
        kind = f"A `{name}`, but for its activation{' and its attention' * ('attention_kernel' in given)},"
        library, load = "import cipherdm as cdm", "cdm.load_unet"
    return f"""# {config.name}

{kind} that draws MNIST digits ({digits}) by request: class ids 0 to {len(config.digits) - 1}
stand for these digits in this order. {parameters:,} parameters; {config.size}.

- **Schedule**: 1000 steps, linear betas 1e-4 to 0.02, the model predicts the noise; nothing is clipped while sampling.
- **Training**: `cipherdm train {config.name}`, {run.step} of {config.steps} steps, each of {config.batch} of
  {images:,} images (MNIST's training set, pixels in [-1, 1]), Adam, learning rate {config.learning_rate}
  with {config.warmup} steps of warm-up and a cosine, seed {config.seed}. {start}
  These are the averaged weights (decay {config.ema_decay}).
  `training.json` has the loss, the time, the machine and the versions.
- **Data licence**: MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0.
- **Use**: a teaching and measuring object. It knows nothing but MNIST digits.

```python
{library}

model = {load}("data/models/{config.name}")
```
"""
