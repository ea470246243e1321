"""Schedulers against diffusers' own: what is computed, what is refused by name, and DPM-Solver++ in all three readings."""

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
from cipherdm.schedules import BETA_CLASSES, SCHEDULERS, make_schedule, scheduler_of

pytestmark = pytest.mark.usefixtures("quick_compilation")
# Predicting v keeps samples of an untrained network within the ring, where predicting noise lets them grow step by step.
BOUNDED = SCHEDULER | {"prediction_type": "v_prediction"}
OTHER_FAMILIES = ("FlowMatchEulerDiscrete", "EDMDPMSolverMultistep", "ScoreSdeVe", "KarrasVe", "VQDiffusion")
OTHER_FAMILIES += ("UnCLIP", "CogVideoXDDIM", "IPNDM", "Unheard")
KINDS = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpmsolver++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
    "edm": diffusers.EDMEulerScheduler,
    "consistency": diffusers.CMStochasticIterativeScheduler,
}
FROM_BETAS = SCHEDULERS[:-2]
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
@pytest.mark.parametrize(
    "change",
    [{}, *({"timestep_spacing": spacing} for spacing in ("leading", "trailing"))]
    + [{f"use_{kind}": True} for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")],
    ids=str,
)
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


def follow(schedule, scheduler, options):
    """Assert that a schedule's samples are what diffusers' model takes at each step, and that the last ones are equal."""
    np.testing.assert_allclose(schedule.timesteps, scheduler.timesteps, rtol=1e-6)
    noise = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    x, expected = noise * np.float32(schedule.deviation), torch.tensor(noise) * scheduler.init_noise_sigma
    for row, timestep in zip(schedule.coefficients, scheduler.timesteps, strict=True):
        factor, seed = 0.3 + float(timestep) / 1000, abs(int(timestep))
        taken = scheduler.scale_model_input(expected, timestep)
        np.testing.assert_allclose(x, taken, atol=1e-5 * max(1, float(taken.abs().max())))
        drawing = {"generator": torch.Generator().manual_seed(seed)}
        expected = scheduler.step(torch.tanh(taken) * factor, timestep, expected, **drawing, **options).prev_sample
        fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).numpy()
        x = np.tensordot(row, np.stack([x, np.tanh(x) * factor, fresh]), axes=1)
    np.testing.assert_allclose(x, expected, atol=1e-5 * max(1, float(expected.abs().max())))


