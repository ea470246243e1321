"""A U-Net's call block by block: prepared, computed and resumed in parts, with the result of the whole."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from prompted_models import BETAS, SMALL, inputs, torch_eps, torch_model
from torch_models import torch_params

from cipherdm import DIRECT, FAST, FAST_64, FAST_RINGS, CipherDMError
from cipherdm.engine import TOTALS
from cipherdm.models import UNet, init_unet, load_unet, save_unet
from cipherdm.owner import prepare_weights
from cipherdm.owner.observe import load_calibration
from cipherdm.owner.prepared import chosen_blocks
from cipherdm.schedules import make_schedule
from cipherdm_experiments import full_call
from cipherdm_experiments.sd15_blockwise import UNetCalls, run_in_plaintext

EXACT = replace(DIRECT, name="exact", time_embedding="precomputed")
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, **BETAS}
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def values():
    return inputs(SMALL, batch=1)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A model with random weights in a folder, calibrated for one step, its weights read when they are asked for."""
    folder = tmp_path_factory.mktemp("small")
    save_unet(UNet(SMALL, init_unet(SMALL).params, SCHEDULER), folder)
    return full_call.prepared(folder)


def calls_of(unet, values, protocols, steps=1):
    schedule = make_schedule(SCHEDULER | {"timestep_spacing": "trailing"}, "ddim", steps)
    return UNetCalls(unet, protocols, values["sample"], values["encoder_hidden_states"], schedule)


