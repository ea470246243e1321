"""Text to image with a ControlNet: against diffusers' pipeline, on three parties, with FAST, and what is refused."""

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from prompted_models import SMALL, TINY, add_control, edit, save_pipeline
from skimage.metrics import peak_signal_noise_ratio

from cipherdm import (
    DIRECT,
    FAST,
    FAST_RINGS,
    CipherDMError,
    SecurePipeline,
    calibrate,
    check_ranges,
    load_pipeline,
    text_to_image,
)
from cipherdm.owner.observe import load_calibration
from cipherdm.sampling import sampling_nodes
from cipherdm.sampling.pipeline import known_hints
from cipherdm.sampling.steps import setup_graph
from cipherdm.sampling.text_to_image import text_to_image_task

PROMPTS = ["a small red seven", "blue two"]
CAPTIONS = [
    f"{size} {colour} {digit}" for size in ("a", "small") for colour in ("red", "blue") for digit in ("two", "seven")
]
pytestmark = pytest.mark.usefixtures("quick_compilation")


def hints_of(pipeline, count=2, seed=5):
    """Strokes, as outlines have them."""
    strokes = np.random.default_rng(seed).random((count, 3, *pipeline.image_size)) < 0.2
    return strokes.astype(np.float32)


def made(folder, config, **options):
    save_pipeline(folder, config)
    add_control(folder, **options)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["with the prompt", "with a hidden prompt"])
