"""diffusers folders in and out, and what is said about broken ones."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.numpy import load_file, save_file
from small import TWO_LEVELS

from cipherdm.errors import CipherDMError
from cipherdm.models import MAX_WEIGHT, apply_unet, find_model, init_unet, load_unet, save_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"
FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def sample():
    return np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def ours(compiled):
    """ours(unet): what the JAX functions make of `sample()`, compiled once, since all have one configuration."""
    program = compiled(partial(apply_unet, TWO_LEVELS), init_unet(TWO_LEVELS).params, sample(), np.float32(300))

    def compute(unet):
        assert unet.config == TWO_LEVELS
        return program(unet.params, sample(), np.float32(300))

    return compute


def theirs(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(sample()), 300).sample.numpy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that `save_unet` wrote, with a scheduler."""
    folder = tmp_path_factory.mktemp("saved")
    scheduler = dict(DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2").config)
    save_unet(
        replace(init_unet(TWO_LEVELS, seed=1), scheduler_config={"_class_name": "DDPMScheduler", **scheduler}), folder
    )
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UNet2DModel(**{name: value for name, value in TWO_LEVELS.to_diffusers().items() if name[0] != "_"})


def refusal(folder) -> str:
    with pytest.raises(CipherDMError) as error:
        load_unet(folder)
    return str(error.value)


def change_weights(folder, change):
    params = load_file(folder / WEIGHTS)
    change(params)
    save_file(params, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ours_loads_in_diffusers(saved, ours):
    unet = load_unet(saved)
    assert unet.folder == saved and unet.config == TWO_LEVELS
    model, report = UNet2DModel.from_pretrained(saved, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(report.values())
    np.testing.assert_allclose(ours(unet), theirs(model), rtol=0, atol=1e-4)
    assert DDPMScheduler.from_pretrained(saved).config.num_train_timesteps == 50
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", WEIGHTS, "scheduler_config.json"]


def test_theirs_loads_here(model, tmp_path, ours):
    model.save_pretrained(tmp_path / "model")
    unet = load_unet(tmp_path / "model")
    assert unet.scheduler_config is None
    np.testing.assert_allclose(ours(unet), theirs(model), rtol=0, atol=1e-4)


def test_a_pipeline_loads_here(model, tmp_path, ours):
    DDPMPipeline(model, DDPMScheduler(num_train_timesteps=20)).save_pretrained(tmp_path)
    unet = load_unet(tmp_path)
    assert unet.scheduler_config["num_train_timesteps"] == 20
    np.testing.assert_allclose(ours(unet), theirs(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(model, tmp_path, dtype):
    UNet2DModel.from_config(model.config).to(dtype).save_pretrained(tmp_path)
    assert {value.dtype for value in load_unet(tmp_path).params.values()} == {np.dtype(np.float32)}


def test_former_attention_names_are_read(folder, ours):
    expected = ours(load_unet(folder))

    def rename(params):
        for new, old in FORMER.items():
            for name in [name for name in params if f".attentions.0.{new}." in name]:
                params[name.replace(new, old)] = params.pop(name)

    change_weights(folder, rename)
    assert any(".query." in name for name in load_file(folder / WEIGHTS))
    np.testing.assert_array_equal(ours(load_unet(folder)), expected)


def test_missing_files_are_named(folder, tmp_path):
    message = refusal(tmp_path / "nowhere")
    assert "nowhere" in message and "save_pretrained" in message
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    message = refusal(folder)
    assert WEIGHTS in message and "diffusion_pytorch_model.bin" in message and "safe_serialization" in message
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("options", [{"max_shard_size": "20kB"}, {"variant": "fp16"}], ids=str)
def test_shards_and_variants_are_read(model, folder, tmp_path, options):
    expected = dict(load_unet(folder).params)
    kept = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    kept.save_pretrained(tmp_path / "other", **options)
    files = list((tmp_path / "other").glob("*.safetensors"))
    assert not (tmp_path / "other" / WEIGHTS).exists() and (len(files) > 1) == ("max_shard_size" in options)
    for lazily in (False, True):
        found = load_unet(tmp_path / "other", lazily=lazily).params
        assert set(found) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    if len(files) > 1:
        files[0].unlink()
        assert files[0].name in refusal(tmp_path / "other")


def test_an_index_names_files_beside_it(folder):
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text('{"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}')
    assert "names no files of weights beside it" in refusal(folder)


def test_a_lora_is_named(folder):
    change_weights(folder, lambda params: params.update({"conv_in.base_layer.bias": params.pop("conv_in.bias")}))
    assert "fuse_lora" in refusal(folder)


def test_what_is_no_folder_is_told_how_to_become_one(folder, tmp_path):
    assert "is a file" in refusal(folder / WEIGHTS) and "cipherdm convert" in refusal(folder / WEIGHTS)
    for name in ("google/ddpm-cifar10-32", Path("google/ddpm-cifar10-32")):
        with pytest.raises(CipherDMError, match="snapshot_download"):
            find_model(name)
    with pytest.raises(CipherDMError, match="cipherdm convert"):
        find_model(folder / WEIGHTS)


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
@pytest.mark.parametrize("contents", ["{", "[]", "\udcff"])
def test_broken_json_is_named(folder, name, contents):
    (folder / name).write_bytes(contents.encode("utf-8", "surrogateescape"))
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_weights_are_named(folder, kept):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:kept])
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message and "truncated or corrupt" in message


def test_another_architecture_is_named(folder):
    change_config(folder, block_out_channels=[8, 16])
    message = refusal(folder)
    assert "another architecture" in message and "more" in message
    assert "conv_in.weight has shape [4, 1, 3, 3] instead of [8, 1, 3, 3]" in message or "time_embedding" in message


def test_unsupported_configuration_names_the_file(folder):
    change_config(folder, act_fn="relu")
    message = refusal(folder)
    assert str(folder / "config.json") in message and "'relu'" in message


def test_missing_and_unexpected_tensors_are_named(folder):
    change_weights(folder, lambda params: params.update({"conv_in.scale": params.pop("conv_in.bias")}))
    message = refusal(folder)
    assert "conv_in.bias is missing" in message and "conv_in.scale is not expected" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(folder, value):
    change_weights(folder, lambda params: params["conv_out.bias"].__setitem__(0, value))
    message = refusal(folder)
    assert "conv_out.bias" in message and "not finite" in message


def test_weights_beyond_fixed_point_are_named(folder):
    change_weights(folder, lambda params: params["conv_out.bias"].__setitem__(0, -MAX_WEIGHT))
    load_unet(folder)
    change_weights(folder, lambda params: params["conv_out.bias"].__setitem__(0, -1.5 * MAX_WEIGHT))
    message = refusal(folder)
    assert "conv_out.bias (up to 12288)" in message and "2^26" in message


def test_nothing_bad_is_saved(tmp_path):
    unet = init_unet(TWO_LEVELS)
    broken = dict(unet.params) | {"conv_in.bias": np.full(4, np.nan, np.float32)}
    with pytest.raises(CipherDMError, match="conv_in.bias"):
        save_unet(replace(unet, params=broken), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CipherDMError, match="Cannot write"):
        save_unet(unet, tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_weights_are_named(folder):
    (folder / WEIGHTS).chmod(0)
    assert WEIGHTS in refusal(folder)
