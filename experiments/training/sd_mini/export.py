"""Leaving a StableDiffusionPipeline folder behind."""

import copy
from dataclasses import asdict
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from cipherdm.records import write_record
from cipherdm.sampling.pipeline import CAPTIONS

from ..classifier import LeNet, save_classifier
from ..export import replacing_files
from ..run import Run, loss_summary
from .captions import balanced_captions
from .networks import scheduler
from .recipe import SDMiniConfig
from .score import READER
from .text import save_tokenizer

_DATA = {  # where the digits come from, and under which licence
    "mnist": ("MNIST's training images", "MNIST, Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0"),
    "glyphs": ("bent glyphs of matplotlib's fonts", "the fonts' own: DejaVu, STIX and Computer Modern are free fonts"),
}


def assemble(
    tokenizer: CLIPTokenizer, text: CLIPTextModel, autoencoder: AutoencoderKL, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Return the pipeline of the trained parts, with DDIM and without a safety checker."""
    parts = {"vae": autoencoder, "text_encoder": text, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler()}
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(**parts, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(pipeline: StableDiffusionPipeline, reader: LeNet, config: SDMiniConfig, runs: list[Run], out: Path) -> None:
    """Write the pipeline, the digit reader, captions to calibrate with, a model card and the training record to `out`."""
    # Whoever loads the weights computes in single precision.
    half = copy.deepcopy(pipeline.unet).half()
    stages = {run.name: {**loss_summary(run, 100), "scores": run.scores} for run in runs}
    with replacing_files(out) as temporary:
        assemble(pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, half).save_pretrained(temporary)
        save_tokenizer(pipeline.tokenizer, temporary / "tokenizer")
        save_classifier(reader, temporary / READER)
        (temporary / "README.md").write_text(_card(pipeline, config, runs))
        captions = balanced_captions(200, seed=1)
        (temporary / CAPTIONS).write_text("".join(f"{caption.text}\n" for caption in captions))
        write_record(temporary / "training.json", {"config": asdict(config), "stages": stages})


def _card(pipeline: StableDiffusionPipeline, config: SDMiniConfig, runs: list[Run]) -> str:
    """Return the model card, in Markdown: what the model draws, its parts, how they were trained."""
    size = {name: f"{getattr(pipeline, name).num_parameters():,}" for name in ("vae", "text_encoder", "unet")}
    steps = {run.name: f"{run.step:,} steps of {getattr(config, run.name).optimisation.batch}" for run in runs}
    vae, unet, text = pipeline.vae.config, pipeline.unet.config, pipeline.text_encoder.config
    latent, pixels = unet.sample_size, vae.sample_size
    origin, licence = _DATA[config.source]
    return f"""# {config.name}

A diffusers `StableDiffusionPipeline` that draws images of {pixels} x {pixels} pixels by caption:

> a (small | large) COLOUR DIGIT [PLACE] on a COLOUR background

with the colours black, white, red, green, blue and yellow (two different ones), the digits zero to nine, and the places "in the
middle" and "at the (top | bottom) (left | right)", or none, which leaves the place open. Other words fall into letters that the
model was never taught.

- **Autoencoder**: `AutoencoderKL`, {size["vae"]} parameters, channels {tuple(vae.block_out_channels)}, latents of
  {vae.latent_channels} x {latent} x {latent}. {steps["autoencoder"]} pictures.
- **Text**: `CLIPTextModel`, {size["text_encoder"]} parameters, {text.num_hidden_layers} layers of width {text.hidden_size},
  prompts of {text.max_position_embeddings} tokens, beginning and end included; a `CLIPTokenizer` in which each of the captions'
  words is one token. It was taught to tell at each token what the caption has said so far. {steps["text"]} captions; frozen
  afterwards, as in Stable Diffusion.
- **Denoiser**: `UNet2DConditionModel`, {size["unet"]} parameters, channels {tuple(unet.block_out_channels)}, convolutions at
  {latent} x {latent}, attention at {latent // 2} x {latent // 2}. {steps["denoiser"]} latents;
  {100 * config.denoiser.no_caption:.0f} % of them with the empty caption, for classifier-free guidance. These are averaged
  weights (decay {config.denoiser.optimisation.ema_decay}), stored in half precision.
- **Schedule**: 1000 steps, linear betas 1e-4 to 0.02, the model predicts the noise; nothing is clipped.
- **Training**: `cipherdm train {config.name}`, on pictures composed anew for each batch from {origin}: a digit,
  scaled, moved and coloured. `training.json` has losses, times, the machine and the versions.
- **Score**: `cipherdm read-back {config.name}`: background, colour and digit of drawn pictures, read back by the palette and by
  the LeNet in `reader/`, which was taught these digits at both sizes.
- **On shares**: `cipherdm sample --model {config.name} --prompt "..." --guidance-scale 4`. `calibration.safetensors` has the
  fits that `fast` works with, from `cipherdm calibrate {config.name} --guidance-scale 4` on captions of `captions.txt`.
- **Data licence**: {licence}.
- **Use**: a teaching and measuring object. It knows nothing but these captions, and there is no safety checker.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("data/models/{config.name}")
pipeline("a small red seven on a blue background", num_inference_steps=20, guidance_scale=4.0).images[0]
```
"""
