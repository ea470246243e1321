"""Text to image on three parties, with the plain model and with FAST; and FAST's preparation of models that take prompts."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from prompted_models import SMALL, save_pipeline
from skimage.metrics import peak_signal_noise_ratio

from cipherdm import (
    DIRECT,
    FAST,
    FAST_64,
    FAST_GUARDED,
    FAST_RINGS,
    CipherDMError,
    calibrate,
    load_pipeline,
    text_to_image,
)
from cipherdm.engine import compile_plan
from cipherdm.kernels.ring_program import WalkPlan
from cipherdm.models import UNet, init_unet
from cipherdm.owner import prepare_weights
from cipherdm.owner.observe import Layers, load_calibration, save_calibration
from cipherdm.sampling import sampling_nodes
from cipherdm.sampling.pipeline import known_captions
from cipherdm.sampling.rings import walking_of
from cipherdm.sampling.text_to_image import text_to_image_task

CAPTIONS = [
    f"{size} {colour} {digit}"
    for size in ("a", "small")
    for colour in ("red", "blue")
    for digit in ("two", "seven", "a red")
]
SETTINGS = {"guidance_scale": 3.0, "steps": 2, "seed": 5}
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small pipeline with random weights, calibrated on captions with guidance."""
    folder = tmp_path_factory.mktemp("calibrated")
    save_pipeline(folder, SMALL)
    loaded = load_pipeline(folder)
    path = calibrate(loaded, CAPTIONS * 2, timesteps=2, guidance_scale=3.0, seed=1)
    assert path.parent == folder
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    return loaded


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def drawn(pipeline, cluster, protocols, prompts=("a small red seven",), **changes):
    return text_to_image(pipeline, cluster, prompts, protocols=protocols, **SETTINGS | changes)


def extent_psnr(expected, found) -> float:
    return peak_signal_noise_ratio(expected, found, data_range=float(expected.max() - expected.min()))


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_emulated_fast_is_close_to_the_exact_model(pipeline, scheduler):
    """On prompts that calibration has not seen."""
    prompts = ["blue two seven", "small red"]
    exact = drawn(pipeline, None, DIRECT, prompts, scheduler=scheduler).latents
    emulated = drawn(pipeline, None, FAST, prompts, scheduler=scheduler).latents
    assert rms(emulated - exact) < 0.03 * rms(exact)
    other = drawn(pipeline, None, DIRECT, ["small red", "blue two seven"], scheduler=scheduler).latents
    assert rms(other - exact) > 2 * rms(emulated - exact)  # the prompt weighs more than the approximations


@pytest.mark.slow
def test_a_quadratic_activation_after_norms_of_prompted_models(pipeline, cluster, tmp_path):
    """Emulated it is near the exact model, and walked near the emulation, with fewer bytes than SiLU."""
    folder = shutil.copytree(pipeline.unet.folder, tmp_path / "quad", ignore=shutil.ignore_patterns("calibration*"))
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"act_fn": "quad"}))
    quadratic = load_pipeline(folder)
    calibrate(quadratic, CAPTIONS * 2, timesteps=2, guidance_scale=3.0, seed=1)
    exact, emulated = (drawn(quadratic, None, protocols).latents for protocols in (DIRECT, FAST))
    assert rms(emulated - exact) < 0.03 * rms(exact)
    assert rms(drawn(pipeline, None, DIRECT).latents - exact) > 0.01 * rms(exact)  # it is another function
    found = drawn(quadratic, cluster, FAST_64, granularity="step")
    assert extent_psnr(emulated, found.latents) > 45
    assert found.cost.bytes < drawn(pipeline, cluster, FAST_64, granularity="step").cost.bytes


@pytest.mark.slow
@pytest.mark.parametrize("protocols", [FAST, FAST_RINGS], ids=lambda protocols: protocols.name)
def test_secure_fast_follows_its_emulation(pipeline, cluster, protocols):
    expected = drawn(pipeline, None, FAST)
    result = drawn(pipeline, cluster, protocols, granularity="step")
    assert extent_psnr(expected.latents, result.latents) > 45
    assert extent_psnr(expected.images, result.images) > 40
    assert result.cost.bytes > 0 and len(result.peak_memory) == 3