SPACINGS = ("leading", "trailing", "linspace")
CASES = [(name, {"timestep_spacing": spacing}, None) for name in ("euler", "euler-ancestral") for spacing in SPACINGS]
CASES += [("euler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}, None), ("lcm", {}, None)]
CASES += [("euler", {"final_sigmas_type": "sigma_min"}, None)]
CASES += [("tcd", {}, eta) for eta in (0.0, 0.3, 1.0)]
OWN = [("edm", change) for change in ({}, {"prediction_type": "v_prediction"}, {"sigma_schedule": "exponential"})]
OWN += [("edm", {"final_sigmas_type": "sigma_min"})]
OWN += [("consistency", change) for change in ({}, {"num_train_timesteps": 18, "s_noise": 1.01, "sigma_data": 1.0})]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("name", "change", "eta"), CASES, ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_loops_of_few_steps_follow_diffusers(steps, name, change, eta, prediction):
    if prediction == "sample" and name.startswith("euler"):
        pytest.skip("diffusers' Euler does not predict samples")
    config = SCHEDULER | {"prediction_type": prediction, "steps_offset": 1} | change
    scheduler = KINDS[name].from_config(config)
    scheduler.set_timesteps(steps)
    schedule = make_schedule(config, name, steps, eta=eta or 0.0)
    follow(schedule, scheduler, {} if eta is None else {"eta": eta})


@pytest.mark.parametrize(("name", "change"), OWN, ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_loops_of_models_with_noise_levels_of_their_own_follow_diffusers(steps, name, change):
    scheduler = KINDS[name].from_config({"clip_denoised": False} | change)
    scheduler.set_timesteps(steps)
    config = dict(scheduler.config) | {"_class_name": KINDS[name].__name__}
    assert scheduler_of(config) == name
    follow(make_schedule(config, name, steps), scheduler, {})


@pytest.mark.parametrize("kind", BETA_CLASSES)
def test_noise_levels_are_those_of_the_schedulers_own_class(kind):
    if kind == "DPMSolverSDEScheduler":  # needs torchsde, which is not installed; its betas are Heun's
        made = diffusers.HeunDiscreteScheduler()
    else:
        made = getattr(diffusers, kind)()
    config = dict(made.config) | {"_class_name": kind, "timestep_spacing": "leading"}
    for name in FROM_BETAS:
        if name == "dpmsolver++" and kind == "DEISMultistepScheduler":
            with pytest.raises(CipherDMError, match="deis"):
                make_schedule(config, name, 5)
            continue
        schedule = make_schedule(config, name, 5)
        # The predicted image is (x - sqrt(1 - a) eps) / sqrt(a).
        levels = made.alphas_cumprod.numpy()[schedule.timesteps.astype(int)]
        np.testing.assert_allclose(schedule.prediction[:, 0], levels**-0.5, rtol=1e-4)
        np.testing.assert_allclose(schedule.prediction[:, 1], -((1 / levels - 1) ** 0.5), rtol=1e-4)


@pytest.mark.parametrize("shape", ["sigmoid", "laplace"])
def test_betas_that_diffusers_has_for_ddpm_only(shape):
    config = SCHEDULER | {"beta_schedule": shape}
    betas = diffusers.DDPMScheduler.from_config(config).betas.tolist()
    for name in FROM_BETAS:
        expected = make_schedule(SCHEDULER | {"trained_betas": betas}, name, 5)
        np.testing.assert_array_equal(make_schedule(config, name, 5).coefficients, expected.coefficients)


def test_every_number_of_steps_is_diffusers_or_refused():
    """Also those that do not divide the timesteps: none is taken for another, whatever the spacing."""
    refused = 0
    for spacing in SPACINGS:
        for name, kind in list(KINDS.items())[:3]:
            for steps in (*range(1, 130, 3), 103, 121, 122, 201, 499, 750, 999, 1000):
                config = SCHEDULER | {"timestep_spacing": spacing}
                scheduler = kind.from_config(config)
                scheduler.set_timesteps(steps)
                try:
                    schedule = make_schedule(config, name, steps)
                except CipherDMError as error:
                    refused += 1
                    assert len(scheduler.timesteps) != steps or "each step needs a timestep of its own" in str(error)
                    continue
                assert schedule.steps == steps
                np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps)
                assert np.isfinite(schedule.coefficients).all()
    assert 0 < refused < 30


@pytest.mark.parametrize("name", FROM_BETAS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"_class_name": f"{kind}Scheduler"}, f"is a {kind}Scheduler.*PNDM") for kind in OTHER_FAMILIES),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"beta_start": None, "beta_end": None}, "lacks beta_start, beta_end: complete scheduler_config.json"),
        ({"timestep_spacing": "random"}, "diffusers does not compute .*random"),
        ({"beta_schedule": "cubic"}, "diffusers does not compute .*cubic"),
        ({"trained_betas": [0.1] * 10}, "10 trained_betas for 1000 num_train_timesteps"),
        ({"beta_end": 1.5}, "no finite coefficients .* beta_end 1.5"),
        ({"steps": 2.5}, "whole number; got 2.5"),
        ({"steps": 1000, "steps_offset": 1, "timestep_spacing": "leading"}, "steps_offset 1|timestep of its own"),
        ({"steps": 61, "timestep_spacing": "trailing"}, "takes 62 steps when asked for 61"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(name, change, message):
    if name in ("lcm", "tcd") and ("timestep_spacing" in change or "steps_offset" in change):
        pytest.skip("their timesteps are those of their training")
    config = {field: value for field, value in (SCHEDULER | change).items() if value is not None}
    with pytest.raises(CipherDMError, match=message):
        make_schedule(config, name, config.pop("steps", 5))


def test_a_folder_says_which_scheduler_is_taken(unet):
    for name, kind in KINDS.items():
        assert scheduler_of(kind().config | {"_class_name": kind.__name__}) == ("ddim" if name == "ddpm" else name)
    assert scheduler_of({"_class_name": "PNDMScheduler"}) == scheduler_of(None) == "ddim"
    told = replace(unet, scheduler_config=BOUNDED | {"_class_name": "EulerDiscreteScheduler"})
    asked = {"labels": [2], "steps": 3, "seed": 1}
    by_folder = sample(told, None, **asked).images
    np.testing.assert_array_equal(by_folder, sample(unet, None, scheduler="euler", **asked).images)
    assert np.abs(by_folder - sample(told, None, scheduler="ddim", **asked).images).max() > 1e-3


@pytest.mark.parametrize("name", ["euler", "euler-ancestral", "lcm"])
def test_few_steps_in_emulation_are_close(unet, name):
    """With fresh noise, and with initial noise that is scaled."""
    asked = {"labels": [2, 0], "steps": 3, "seed": 5, "scheduler": name}
    exact = sample(unet, None, protocols=DIRECT, **asked).images
    emulated = sample(unet, None, protocols=FAST, **asked).images
    assert np.sqrt(np.mean(np.square(emulated - exact))) < 0.1 * np.sqrt(np.mean(np.square(exact)))


def test_noise_without_signal_needs_another_prediction_than_noise():
    config = SCHEDULER | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name in ("ddpm", "ddim"):
        with pytest.raises(CipherDMError, match="no finite .*rescale_betas_zero_snr True, prediction_type 'epsilon'"):
            make_schedule(config, name, 3)
    for name in FROM_BETAS:
        assert np.isfinite(make_schedule(config | {"prediction_type": "v_prediction"}, name, 3).coefficients).all()


def test_other_variants_are_refused_by_name():
    with pytest.raises(CipherDMError, match="solver_type='heun'"):
        make_schedule(SCHEDULER | {"solver_type": "heun"}, "dpmsolver++", 5)
    with pytest.raises(CipherDMError, match="clip"):
        make_schedule(SCHEDULER, "dpmsolver++", 5, clip=True)


@pytest.mark.parametrize(("name", "steps"), [("dpmsolver++", 4), ("euler", 4), ("edm", 4), ("consistency", 1)])
def test_plaintext_sampling_equals_diffusers(unet, name, steps):
    model = diffusers.UNet2DModel.from_pretrained(unet.folder, low_cpu_mem_usage=False).eval()
    own = name in ("edm", "consistency")
    scheduler = (
        KINDS[name](clip_denoised=False) if name == "consistency" else KINDS[name].from_config({} if own else BOUNDED)
    )
    scheduler.set_timesteps(steps)
    images = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 1, 4, 4), dtype=np.float32))
    images = images * scheduler.init_noise_sigma
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            taken = scheduler.scale_model_input(images, timestep)
            output = model(taken, timestep, class_labels=torch.tensor([2, 0])).sample
            images = scheduler.step(output, timestep, images).prev_sample
    told = replace(unet, scheduler_config=dict(scheduler.config) | {"_class_name": KINDS[name].__name__})
    drawn = sample(told, None, labels=[2, 0], steps=steps, seed=5, protocols=DIRECT).images
    np.testing.assert_allclose(drawn, images, atol=1e-4 * max(1, float(images.abs().max())))


def test_models_with_noise_levels_of_their_own_take_their_own_scheduler(unet):
    edm = {"_class_name": "EDMEulerScheduler"}
    with pytest.raises(CipherDMError, match="is a EDMEulerScheduler: choose edm"):
        make_schedule(edm, "ddim", 4)
    with pytest.raises(CipherDMError, match="edm is for models made for it, and this one has a DDIMScheduler"):
        make_schedule(SCHEDULER | {"_class_name": "DDIMScheduler"}, "edm", 4)
    with pytest.raises(CipherDMError, match="edm begins with noise alone"):
        make_schedule(edm, "edm", 4, start=1)
    calibrated = calibrate(replace(unet, scheduler_config=edm), make_schedule(edm, "edm", 3), images_per_class=2)
    np.testing.assert_allclose(calibrated["timesteps"], make_schedule(edm, "edm", 3).timesteps, rtol=1e-6)
    noisy = make_schedule({"_class_name": "CMStochasticIterativeScheduler"}, "consistency", 2)
    with pytest.raises(CipherDMError, match="consistency adds fresh noise"):
        calibrate(unet, noisy, images_per_class=2)


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
