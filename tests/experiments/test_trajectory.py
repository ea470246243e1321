"""Trajectories follow plaintext and diffusers, cost what sampling costs, and come back from their records as they were."""

from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from small import ONE_LEVEL, SCHEDULER
from typer.testing import CliRunner

from cipherdm import DIRECT, LAN, WAN, CipherDMError, sample
from cipherdm.cli import build
from cipherdm.likeness import BEST_PSNR, grey_levels, psnr
from cipherdm.models import apply_unet, init_unet, save_unet
from cipherdm.sampling import make_task
from cipherdm_experiments import recording, trajectory
from cipherdm_experiments.trajectory import follow_plaintext, follow_secure

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"
RECORDED = ("mnist10_ddim", "mnist10_ddpm", "mnist01-tiny_ddim")
LARGEST_FILE = 300_000  # bytes
# With time terms from the owner there is something to do before the first step.
PREPARED = replace(DIRECT, name="prepared", time_embedding="precomputed")
SETTINGS = {"labels": [2, 0], "steps": 3, "scheduler": "ddpm", "seed": 4}


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation):
    """Small networks need no optimisation."""


@pytest.fixture(scope="module")
def unet():
    """A small conditional U-Net with random weights."""
    return replace(init_unet(replace(ONE_LEVEL, add_attention=False)), scheduler_config=SCHEDULER)


