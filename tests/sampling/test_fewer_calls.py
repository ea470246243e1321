"""Fewer calls of the U-Net: late starts and features that are used again, against diffusers' own pipeline."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from small import SCHEDULER, TWO_LEVELS

from cipherdm import CipherDMError, sample, text_to_image
from cipherdm.models import init_unet

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


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5], ids=["unguided", "guided"])
def test_features_used_again_equal_diffusers_with_its_own_kept(folder, pipeline, guidance_scale, blocks):
    """In diffusers a hook keeps what comes to a residual block from below, and puts it back at the steps between."""
    theirs = folder[0]
    upward = [resnet for block in theirs.unet.up_blocks for resnet in block.resnets]
    kept, calls = {}, []

    def put_back(module, arguments):
        hidden, *rest = arguments
        width = hidden.shape[1] - skipped
        if len(calls) % 2 == 0:
            kept["deep"] = hidden[:, :width]
        calls.append(len(calls))
        return (torch.cat([kept["deep"], hidden[:, width:]], dim=1), *rest)

    # The last two blocks on the way up take what conv_in and the first block on the way down gave.
    skipped = theirs.unet.config.block_out_channels[0]
    settings = {"scheduler": "ddim", "guidance_scale": guidance_scale, "latents": LATENTS, "steps": 5}
    whole = text_to_image(pipeline, None, PROMPTS, **settings).latents
    found = text_to_image(pipeline, None, PROMPTS, reuse=2, reuse_blocks=blocks, **settings).latents
    hook = upward[-blocks].register_forward_pre_hook(put_back)
    try:
        expected = of_diffusers(theirs, diffusers.DDIMScheduler, num_inference_steps=5, guidance_scale=guidance_scale)
    finally:
        hook.remove()
    assert len(calls) == 5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert np.abs(found - whole).max() > 0.01


def test_refusals(pipeline):
    unet = replace(init_unet(TWO_LEVELS), scheduler_config=SCHEDULER)
    image = np.zeros((1, 3, 16, 16), np.float32)
    for message, draw in {
        "reuse must be": lambda: sample(unet, None, steps=2, reuse=0),
        "this model has 1 to": lambda: sample(unet, None, steps=2, reuse=2, reuse_blocks=9),
        "first 2 cannot be left out": lambda: sample(unet, None, steps=2, start=2),
        "not two of them": lambda: text_to_image(pipeline, None, "two", images=image, start=1),
    }.items():
        with pytest.raises(CipherDMError, match=message):
            draw()
