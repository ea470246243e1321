"""Leaving the folder of a pipeline with a ControlNet behind."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from matplotlib.image import imsave

from cipherdm.datasets import Digits, load_mnist
from cipherdm.private.statement import FILE as STATEMENT
from cipherdm.records import write_record
from cipherdm.sampling.pipeline import CAPTIONS, HINTS
from cipherdm.split import SplitControlNetModel

from ..classifier import save_classifier
from ..export import replacing_files
from ..glyphs import glyph_digits
from ..sd_mini.captions import balanced_captions
from ..sd_mini.pictures import Source
from ..sd_mini.score import READER, decoded
from ..sd_mini.text import save_tokenizer
from .hints import controlled
from .recipe import ControlConfig, PlainControlConfig, SplitControlConfig
from .score import HeldOut

_KNOWN = 64  # captions and hints that the owner calibrates with


def controlled_pipeline(
    base: StableDiffusionPipeline, controlnet: ControlNetModel
) -> StableDiffusionControlNetPipeline:
    """Return the pipeline of a base and its ControlNet, which share all parts with it."""
    parts = base.components | {"controlnet": controlnet}
    pipeline = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    if isinstance(controlnet, SplitControlNetModel):
        controlnet.use_autoencoder(base.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(
    pipeline: StableDiffusionControlNetPipeline,
    held_out: HeldOut,
    config: ControlConfig | SplitControlConfig | PlainControlConfig,
    record: Mapping[str, Any],
    base: Path,
    out: Path,
) -> None:
    """Write a pipeline with the weights of U-Net and ControlNet in half precision, what it is calibrated with, card and record.

    The record gets the bounds: the score of the held-out pictures after the autoencoder. Where the pipeline in `base` has a
    statement of privacy, nothing of MNIST comes along: hints are outlines of fonts' digits, and the reader stays outside.
    """
    unet, controlnet = (copy.deepcopy(each).half() for each in (pipeline.unet, pipeline.controlnet))
    bounds = held_out.score(decoded(pipeline.vae, held_out.pictures))
    with replacing_files(out) as temporary:
        parts = pipeline.components | {"unet": unet, "controlnet": controlnet}
        StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False).save_pretrained(temporary)
        save_tokenizer(pipeline.tokenizer, temporary / "tokenizer")
        stated = (base / STATEMENT).is_file()
        if stated:
            (temporary / STATEMENT).write_bytes((base / STATEMENT).read_bytes())
        else:
            save_classifier(held_out.reader, temporary / READER)
        _write_known(temporary, glyph_digits(10_000) if stated else load_mnist("train"))
        (temporary / "README.md").write_text(_card(config, pipeline))
        write_record(temporary / "training.json", {"config": asdict(config), **record, "bounds": bounds})


def _write_known(folder: Path, digits: Digits) -> None:
    """Write captions and hints of digits that go with them, one each."""
    captions = balanced_captions(_KNOWN, seed=1)
    (folder / CAPTIONS).write_text("".join(f"{caption.text}\n" for caption in captions))
    _, hints = controlled(Source.of(digits), captions, np.random.default_rng(1))
    (folder / HINTS).mkdir()
    for number, hint in enumerate(hints):
        imsave(folder / HINTS / f"{number:02d}.png", hint.permute(1, 2, 0).numpy())


def _card(
    config: ControlConfig | SplitControlConfig | PlainControlConfig, pipeline: StableDiffusionControlNetPipeline
) -> str:
    size, name = f"{pipeline.controlnet.num_parameters():,}", config.name
    kind, load, how, more = _of_split(config) if isinstance(config, SplitControlConfig) else _of_plain(config)
    return f"""# {name}

[{config.base}](../{config.base}) with a ControlNet of {size} parameters that follows the outline of a digit,
{kind}.

- **Hint**: an image of 32 x 32 pixels, the outline in white on black: the digit's pixels minus their erosion by 3 x 3.
- **Training**: `cipherdm train {name}`, {how}.
  U-Net, text model and autoencoder stayed as they were. `training.json` has losses, scores on the way, the bounds that the
  autoencoder sets, the machine and the versions.
{more}
- **Data licence**: MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0.
- **Use**: a teaching and measuring object. It knows nothing but these captions and outlines, and has no safety checker.

```python
{load}
pipeline("a large red seven on a blue background", hint, num_inference_steps=20, guidance_scale=4.0).images[0]
```
"""


def _of_plain(config: ControlConfig | PlainControlConfig) -> tuple[str, str, str, str]:
    name = config.name
    load = f"""from diffusers import StableDiffusionControlNetPipeline

pipeline = StableDiffusionControlNetPipeline.from_pretrained("data/models/{name}")"""
    more = f"""- **Prompt**: the ControlNet reads none. Its cross-attentions have no values, so it gives the same in diffusers,
  which hands it the prompt. `hide_prompt` in its configuration tells `cipherdm` to leave them out; diffusers warns that it does
  not know the field.
- **On shares**: `cipherdm sample --model {name} --prompt "..." --control-image FILE --guidance-scale 4`.
  `cipherdm calibrate {name} --guidance-scale 4` takes `captions.txt` and `hints`."""
    if isinstance(config, PlainControlConfig):
        own, theirs = config.encoder.optimisation, config.split.training
        how = f"""after `cipherdm train {config.split.name}`: {theirs.steps:,} steps of {theirs.batch} pictures of each of
  {len(theirs.clients)} clients, whose server learnt all of them; then {own.steps:,} steps of the hint encoder on outlines of
  fonts' digits, until it gives what the split network gets by the autoencoder"""
        return "made a plain one after it was trained by split learning", load, how, more
    own = config.controlnet.optimisation
    return "trained in one place", load, f"{own.steps:,} steps of {own.batch} pictures composed anew", more


def _of_split(config: SplitControlConfig) -> tuple[str, str, str, str]:
    own, first = config.training, config.training.defences.timesteps_from
    policy = f"timesteps from {first} on" if first else "all timesteps"
    load = f"""from cipherdm.split import load_split_pipeline

pipeline = load_split_pipeline("data/models/{config.name}")"""
    sent = f"{own.structure}: {'the' if own.defences.activation else 'no'} activation, hidden prompts, {policy}"
    how = f"""by processes of a server and {len(own.clients)} clients with {config.pictures:,} pictures each, {own.steps:,}
  steps of {own.batch} pictures of each client. Messages {sent}"""
    more = """- **What was hidden**: the prompts, and nothing else. The server of such a training learns every picture and every
  condition it is trained on: `cipherdm.split.attacks.algebraic` computes both from each message. If the server must not see
  them, do not use it.
- **Loading**: it is no plain ControlNet, since it encodes the hint with the pipeline's autoencoder: `load_split_pipeline` loads
  it. diffusers' `ControlNetModel` would load the same weights and draw wrongly; `cdm.load_pipeline` refuses the folder."""
    return "trained by split learning (arXiv 2409.08503)", load, how, more
