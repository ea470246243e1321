"""The committed sd-mini: diffusers loads and draws it, it draws what captions say, and FAST stays near the exact model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import cipherdm as cdm
from cipherdm.calibration import calibration_of
from cipherdm.protocols import named
from cipherdm_experiments.training.sd_mini.captions import all_captions
from cipherdm_experiments.training.sd_mini.score import load_pipeline

FOLDER = Path(__file__).parents[2] / "data" / "models" / "sd-mini"
CAPTIONS = FOLDER.parents[1] / "measurements" / "captions_sd-mini.json"
PROMPTS = ["a small red seven on a blue background", "a large green two at the top left on a black background"]
GUIDANCE = 4.0


@pytest.fixture(scope="module")
def pipeline():
    return cdm.load_pipeline(FOLDER)


def draw(pipeline, protocols, prompts=PROMPTS, steps=20):
    settings = {"steps": steps, "guidance_scale": GUIDANCE, "seed": 5, "protocols": protocols}
    return cdm.text_to_image(pipeline, None, prompts, **settings)


def psnr(found, exact):
    """dB for each picture in [-1, 1]."""
    return 10 * np.log10(4 / np.square(found - exact).mean(axis=(1, 2, 3)))


def test_every_caption_is_a_prompt_of_the_tokenizer():
    tokenizer = load_pipeline(FOLDER).tokenizer
    written = (FOLDER / "captions.txt").read_text().splitlines()
    for prompt in {*PROMPTS, *written, *(caption.text for caption in all_captions()[:200])}:
        ids = tokenizer(prompt).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1] and len(ids) <= tokenizer.model_max_length, prompt


def test_the_pictures_are_those_of_diffusers(pipeline):
    theirs = load_pipeline(FOLDER)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    start = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    settings = {"guidance_scale": GUIDANCE, "latents": torch.from_numpy(start), "output_type": "np"}
    expected = theirs(PROMPTS, num_inference_steps=5, **settings).images
    ours = cdm.text_to_image(pipeline, None, PROMPTS, steps=5, guidance_scale=GUIDANCE, latents=start)
    np.testing.assert_allclose((np.moveaxis(ours.images, 1, 3) + 1) / 2, expected, atol=2e-3)


def test_at_least_nine_of_ten_pictures_show_what_their_caption_says():
    record = json.loads(CAPTIONS.read_text())
    assert record["count"] == 1000
    assert min(record["drawn"][part] for part in ("digit", "colour", "background")) >= 0.9


def test_fast_draws_what_the_exact_model_draws(pipeline):
    exact, fast = (draw(pipeline, named(name)) for name in ("direct", "fast"))
    assert psnr(np.clip(fast.images, -1, 1), np.clip(exact.images, -1, 1)).min() > 25


def test_the_calibration_is_of_the_guidance_that_is_advised(pipeline):
    assert calibration_of(pipeline) == {"guidance_scale": GUIDANCE, "timesteps": 50}
    assert f"--guidance-scale {GUIDANCE:g}" in (FOLDER / "README.md").read_text()