def controlled(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("controlled"), TINY, hide_prompt=request.param)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A small pipeline, calibrated with hints and captions in its folder."""
    config = replace(SMALL, mid_block_type="UNetMidBlock2DCrossAttn")  # without one there is no ControlNet
    folder = made(tmp_path_factory.mktemp("calibrated"), config, hide_prompt=True, spread=0.02)
    loaded = load_pipeline(folder)
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    (folder / "hints").mkdir()
    for index, hint in enumerate(hints_of(loaded, 5, seed=1)):
        Image.fromarray((hint.transpose(1, 2, 0) * 255).astype(np.uint8)).save(folder / "hints" / f"{index}.png")
    calibrate(loaded, CAPTIONS * 2, timesteps=2, guidance_scale=3.0, seed=1)
    return loaded


def drawn(pipeline, cluster, protocols, **changes):
    asked = {"guidance_scale": 3.0, "steps": 2, "seed": 5, "control": hints_of(pipeline, 1)}
    return text_to_image(pipeline, cluster, ["a small red seven"], protocols=protocols, **asked | changes)


def extent_psnr(expected, found) -> float:
    return peak_signal_noise_ratio(expected, found, data_range=float(expected.max() - expected.min()))


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5], ids=["unguided", "guided"])
def test_text_to_image_with_hints_equals_diffusers(controlled, guidance_scale):
    theirs = diffusers.StableDiffusionControlNetPipeline.from_pretrained(controlled, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    if json.loads((controlled / "controlnet" / "config.json").read_text()).get("hide_prompt"):
        plain = theirs.controlnet.forward
        theirs.controlnet.forward = lambda sample, t, encoder_hidden_states, **rest: plain(
            sample, t, torch.zeros_like(encoder_hidden_states), **rest
        )
    ours = load_pipeline(controlled)
    hints, latents = hints_of(ours), np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    asked = {"guidance_scale": guidance_scale}
    expected = theirs(
        PROMPTS,
        image=torch.tensor(hints),
        num_inference_steps=3,
        latents=torch.tensor(latents),
        controlnet_conditioning_scale=0.7,
        output_type="latent",
        **asked,
    ).images.numpy()
    asked |= {"latents": latents, "steps": 3, "control": hints, "scheduler": "ddim"}
    found = text_to_image(ours, None, PROMPTS, conditioning_scale=0.7, **asked)
    np.testing.assert_allclose(found.latents, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    other = text_to_image(ours, None, PROMPTS, conditioning_scale=0.7, **asked | {"control": hints[::-1].copy()})
    assert np.abs(other.latents - found.latents).max() > 0.01


def test_hints_are_encoded_once_and_a_hidden_prompt_leaves_one_branch(controlled):
    ours = load_pipeline(controlled)
    task = text_to_image_task(ours, PROMPTS, guidance_scale=3.0, steps=2, control=hints_of(ours))
    assert task.client["hint"].shape == (2, 3, 16, 16)
    convolutions = [node.label for node in setup_graph(task.shape).nodes if "hint" in node.function.__name__]
    assert len(convolutions) == 4
    nodes = [node for node in sampling_nodes(task.shape, "block") if node.label.startswith("controlnet.down_blocks")]
    branched = any(name.endswith(".branches") for node in nodes for name in node.inputs)
    assert branched != ours.unet.config.control.hide_prompt


def test_three_parties_draw_with_hints_as_in_plaintext(controlled, cluster):
    ours = load_pipeline(controlled)
    expected = drawn(ours, None, DIRECT)
    found = drawn(ours, cluster, DIRECT)
    assert extent_psnr(expected.latents, found.latents) > 60
    by_program = found.cost.by_program()
    assert by_program.loc["controlnet.controlnet_cond_embedding.conv_in", "calls"] == 1
    assert by_program.loc["controlnet.controlnet_mid_block", "calls"] == 2


def test_emulated_fast_is_close_to_the_exact_model(calibrated):
    fits = {name for name in load_calibration(calibrated.unet) if "cond_embedding" in name}
    assert {name.rpartition(".")[2] for name in fits} == {"even"} and len(fits) == 3
    exact, emulated = (drawn(calibrated, None, protocols).latents for protocols in (DIRECT, FAST))
    error = np.abs(emulated - exact).max()
    assert error < 0.05 * np.abs(exact).max()
    others = drawn(calibrated, None, DIRECT, control=hints_of(calibrated, 1, seed=9)).latents
    assert np.abs(others - exact).max() > 0.002  # the hint has a say, here a small one


@pytest.mark.slow
@pytest.mark.parametrize("protocols", [FAST, FAST_RINGS], ids=lambda protocols: protocols.name)
def test_secure_fast_follows_its_emulation(calibrated, cluster, protocols):
    expected = drawn(calibrated, None, FAST)
    result = drawn(calibrated, cluster, protocols, granularity="step")
    assert extent_psnr(expected.latents, result.latents) > 45


def test_layers_of_the_control_net_are_checked(calibrated):
    found = check_ranges(calibrated, FAST_RINGS, steps=2, images=4)
    assert any(entry.layer.startswith("controlnet.") and entry.function == "inverse root" for entry in found)
    assert any(entry.layer.startswith("controlnet.controlnet_cond") and entry.function == "cut" for entry in found)
    assert max(entry.outside for entry in found if entry.function == "cut") == 0


def test_hints_of_the_owner_go_with_captions(calibrated, tmp_path):
    hints = hints_of(calibrated, 5, seed=1)
    np.testing.assert_array_equal(known_hints(calibrated, 3), hints[[0, 2, 4]])
    np.testing.assert_array_equal(known_hints(calibrated, 6), hints[[0, 1, 2, 3, 4, 0]])
    moved = replace(calibrated, unet=replace(calibrated.unet, folder=tmp_path))
    with pytest.raises(CipherDMError, match=r"has no hints/\*\.png: write hints"):
        known_hints(moved, 3)


# What is refused


def test_wrong_hints_are_named(controlled):
    ours = load_pipeline(controlled)
    wrong = {
        "hints are missing": None,
        r"hints have shape \(2, 3, 8, 8\)": np.zeros((2, 3, 8, 8)),
        r"hints have shape \(2, 1, 16, 16\)": np.zeros((2, 1, 16, 16)),
        r"hints have shape \(1, 3, 16, 16\): give images \[B, C, H, W\] = \(2, 3, 16, 16\)": np.zeros((1, 3, 16, 16)),
        r"values outside of \[0, 1\]": np.full((2, 3, 16, 16), -0.5),
        r"outside of \[0, 1\]": np.full((2, 3, 16, 16), np.nan),
    }
    for message, hints in wrong.items():
        with pytest.raises(CipherDMError, match=message):
            text_to_image(ours, None, PROMPTS, control=hints)
    with pytest.raises(CipherDMError, match="guess_mode is not supported"), SecurePipeline(ours) as pipe:
        pipe(PROMPTS, control=hints_of(ours), guess_mode=True)


def test_a_model_without_a_control_net_takes_no_hints(pipeline):
    with pytest.raises(CipherDMError, match="no ControlNet, and takes no hints"):
        text_to_image(pipeline, None, PROMPTS, control=hints_of(pipeline))
    with pytest.raises(CipherDMError, match="no ControlNet; leave conditioning_scale out"):
        text_to_image(pipeline, None, PROMPTS, conditioning_scale=0.5)


def test_another_conditioning_scale_needs_a_calibration_of_its_own(calibrated):
    with pytest.raises(CipherDMError, match="belongs to other weights, or another conditioning scale: run"):
        drawn(calibrated, None, FAST, conditioning_scale=0.5)
    with pytest.raises(CipherDMError, match="another conditioning scale"):
        check_ranges(calibrated, FAST, steps=2, images=2, conditioning_scale=0.5)


def test_a_calibration_for_another_conditioning_scale_serves_that_scale_alone(calibrated, tmp_path):
    folder = shutil.copytree(calibrated.unet.folder, tmp_path / "copy")
    loaded = load_pipeline(folder)
    calibrate(loaded, CAPTIONS, timesteps=2, guidance_scale=3.0, conditioning_scale=0.5)
    exact, emulated = (drawn(loaded, None, each, conditioning_scale=0.5).latents for each in (DIRECT, FAST))
    assert np.abs(emulated - exact).max() < 0.05 * np.abs(exact).max()
    assert check_ranges(loaded, FAST, steps=2, images=2, conditioning_scale=0.5)  # at the calibration's guidance scale
    with pytest.raises(CipherDMError, match="another conditioning scale"):
        drawn(loaded, None, FAST)


def test_weights_that_ignore_the_prompt_draw_alike_in_diffusers(controlled, tmp_path):
    """Without weights of the values, cross-attention is its last bias, whether a prompt is hidden or not."""
    folder = shutil.copytree(controlled, tmp_path / "copy")
    control = diffusers.ControlNetModel.from_pretrained(folder / "controlnet", low_cpu_mem_usage=False)
    for name, parameter in control.named_parameters():
        if name.endswith("attn2.to_v.weight"):
            torch.nn.init.zeros_(parameter)
    control.save_pretrained(folder / "controlnet")
    edit(folder / "controlnet" / "config.json", hide_prompt=True)
    ours = load_pipeline(folder)
    assert ours.unet.config.control.hide_prompt
    theirs = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    hints, latents = hints_of(ours), np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    asked = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    expected = theirs(PROMPTS, image=torch.tensor(hints), latents=torch.tensor(latents), **asked).images.numpy()
    asked = {"steps": 2, "guidance_scale": 3.0, "scheduler": "ddim"}
    found = text_to_image(ours, None, PROMPTS, latents=latents, control=hints, **asked).latents
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "controlnet/config.json",
            {"global_pool_conditions": True},
            "controlnet/config.json: .*global_pool_conditions is True",
        ),
        ("controlnet/config.json", {"cross_attention_dim": 8}, r"attn2\.to_k\.weight has shape"),
        ("model_index.json", {"controlnet": ["diffusers", "MultiControlNetModel"]}, "has a MultiControlNetModel; one"),
        ("vae/config.json", {"block_out_channels": [4, 8, 8]}, "vae.* cannot be read"),
    ],
)
def test_unsupported_folders_are_named(controlled, tmp_path, file, changes, message):
    broken = shutil.copytree(controlled, tmp_path / "copy")
    edit(broken / file, **changes)
    with pytest.raises(CipherDMError, match=message):
        load_pipeline(broken)


def test_components_that_do_not_fit_are_named(controlled, tmp_path):
    broken = shutil.copytree(controlled, tmp_path / "copy")
    shutil.rmtree(broken / "controlnet")
    with pytest.raises(CipherDMError, match=r"lacks controlnet/config\.json"):
        load_pipeline(broken)
    (tmp_path / "other").mkdir()
    unet = made(tmp_path / "other", replace(TINY, block_out_channels=(4, 16)))
    shutil.copytree(unet / "controlnet", broken / "controlnet")
    with pytest.raises(
        CipherDMError, match=r"another U-Net: its block_out_channels is \(4, 16\), and the U-Net's \(4, 8\)"
    ):
        load_pipeline(broken)


def test_a_hint_encoder_shrinks_as_the_vae_does(tmp_path):
    save_pipeline(tmp_path, TINY)
    add_control(tmp_path, hint_channels=(4, 6, 8))
    with pytest.raises(CipherDMError, match=r"hint encoder .*shrinks by 4, and the VAE by 2"):
        load_pipeline(tmp_path)