@pytest.mark.slow
def test_secure_sampling_follows_plaintext(pipeline, cluster):
    """Multistep and from a picture: two of four steps are left."""
    changes = {"scheduler": "dpmsolver++", "steps": 4, "strength": 0.5, "granularity": "loop"}
    changes["images"] = np.tanh(np.random.default_rng(3).standard_normal((1, 3, 8, 8))).astype(np.float32)
    expected = drawn(pipeline, None, DIRECT, **changes)
    result = drawn(pipeline, cluster, DIRECT, **changes)
    assert extent_psnr(expected.latents, result.latents) > 30
    assert result.cost.bytes > 0


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_all_steps_of_a_prompt_are_walked_by_a_plan_that_does_not_depend_on_it(pipeline, scale):
    plans = []
    for prompt in ("a red two", "seven"):
        task = text_to_image_task(
            pipeline, prompt, protocols=FAST_RINGS, steps=2, guidance_scale=scale, seed=len(prompt)
        )
        nodes = sampling_nodes(task.shape, "step")
        plans.append(compile_plan(nodes, task.specs, keep=["sample"], walking=walking_of(task, nodes)))
    assert all(call.program.walk for call in plans[0].calls)
    bits = WalkPlan.from_json(plans[0].calls[-1].program.code.decode()).bits
    assert 64 in bits and min(bits) < 40
    assert plans[0] == plans[1]


def test_rings_of_a_model_without_captions_are_not_planned(pipeline, tmp_path):
    unet = replace(pipeline.unet, folder=tmp_path)
    with pytest.raises(CipherDMError, match="has no captions.txt: write one into the model's folder"):
        known_captions(replace(pipeline, unet=unet), 3)
    assert known_captions(pipeline, 3) == [CAPTIONS[0], CAPTIONS[6], CAPTIONS[-1]]


def test_folding_a_layer_norm_into_its_readers_is_exact(pipeline):
    """Weight and bias of a LayerNorm, for an input that is normalised already."""
    unet = pipeline.unet
    prepared = prepare_weights(unet, load_calibration(unet)["timesteps"], FAST)
    name = next(name for name in Layers.of(unet).token_norms if name.endswith("norm1"))
    path = name.removesuffix("norm1")
    x = np.random.default_rng(0).standard_normal((7, 16))
    gain, bias = unet.params[f"{name}.weight"], unet.params[f"{name}.bias"]
    spread = load_calibration(unet)[f"{name}.spread"].astype(np.float64)
    typical = np.sqrt(spread[..., 0].min() * spread[..., 1].max())
    expected = (x * gain + bias) @ unet.params[f"{path}attn1.to_v.weight"].T
    folded = prepared.constant[f"{path}attn1.to_v.weight"], prepared.constant[f"{path}attn1.to_v.bias"]
    np.testing.assert_allclose(x * np.sqrt(typical) @ folded[0].T + folded[1], expected, rtol=0, atol=1e-4)


def test_what_is_shared_is_public_in_shape_alone(pipeline):
    """No calibrated number is a constant of a program: two calibrations have one layout, but for counts of iterations."""
    unet, timesteps = pipeline.unet, load_calibration(pipeline.unet)["timesteps"]
    layout = prepare_weights(unet, timesteps, FAST).layout
    assert {leaf.rpartition(".")[2] for leaf, _ in layout.static} == {"newton", "cubic", "squarings", "centred"}


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='scale_shift'"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn", "mid_block_scale_factor": 2}, "mid_block_scale_factor=2"),
    ],
)
def test_what_fast_does_not_compute_is_named(changes, message):
    unet: UNet = init_unet(replace(SMALL, **changes))
    with pytest.raises(CipherDMError, match=f"{message}.*choose another set"):
        prepare_weights(unet, np.array([1]), FAST)


def test_a_model_that_is_not_calibrated_is_told_how(pipeline):
    with pytest.raises(CipherDMError, match="cipherdm calibrate"):
        prepare_weights(replace(pipeline.unet, folder=None), np.array([1]), FAST)
    with pytest.raises(CipherDMError, match="fast-guarded computes UNet2DModels alone"):
        drawn(pipeline, None, FAST_GUARDED)


@pytest.mark.parametrize(("leaf", "factor"), [("spread", 1000), ("newton", 9)])
def test_variances_that_differ_too_much_are_named(pipeline, tmp_path, leaf, factor):
    """A range too wide for the numbers of an inverse root, or for its iteration."""
    stored = load_calibration(pipeline.unet)
    name = next(iter(Layers.of(pipeline.unet).token_norms))
    changed = stored[f"{name}.{leaf}"].copy()
    changed[..., -1] *= factor
    unet = replace(pipeline.unet, folder=tmp_path)
    save_calibration(stored | {f"{name}.{leaf}": changed}, unet)
    with pytest.raises(CipherDMError, match=f"variances that {name} divides by differ"):
        prepare_weights(unet, stored["timesteps"], FAST)
