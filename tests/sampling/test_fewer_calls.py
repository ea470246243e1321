"""Fewer calls of the U-Net: late starts and features that are used again, against diffusers' own pipeline."""

import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from small import SCHEDULER, TWO_LEVELS

from cipherdm import CipherDMError, calibrate, load_pipeline, sample, text_to_image
from cipherdm.models import find_model, init_unet, load_unet
from cipherdm.owner.observe import load_calibration

pytestmark = pytest.mark.usefixtures("quick_compilation")
PROMPTS = ["a small red seven", "blue two"]
LATENTS = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)


class LateDDIM(diffusers.DDIMScheduler):
    """DDIM without its first two steps."""

    def set_timesteps(self, *arguments, **rest):
        super().set_timesteps(*arguments, **rest)
        self.timesteps = self.timesteps[2:]


def of_diffusers(theirs, kind, **settings) -> np.ndarray:
    theirs.scheduler = kind.from_config(theirs.scheduler.config)
    drawn = theirs(PROMPTS, latents=torch.tensor(LATENTS), output_type="latent", **settings)
    return drawn.images.numpy()


def test_a_late_start_equals_diffusers_without_its_first_steps(folder, pipeline):
    expected = of_diffusers(folder[0], LateDDIM, num_inference_steps=5, guidance_scale=3.0)
    settings = {"latents": LATENTS, "steps": 5, "scheduler": "ddim", "guidance_scale": 3.0}
    late, whole = (text_to_image(pipeline, None, PROMPTS, start=start, **settings).latents for start in (2, 0))
    np.testing.assert_allclose(late, expected, rtol=0, atol=1e-3)
    assert np.abs(late - whole).max() > 0.01


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5], ids=["unguided", "guided"])
def test_features_used_again_equal_diffusers_with_its_own_kept(folder, pipeline, guidance_scale):
    """In diffusers a hook keeps what comes to the last residual block from below, and at some steps puts a line."""
    theirs = folder[0]
    skipped = theirs.unet.config.block_out_channels[0]  # channels that come from conv_in, beside those from below
    kept, calls = {}, []

    def put_line(module, arguments):
        hidden, *rest = arguments
        width, step = hidden.shape[1] - skipped, len(calls)
        calls.append(step)
        if step in (0, 1, 4, 7):
            kept[step] = hidden[:, :width]
            return None
        last, before = (1, 0) if step < 4 else (4, 1)
        slope = (kept[last] - kept[before]) / (last - before)
        return (torch.cat([kept[last] + (step - last) * slope, hidden[:, width:]], dim=1), *rest)

    settings = {"scheduler": "ddim", "guidance_scale": guidance_scale, "latents": LATENTS, "steps": 8}
    whole, found = (text_to_image(pipeline, None, PROMPTS, reuse=reuse, **settings).latents for reuse in (1, 3))
    hook = theirs.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(put_line)
    try:
        expected = of_diffusers(theirs, diffusers.DDIMScheduler, num_inference_steps=8, guidance_scale=guidance_scale)
    finally:
        hook.remove()
    assert len(calls) == 8
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert np.abs(found - whole).max() > 0.01


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """mnist01-tiny, calibrated as it is sampled here."""
    folder = shutil.copytree(find_model("mnist01-tiny"), tmp_path_factory.mktemp("model") / "tiny")
    calibrate(load_unet(folder), timesteps=STEPS, reuse=3, images=12)
    return load_unet(folder)


STEPS = 8


def test_fast_is_close_to_the_exact_model_if_calibrated_alike(calibrated):
    settings = {"labels": [0, 1, 1], "steps": STEPS, "scheduler": "ddim", "seed": 2}
    exact, emulated = (
        sample(calibrated, None, reuse=3, protocols=name, **settings).images for name in ("direct", "fast")
    )
    assert peak_signal_noise_ratio(exact, emulated, data_range=2) > 25
    with pytest.raises(CipherDMError, match="calibrate the model as it is sampled"):
        sample(load_unet("mnist01-tiny"), None, reuse=3, protocols="fast", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["block", "step"])
def test_parties_draw_with_features_used_again(cluster, calibrated, granularity):
    """They draw what the emulation draws, with fewer bytes: 4 of 8 steps call the whole U-Net."""
    settings = {"labels": [0, 1], "steps": STEPS, "scheduler": "ddim", "seed": 2, "protocols": "fast-64"}
    expected = sample(calibrated, None, reuse=3, **settings).images
    found = sample(calibrated, cluster, reuse=3, granularity=granularity, **settings)
    assert peak_signal_noise_ratio(expected, found.images, data_range=2) > 40
    labels = {"block": "reuse", "step": "shallow step"}
    of_step = found.cost.by_program()
    assert labels[granularity] in of_step.index
    if granularity == "step":
        whole, shallow = (of_step.loc[name, "bytes"] for name in ("step", "shallow step"))
        assert shallow < whole / 3


def test_a_folder_says_how_it_is_sampled(folder, calibrated, tmp_path):
    plain = shutil.copytree(calibrated.folder, tmp_path / "plain")
    (plain / "sampling.json").write_text('{"steps": 2}')
    unet = load_unet(plain)
    np.testing.assert_array_equal(sample(unet, None, labels=1).images, sample(unet, None, labels=1, steps=2).images)
    assert calibrate(unet, images=1) and len(load_calibration(unet)["timesteps"]) == 2
    prompted = shutil.copytree(folder[1], tmp_path / "prompted")
    (prompted / "sampling.json").write_text('{"steps": 3, "guidance_scale": 1.0}')
    loaded = load_pipeline(prompted)
    said = text_to_image(loaded, None, "two", latents=LATENTS[:1]).latents
    asked = text_to_image(loaded, None, "two", latents=LATENTS[:1], steps=3, guidance_scale=1.0).latents
    np.testing.assert_array_equal(said, asked)
    (plain / "sampling.json").write_text('{"steps": 2, "guidance": 3}')
    with pytest.raises(
        CipherDMError, match="sampling.json: it may give numbers for steps and guidance_scale, not guidance"
    ):
        sample(unet, None, labels=1)


def test_refusals(pipeline, cluster):
    unet = replace(init_unet(TWO_LEVELS), scheduler_config=SCHEDULER)
    image = np.zeros((1, 3, 16, 16), np.float32)
    for message, draw in {
        "reuse must be": lambda: sample(unet, None, steps=2, reuse=0),
        "do not make a loop": lambda: sample(unet, cluster, steps=2, reuse=2, granularity="loop"),
        "first 2 cannot be left out": lambda: sample(unet, None, steps=2, start=2),
        "not two of them": lambda: text_to_image(pipeline, None, "two", images=image, start=1),
    }.items():
        with pytest.raises(CipherDMError, match=message):
            draw()
