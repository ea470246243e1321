"""Text to image in plaintext against diffusers' pipelines, from the same noise, and what is refused."""

import json
from dataclasses import replace
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders import vae as diffusers_vae
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as image_to_image
from hypothesis import given, settings
from hypothesis import strategies as st
from prompted_models import BETAS, TINY, TOKENS, edit, save_pipeline

from cipherdm import DIRECT, CipherDMError, load_pipeline, text_to_image
from cipherdm.models import unet_blocks
from cipherdm.sampling.steps import setup_graph, step_graph
from cipherdm.sampling.text_to_image import text_to_image_task
from cipherdm.schedules import guided_coefficients, make_schedule

pytestmark = pytest.mark.usefixtures("quick_compilation")
PROMPTS = ["a small red seven", "blue two"]
NEGATIVE = ["two", "a red"]
CLASSES = {"ddim": diffusers.DDIMScheduler, "dpmsolver++": diffusers.DPMSolverMultistepScheduler}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5], ids=["unguided", "guided"])
@pytest.mark.parametrize("scheduler", CLASSES)
def test_text_to_image_equals_diffusers(folder, pipeline, scheduler, guidance_scale):
    theirs, _ = folder
    theirs.scheduler = CLASSES[scheduler].from_config(theirs.scheduler.config)
    latents = random(2, 4, 8, 8)
    settings = {"guidance_scale": guidance_scale}
    expected = {
        kind: theirs(
            PROMPTS,
            negative_prompt=NEGATIVE,
            num_inference_steps=5,
            latents=torch.tensor(latents),
            output_type=kind,
            **settings,
        ).images
        for kind in ("latent", "pt")
    }
    result = text_to_image(
        pipeline, None, PROMPTS, negative_prompts=NEGATIVE, latents=latents, steps=5, scheduler=scheduler, **settings
    )
    assert result.latents.shape == (2, 4, 8, 8) and result.images.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(result.latents, expected["latent"].numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(np.clip(result.images / 2 + 0.5, 0, 1), expected["pt"].numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_models_that_are_told_the_guidance_scale_equal_diffusers(tmp_path, guidance_scale):
    """Latent consistency models are told so: one call a step, whatever the scale."""
    save_pipeline(tmp_path, replace(TINY, time_cond_proj_dim=20))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    theirs.unet.time_embedding.cond_proj.weight.data *= 30  # so that the scale weighs more than rounding
    theirs.unet.save_pretrained(tmp_path / "unet")
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    latents, asked = random(2, 4, 8, 8), {"guidance_scale": guidance_scale}
    asked_there = {"num_inference_steps": 3, "latents": torch.tensor(latents), "output_type": "latent"}
    expected = theirs(PROMPTS, **asked, **asked_there).images
    ours = load_pipeline(tmp_path)
    found, other = (
        text_to_image(ours, None, PROMPTS, latents=latents, steps=3, guidance_scale=scale).latents
        for scale in (guidance_scale, 7.0)
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-3)
    assert np.abs(other - found).max() > 0.01
    assert text_to_image_task(ours, PROMPTS, steps=3, **asked).shape.branches == 1


def test_without_negative_prompts_the_empty_one_is_taken(folder, pipeline):
    theirs, _ = folder
    theirs.scheduler = CLASSES["ddim"].from_config(theirs.scheduler.config)
    latents = random(2, 4, 8, 8)
    expected = theirs(PROMPTS, num_inference_steps=2, latents=torch.tensor(latents), output_type="latent").images
    with_default = text_to_image(pipeline, None, PROMPTS, latents=latents, steps=2).latents
    with_others = text_to_image(pipeline, None, PROMPTS, negative_prompts=NEGATIVE, latents=latents, steps=2).latents
    np.testing.assert_allclose(with_default, expected.numpy(), rtol=0, atol=1e-3)
    assert np.abs(with_others - with_default).max() > 0.01


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", CLASSES)
def test_image_to_image_equals_diffusers(folder, pipeline, scheduler, strength):
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**folder[0].components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = CLASSES[scheduler].from_config(theirs.scheduler.config)
    images = np.tanh(random(2, 3, 16, 16, seed=1))
    generator = np.random.default_rng(4)

    def drawn(shape, **_):
        return torch.tensor(generator.standard_normal(tuple(shape), dtype=np.float32))

    # diffusers draws from torch's generator: first of the VAE's posterior, then the noise. Here both are NumPy's.
    with (
        mock.patch.object(diffusers_vae, "randn_tensor", drawn),
        mock.patch.object(image_to_image, "randn_tensor", drawn),
    ):
        expected = theirs(
            PROMPTS,
            image=torch.tensor(images / 2 + 0.5),
            strength=strength,
            num_inference_steps=6,
            output_type="latent",
        ).images
    result = text_to_image(
        pipeline, None, PROMPTS, images=images, strength=strength, steps=6, scheduler=scheduler, seed=4
    )
    np.testing.assert_allclose(result.latents, expected.numpy(), rtol=0, atol=1e-3)


def test_fresh_noise_follows_diffusers(folder, pipeline):
    theirs, _ = folder
    theirs.scheduler = CLASSES["ddim"].from_config(theirs.scheduler.config)
    generator = np.random.default_rng(6)
    latents, noises = (generator.standard_normal((*n, 1, 4, 8, 8), dtype=np.float32) for n in ((), (3,)))
    drawn = iter(torch.tensor(noises))
    with mock.patch("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: next(drawn)):
        expected = theirs(
            PROMPTS[:1], num_inference_steps=3, eta=0.7, latents=torch.tensor(latents), output_type="latent"
        ).images
    result = text_to_image(pipeline, None, PROMPTS[:1], steps=3, eta=0.7, seed=6)
    np.testing.assert_allclose(result.latents, expected.numpy(), rtol=0, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(1, 20),
    name=st.sampled_from(["ddim", "ddpm", "dpmsolver++"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_guided_row_is_the_row_of_the_guided_output(scale, name, seed):
    schedule = make_schedule(BETAS, name, 4)
    guided = guided_coefficients(schedule.coefficients, scale)
    count = schedule.coefficients.shape[1]
    arrays = np.random.default_rng(seed).standard_normal((2, count, 7))  # of the branch without the prompt, and with
    arrays[1, [0, 2, 3][: count - 1]] = arrays[0, [0, 2, 3][: count - 1]]  # samples and noise are the same in both
    without, with_prompt = arrays
    mixed = without + scale * (with_prompt - without)
    columns = [
        column for i in range(count) for column in ([without[i], with_prompt[i]] if i in (1, 4) else [without[i]])
    ]
    np.testing.assert_allclose(guided @ np.stack(columns), schedule.coefficients @ mixed, rtol=0, atol=1e-3)


def test_what_comes_before_the_prompt_is_computed_once(pipeline):
    """In both branches it would be the same. And keys and values are computed before the first step, not in it."""
    task = text_to_image_task(pipeline, PROMPTS, steps=2, protocols=DIRECT)
    nodes = step_graph(task.shape).nodes
    assert {node.label for node in setup_graph(task.shape).nodes} == {
        block.name for block in unet_blocks(TINY) if block.kind == "context"
    }
    assert not any(node.label.endswith("context") for node in nodes)
    first = next(index for index, node in enumerate(nodes) if node.label.endswith("attn2"))
    copied = [node.inputs[0] for node in nodes if node.label == "guidance"]
    before = [node.label for node in nodes[: first + 1] if "attn1" in node.label or "resnets" in node.label]
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1" in before and "down_blocks.0.resnets.0" in before
    # What was computed once and is read by both branches: the first skip, the residual stream and the transformer's tokens.
    assert len(copied) == len(set(copied)) == 3 and "conv_in" in copied
    unguided = text_to_image_task(pipeline, PROMPTS, steps=2, guidance_scale=1.0)
    assert not any(node.label == "guidance" for node in step_graph(unguided.shape).nodes)
    assert unguided.client["encoder_hidden_states"].shape == (2, TOKENS, 12)
    assert task.client["encoder_hidden_states"].shape == (4, TOKENS, 12)


# As in the published folder of Stable Diffusion 1.5, but for the prediction.
PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def test_the_scheduler_of_stable_diffusion_15_gives_way_to_ddim(broken):
    edit(broken / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    (broken / "scheduler" / "scheduler_config.json").write_text(json.dumps(PNDM))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(broken, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    latents = random(1, 4, 8, 8)
    arguments = {"num_inference_steps": 3, "latents": torch.tensor(latents), "output_type": "latent"}
    expected = theirs(PROMPTS[:1], **arguments).images
    result = text_to_image(load_pipeline(broken), None, PROMPTS[:1], latents=latents, steps=3)
    np.testing.assert_allclose(result.latents, expected.numpy(), rtol=0, atol=1e-3)


# What is refused


def test_a_long_prompt_is_cut_with_a_warning_as_in_diffusers(folder, pipeline):
    theirs, _ = folder
    theirs.scheduler = CLASSES["ddim"].from_config(theirs.scheduler.config)
    latents, long = random(1, 4, 8, 8), "a small red seven " * 3
    expected = theirs(long, num_inference_steps=1, latents=torch.tensor(latents), output_type="latent").images
    with pytest.warns(UserWarning, match=f"more than {TOKENS} tokens, .* cut: 'a small red seven'"):
        result = text_to_image(pipeline, None, [long], latents=latents, steps=1)
    np.testing.assert_allclose(result.latents, expected.numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": np.zeros((2, 4, 8, 6))}, r"latents have shape \(2, 4, 8, 6\).*\(2, 4, 8, 8\)"),
        ({"latents": np.zeros((1, 4, 8, 8))}, r"latents have shape \(1, 4, 8, 8\)"),
        ({"images": np.zeros((2, 3, 16, 8))}, r"images have shape .* takes \[B, 3, 16, 16\]"),
        ({"images": np.zeros((1, 3, 16, 16))}, "1 images to start from, and 2 prompts"),
        ({"images": np.full((2, 3, 16, 16), 255.0)}, r"outside of \[-1, 1\]"),
        ({"images": np.full((2, 3, 16, 16), np.nan)}, r"outside of \[-1, 1\]"),
        ({"images": np.zeros((2, 3, 16, 16)), "latents": np.zeros((2, 4, 8, 8))}, "not two of them"),
        ({"images": np.zeros((2, 3, 16, 16)), "strength": 0.1, "steps": 5}, "strength must be above 0"),
        ({"images": np.zeros((2, 3, 16, 16)), "strength": 1.5}, "strength must be .* at most 1"),
        ({"guidance_scale": 0.5}, "guidance_scale must be at least 1"),
        ({"guidance_scale": np.nan}, "guidance_scale must be at least 1"),
        ({"negative_prompts": ["one"]}, "1 negative prompts for 2 prompts"),
        ({"scheduler": "heun"}, "unknown scheduler 'heun': choose one of ddpm, ddim, dpmsolver"),
        ({"steps": 0}, "steps must be between 1 and 1000"),
    ],
)
def test_wrong_arguments_are_named(pipeline, arguments, message):
    with pytest.raises(CipherDMError, match=message):
        text_to_image(pipeline, None, PROMPTS, **arguments)
    with pytest.raises(CipherDMError, match="at least one prompt"):
        text_to_image(pipeline, None, [])


def test_one_prompt_may_be_a_text(pipeline):
    task = text_to_image_task(pipeline, "a red seven", negative_prompts="blue", steps=1)
    listed = text_to_image_task(pipeline, ["a red seven"], negative_prompts=["blue"], steps=1)
    assert task.shape.batch == 1
    np.testing.assert_array_equal(task.client["encoder_hidden_states"], listed.client["encoder_hidden_states"])


def test_numbers_that_left_the_range_are_an_error_and_no_picture(pipeline):
    with pytest.raises(CipherDMError, match="numbers left the range"):
        text_to_image(pipeline, None, PROMPTS, latents=np.full((2, 4, 8, 8), 1e38), steps=1)
