"""DPM-Solver++ (2M): its rows against diffusers' loop, and sampling with it in all three readings."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from small import ONE_LEVEL, SCHEDULER

from cipherdm import DIRECT, FAST, CipherDMError, sample
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.owner.calibrate import calibrate
from cipherdm.owner.observe import save_calibration
from cipherdm.schedules import make_schedule

pytestmark = pytest.mark.usefixtures("quick_compilation")
# Predicting v keeps samples of an untrained network within the ring, where predicting noise lets them grow step by step.
BOUNDED = SCHEDULER | {"prediction_type": "v_prediction"}
SETTINGS = {"labels": [2, 0], "steps": 4, "scheduler": "dpmsolver++", "seed": 5}


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A small conditional U-Net with random weights, calibrated."""
    folder = tmp_path_factory.mktemp("small")
    config = replace(ONE_LEVEL, sample_size=4, add_attention=False)
    save_unet(replace(init_unet(config, seed=1), scheduler_config=BOUNDED), folder)
    loaded = load_unet(folder)
    save_calibration(calibrate(loaded, make_schedule(BOUNDED, "ddim", 20), images_per_class=24), loaded)
    return loaded


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("change", [{}, {"timestep_spacing": "leading"}, {"use_karras_sigmas": True}], ids=str)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [1, 2, 12, 20])
def test_rows_follow_diffusers(steps, final, change, prediction):
    config = SCHEDULER | {"prediction_type": prediction, "final_sigmas_type": final} | change
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    schedule = make_schedule(config, "dpmsolver++", steps)
    np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps)
    assert schedule.multistep and not schedule.noisy

    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    expected, last = torch.tensor(x), (np.zeros_like(x), np.zeros_like(x))
    for row, timestep in zip(schedule.coefficients, scheduler.timesteps, strict=True):
        output = np.tanh(x) * (0.3 + float(timestep) / 1000)
        expected = scheduler.step(torch.tanh(expected) * (0.3 + float(timestep) / 1000), timestep, expected).prev_sample
        x, last = np.tensordot(row, np.stack([x, output, np.zeros_like(x), *last]), axes=1), (x, output)
    np.testing.assert_allclose(x, expected.numpy(), atol=1e-4 * max(1, float(expected.abs().max())))


def test_other_variants_are_refused_by_name():
    with pytest.raises(CipherDMError, match="solver_type='heun'"):
        make_schedule(SCHEDULER | {"solver_type": "heun"}, "dpmsolver++", 5)
    with pytest.raises(CipherDMError, match="clip"):
        make_schedule(SCHEDULER, "dpmsolver++", 5, clip=True)


def test_plaintext_sampling_equals_diffusers(unet):
    model = diffusers.UNet2DModel.from_pretrained(unet.folder, low_cpu_mem_usage=False).eval()
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(BOUNDED)
    scheduler.set_timesteps(4)
    images = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 1, 4, 4), dtype=np.float32))
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            noise = model(images, timestep, class_labels=torch.tensor([2, 0])).sample
            images = scheduler.step(noise, timestep, images).prev_sample
    np.testing.assert_allclose(sample(unet, None, protocols=DIRECT, **SETTINGS).images, images, atol=1e-4)


def test_fast_is_close_in_emulation(unet):
    exact = sample(unet, None, protocols=DIRECT, **SETTINGS).images
    emulated = sample(unet, None, protocols=FAST, **SETTINGS).images
    assert np.sqrt(np.mean(np.square(emulated - exact))) < 0.06 * np.sqrt(np.mean(np.square(exact)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocols", "granularity"), [(DIRECT, "block"), (FAST, "loop")], ids=lambda v: getattr(v, "name", v)
)
def test_secure_sampling_follows_plaintext(unet, cluster, protocols, granularity):
    """Step by step and as one loop: what a step remembers is handed on in both."""
    expected = sample(unet, None, protocols=protocols, **SETTINGS).images
    result = sample(unet, cluster, protocols=protocols, granularity=granularity, **SETTINGS)
    extent = float(expected.max() - expected.min())
    assert peak_signal_noise_ratio(expected, result.images, data_range=extent) > 40