def test_weights_that_are_read_when_asked_for_are_those_of_the_file(unet):
    whole = load_unet(unet.folder).params
    assert set(unet.params) == set(whole) and len(unet.params) == len(whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(unet.params[name], array)


@pytest.mark.parametrize("protocols", [FAST, EXACT], ids=lambda protocols: protocols.name)
def test_blocks_prepared_one_by_one_are_the_whole(unet, values, protocols):
    calls = calls_of(unet, values, protocols)
    timesteps = np.float32(calls.schedule.timesteps)
    whole = prepare_weights(unet, timesteps, protocols)
    calibration = load_calibration(unet)
    parts = [
        prepare_weights(unet, timesteps, protocols, blocks=[part.block.name], calibration=calibration)
        for part in calls.parts[:-1]
    ]
    for field in ("constant", "by_step", "by_class", "bits", "static"):
        expected, found = getattr(whole, field), {}
        for part in parts:
            assert not found.keys() & getattr(part, field).keys()
            found |= getattr(part, field)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("steps", [1, 3])
def test_block_by_block_in_plaintext_is_what_diffusers_computes(values, steps):
    model = torch_model(SMALL)
    calls = calls_of(UNet(SMALL, torch_params(model)), values, EXACT, steps)
    scheduler = DDIMScheduler.from_config(SCHEDULER | {"timestep_spacing": "trailing"})
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(values["sample"])
    for timestep in scheduler.timesteps:
        eps = torch.from_numpy(torch_eps(model, float(timestep), values | {"sample": latents.numpy()}))
        latents = scheduler.step(eps, timestep, latents).prev_sample
    np.testing.assert_allclose(run_in_plaintext(calls), latents, atol=1e-4 * float(latents.abs().max()))


@pytest.mark.slow
def test_an_interrupted_call_goes_on_where_it_was(unet, tmp_path):
    """On three parties, with the record of the run; the call's inputs are not those of the calibration."""
    blocks, stopped_at, begun = [*(block.name for block in chosen_blocks(SMALL, None)), "scheduler"], 5, []

    def stop(done, total, name):
        if done == stopped_at and not name.endswith("in plaintext"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        full_call.run(full_call.prepared(unet.folder), tmp_path, progress=stop)
    record = full_call.run(
        full_call.prepared(unet.folder), tmp_path, progress=lambda done, total, name: begun.append(name.split(",")[0])
    )
    rows = record["rows"]
    assert begun == blocks[stopped_at:]
    assert [row["block"] for row in rows] == blocks
    assert [row["block"] for row in rows if row["first_of_process"]] == [blocks[0], blocks[stopped_at]]
    assert record["processes"] == 2 and all(row["commit"] for row in rows)
    for total in TOTALS:
        assert record[total] == pytest.approx(sum(row[total] for row in rows))
    # A party sends a third of most messages' bytes, of truncations 12 of 28, of no message more than half.
    assert all(row["bytes"] / 3 <= row["path_bytes"] + 1 and row["path_bytes"] <= row["bytes"] / 2 for row in rows)
    assert all(0 < row["rounds"] < row["sends"] for row in rows)
    assert all(row["peak_memory"] > 0 and row["seconds"] > 0 for row in rows)

    # The parties compute what the emulation computes, which is near what diffusers does.
    latents, emulated = (np.load(next(tmp_path.rglob(f"{name}.npy"))) for name in ("sample", "emulated"))
    assert np.abs(latents - emulated).max() < 0.02 * np.abs(emulated).max()
    # Inverse roots are right to 5% on the range that the calibration gives them, and several follow each other.
    assert record["error"]["emulated"]["rms"] < 0.08 and record["error"]["parties"]["rms"] < 0.08
    assert not list(tmp_path.rglob("*.share"))  # nothing is left of weights and values

    # A plan says what the call sends, but for the keys that the parties of each process agree on first.
    planned = full_call.by_plan(full_call.prepared(unet.folder), tmp_path, FAST_64, 1, {}, progress=lambda *_: None)
    assert [row["rounds"] for row in planned["rows"]] == [row["rounds"] for row in rows]
    assert 0 <= record["bytes"] - planned["bytes"] < 4096 * record["processes"] * len(rows)
    narrow = full_call.by_plan(full_call.prepared(unet.folder), tmp_path, FAST_RINGS, 1, {}, progress=lambda *_: None)
    assert narrow["bytes"] < 0.95 * planned["bytes"]

    again = full_call.run(full_call.prepared(unet.folder), tmp_path, progress=stop)  # finished: nothing is run
    assert again | {"decode_seconds": 0} == record | {"decode_seconds": 0}


def test_parties_are_not_started_for_values_that_leave_the_ring(unet, tmp_path):
    params = load_unet(unet.folder).params
    large = {name: array * np.float32(3000) for name, array in params.items() if name.startswith("conv_in.")}
    save_unet(UNet(SMALL, params | large, SCHEDULER), tmp_path / "large")
    with pytest.raises(CipherDMError, match="leave the ring"):
        full_call.run(full_call.prepared(tmp_path / "large"), tmp_path / "kept")
    assert not list((tmp_path / "kept").rglob("run"))


def test_time_terms_on_shares_are_refused(unet, values):
    with pytest.raises(CipherDMError, match="computes time terms on shares"):
        calls_of(unet, values, DIRECT)


@pytest.mark.slow
def test_a_picture_of_several_calls_is_resumed_with_the_weights_that_parties_hold(unet, tmp_path):
    """By rings of one plan for all steps; the second step is interrupted in its middle."""
    folder = shutil.copytree(unet.folder, tmp_path / "model", ignore=shutil.ignore_patterns("calibration*"))
    steps = 2
    parts = full_call.calls_of(full_call.prepared(folder, None, steps), FAST_RINGS, steps).parts
    stopped_at = len(parts) - 3

    def stop(done, total, name):
        if done == stopped_at and "step" in name:
            raise KeyboardInterrupt

    settings = {"protocols": FAST_RINGS, "steps": steps}
    with pytest.raises(KeyboardInterrupt):
        full_call.run(full_call.prepared(folder), tmp_path, **settings, progress=stop)
    record = full_call.run(full_call.prepared(folder), tmp_path, **settings)
    assert [(row["step"], row["block"]) for row in record["rows"]] == [(part.step, part.name) for part in parts]
    assert record["processes"] == 2 and record["decode_seconds"] > 0
    assert record["error"]["parties"]["rms"] < 0.1
    kinds = [row["kind"] for row in record["rows"]]
    assert kinds.count("scheduler") == 2 and kinds.count("context") == len(
        {p.name for p in parts if p.block and p.block.kind == "context"}
    )
    assert not list(tmp_path.rglob("*.share"))
    planned = full_call.by_plan(full_call.prepared(folder), tmp_path, FAST_RINGS, steps, {}, progress=lambda *_: None)
    assert [row["rounds"] for row in planned["rows"]] == [row["rounds"] for row in record["rows"]]
