"""Leaving a StableDiffusionPipeline folder behind."""

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from cipherdm.calibration import CAPTIONS
from cipherdm.files import replacing
from cipherdm.records import write_record

from ..classifier import LeNet
from ..run import Run, loss_summary
from .captions import balanced_captions
from .card import card
from .denoiser import scheduler
from .digit_reader import save_reader
from .recipe import SDMiniConfig
from .score import READER
from .tokenizer import save_tokenizer

_CALIBRATION_CAPTIONS, _CALIBRATION_SEED = 200, 1


def assemble(
    tokenizer: CLIPTokenizer, text: CLIPTextModel, autoencoder: AutoencoderKL, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The pipeline of the trained parts, with DDIM and without a safety checker."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(pipeline: StableDiffusionPipeline, reader: LeNet, config: SDMiniConfig, runs: list[Run], out: Path) -> None:
    """Write the pipeline, the digit reader, captions to calibrate with, a model card and the training record to `out`.

    The U-Net's weights, most of all, are stored in half precision; whoever loads them computes in single. Each file is
    replaced whole, and nothing else in `out` is touched.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(pipeline.unet).half()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
        temporary = Path(name)
        assemble(pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, half).save_pretrained(temporary)
        save_tokenizer(pipeline.tokenizer, temporary / "tokenizer")
        save_reader(reader, temporary / READER)
        (temporary / "README.md").write_text(card(pipeline, config, runs))
        captions = balanced_captions(_CALIBRATION_CAPTIONS, _CALIBRATION_SEED)
        (temporary / CAPTIONS).write_text("".join(f"{caption.text}\n" for caption in captions))
        write_record(temporary / "training.json", _record(config, runs))
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = out / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(file, 0o644)
            os.replace(file, target)


def write_grid(pictures: torch.Tensor, path: Path, *, columns: int = 10) -> None:
    """Write pictures [N, 3, H, W] in [-1, 1] as a PNG with rows of `columns`."""
    from matplotlib.image import imsave

    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * columns, channels, height, width), np.float32)
    sheet[:count] = (pictures.clamp(-1, 1).numpy() + 1) / 2
    sheet = sheet.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    with replacing(path) as temporary:
        imsave(temporary, sheet.reshape(rows * height, columns * width, channels))


def _record(config: SDMiniConfig, runs: list[Run]) -> dict[str, Any]:
    stages = {run.name: {**loss_summary(run, 100), "scores": run.scores} for run in runs}
    return {"config": config.as_json(), "stages": stages}