@pytest.fixture(scope="module")
def plaintext(unet):
    """A run of three steps in plaintext."""
    return follow_plaintext(make_task(unet, protocols=DIRECT, ring=False, **SETTINGS))


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmsolver++"])
def test_a_plaintext_trajectory_ends_where_sampling_does(unet, scheduler):
    settings = SETTINGS | {"scheduler": scheduler}
    found = follow_plaintext(make_task(unet, protocols=PREPARED, ring=False, **settings))
    noise = np.random.default_rng(settings["seed"]).standard_normal((2, 1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(found.samples[0], noise)
    assert found.samples.shape == (4, 2, 1, 8, 8) and found.costs == ()
    expected = sample(unet, None, protocols=DIRECT, **settings).images
    np.testing.assert_allclose(found.samples[-1], expected, rtol=1e-4, atol=1e-4)


def test_predicted_pictures_are_those_of_diffusers(unet, plaintext):
    scheduler = diffusers.DDPMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(SETTINGS["steps"])
    onehot = np.eye(3, dtype=np.float32)[SETTINGS["labels"]]
    for index, timestep in enumerate(scheduler.timesteps):
        before = plaintext.samples[index]
        eps = np.array(apply_unet(unet.config, unet.params, before, float(timestep), onehot))
        step = scheduler.step(torch.from_numpy(eps), timestep, torch.from_numpy(before))
        np.testing.assert_allclose(plaintext.predicted[index], step.pred_original_sample, rtol=1e-3, atol=1e-3)


def test_a_secure_trajectory_follows_plaintext_and_costs_what_sampling_costs(unet, cluster, plaintext):
    session, told = cluster.session(), []
    task = make_task(unet, protocols=PREPARED, **SETTINGS)
    found = follow_secure(task, session, lambda *event: told.append(event))
    np.testing.assert_allclose(found.samples, plaintext.samples, atol=0.02 * np.abs(plaintext.samples).max())
    np.testing.assert_allclose(found.predicted, plaintext.predicted, atol=0.02 * np.abs(plaintext.predicted).max())
    assert told == [(index, 3, f"step {index + 1} of 3") for index in range(3)]
    whole = sample(unet, cluster, protocols=PREPARED, granularity="step", **SETTINGS).cost
    spent = sum(found.costs, found.setup)
    assert (spent.bytes, spent.sends) == (whole.bytes, whole.sends)
    assert found.setup.bytes > 0
    with pytest.raises(CipherDMError, match="no variable 'eps'"):  # nothing is left on the parties
        session.reveal("eps")


@pytest.mark.slow
def test_a_run_is_recorded(unet, tmp_path):
    save_unet(unet, tmp_path / "small")
    arguments = ["--steps", "2", "--batch", "4", "--protocols", "direct", "--record", str(tmp_path / "small.json")]
    result = CliRunner().invoke(build(), ["bench", "trajectory", str(tmp_path / "small"), *arguments])
    assert result.exit_code == 0, result.output
    found = trajectory.read(tmp_path / "small.json")
    about = found.about
    assert (about["model"], about["labels"], found.steps) == ("small", [0, 1, 2, 0], 2)
    assert found.name == "small, direct, DDIM-2"
    assert found.samples.shape == (2, 3, 4, 1, 8, 8) and found.predicted.shape == (2, 2, 4, 1, 8, 8)
    np.testing.assert_array_equal(*found.samples[:, 0])  # the same noise
    exact = sample(unet, None, labels=about["labels"], steps=2).images
    np.testing.assert_array_equal(found.samples[0, -1], grey_levels(exact))
    # These protocols are the exact functions, so only computing on shares makes a difference.
    assert found.likeness("emulated_to_exact").min() == BEST_PSNR
    np.testing.assert_array_equal(found.likeness("secure_to_emulated"), found.likeness("secure_to_exact"))
    assert found.likeness("secure_to_exact").min() > 30
    assert "timestep" in result.output


def test_a_record_comes_back_as_it_was_written(tmp_path):
    generator = np.random.default_rng(1)
    pictures = {
        "samples": generator.integers(0, 256, (2, 4, 2, 1, 8, 8), np.uint8),
        "predicted": generator.integers(0, 256, (2, 3, 2, 1, 8, 8), np.uint8),
    }
    told = recording.write(tmp_path / "run.json", {"rows": []}, pictures)
    paths = [tmp_path / f"run_{kind}.npz" for kind in pictures]
    found = trajectory.read(tmp_path / "run.json")
    assert told == f"Wrote {tmp_path / 'run.json'} and {paths[0]}, {paths[1]}."
    for kind, levels in pictures.items():
        np.testing.assert_array_equal(getattr(found, kind), levels)
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with pytest.raises(CipherDMError, match="run_predicted.npz.*cipherdm bench trajectory"):
        trajectory.read(tmp_path / "run.json")
    paths[1].unlink()
    with pytest.raises(CipherDMError, match="run_predicted.npz is missing"):
        trajectory.read(tmp_path / "run.json")
    with pytest.raises(CipherDMError, match="no record.*cipherdm bench trajectory"):
        trajectory.read(tmp_path / "other.json")


def test_psnr_is_that_of_clipped_pictures():
    generator = np.random.default_rng(2)
    references = generator.normal(size=(3, 1, 8, 8)).astype(np.float32)
    images = references + generator.normal(0, 0.1, references.shape).astype(np.float32)
    images[2] = references[2]
    found = psnr(images, references)
    for index in range(2):
        pair = references[index].clip(-1, 1), images[index].clip(-1, 1)
        assert found[index] == pytest.approx(peak_signal_noise_ratio(*pair, data_range=2))
    assert found[2] == BEST_PSNR
    assert psnr(9 + images, 8 + references) == [BEST_PSNR] * 3  # white is white


def test_grey_levels():
    values = np.array([-2, -1, 0, 1, 5, np.nan], np.float32)
    np.testing.assert_array_equal(grey_levels(values), [0, 0, 128, 255, 255, 128])


@pytest.mark.parametrize("name", RECORDED)
def test_the_committed_records_are_whole(name):
    found = trajectory.read(MEASUREMENTS / f"trajectory_{name}.json")
    assert found.steps == found.about["steps"] == len({row["timestep"] for row in found.about["rows"]})
    for kind in ("samples", "predicted"):
        assert (MEASUREMENTS / f"trajectory_{name}_{kind}.npz").stat().st_size < LARGEST_FILE
        assert getattr(found, kind).shape[2] == len(found.about["labels"])
    # The pictures are those that were compared, rounded to grey levels, which blurs the largest ratios.
    shown = found.samples[:, -1] / 127.5 - 1
    np.testing.assert_allclose(psnr(shown[1], shown[0]), found.likeness("secure_to_exact")[-1], atol=0.5)
    # What is sent depends on shapes alone, so no step differs from another.
    for quantity in ("bytes", "sends", "rounds"):
        assert len({row[quantity] for row in found.about["rows"]}) == 1
    assert (found.seconds_over(WAN) > found.seconds_over(LAN)).all()
    assert (found.seconds_over(LAN) >= found.so_far("seconds")).all()
