"""Configurations and folders of UNet2DConditionModel: they go in and out, and what is not supported is named."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from prompted_models import CONFIGS, SD_2_SMALL, TINY, inputs, torch_eps, torch_model
from small import SCHEDULER
from torch_models import check_distribution, torch_params

import cipherdm as cdm
from cipherdm.errors import CipherDMError
from cipherdm.models import UNetConditionConfig, apply_unet, init_unet, load_unet, save_unet


@pytest.fixture(scope="module")
def ours(compiled):
    """ours(unet): what the JAX functions make of `inputs(TINY)`."""
    params = init_unet(TINY).params

    def call(params, values):
        return apply_unet(TINY, params, timestep=300, **values)

    program = compiled(call, params, inputs(TINY))
    return lambda unet: program(unet.params, inputs(TINY))


def test_ours_loads_in_diffusers(tmp_path, ours):
    unet = replace(init_unet(TINY, seed=1), scheduler_config=SCHEDULER)
    save_unet(unet, tmp_path)
    model, report = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(report.values())
    np.testing.assert_allclose(ours(unet), torch_eps(model.eval(), 300, inputs(TINY)), rtol=0, atol=1e-4)
    again = load_unet(tmp_path)
    assert again.config == TINY and again.scheduler_config == SCHEDULER
    assert {name: value.tolist() for name, value in again.params.items()} == {
        name: value.tolist() for name, value in unet.params.items()
    }


def test_a_pipeline_of_theirs_loads_here(tmp_path, ours):
    model = torch_model(TINY)
    model.save_pretrained(tmp_path / "unet")
    DDIMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "scheduler")
    unet = cdm.load_unet(tmp_path)
    assert unet.config == TINY and unet.scheduler_config["num_train_timesteps"] == 50
    np.testing.assert_allclose(ours(unet), torch_eps(model, 300, inputs(TINY)), rtol=0, atol=1e-4)


def test_random_weights_are_distributed_as_in_torch():
    config = replace(SD_2_SMALL, block_out_channels=(16, 32, 32, 32))
    ours = init_unet(config, seed=3).params
    torch.manual_seed(0)
    theirs = torch_params(UNet2DConditionModel.from_config(config.to_diffusers()))
    check_distribution(ours, theirs)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_round_trip(config):
    assert UNetConditionConfig.from_diffusers(config.to_diffusers()) == config
    # All options that diffusers has, with their defaults, and with lists as JSON has them.
    complete = json.loads(json.dumps(dict(torch_model(config).config)))
    assert UNetConditionConfig.from_diffusers(complete) == config
    hash(config)


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"down_block_types": ["CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"]},
            ["down_block_types", "'SimpleCrossAttnDownBlock2D'", "made of DownBlock2D, CrossAttnDownBlock2D"],
        ),
        ({"up_block_types": ["UpBlock2D"]}, ["up_block_types", "2 entries"]),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, ["mid_block_type", "UNetMidBlock2DSimpleCrossAttn"]),
        ({"only_cross_attention": True}, ["only_cross_attention", "True", "must be off"]),
        ({"only_cross_attention": [False, True]}, ["only_cross_attention", "[False, True]"]),
        ({"dual_cross_attention": True}, ["dual_cross_attention", "True"]),
        ({"num_attention_heads": 4}, ["num_attention_heads", "4"]),
        ({"encoder_hid_dim": 64}, ["encoder_hid_dim", "64"]),
        ({"addition_embed_type": "text_time"}, ["addition_embed_type", "text_time"]),
        ({"time_cond_proj_dim": 0}, ["time_cond_proj_dim", "0"]),
        ({"conv_in_kernel": 1}, ["conv_in_kernel", "1", "must be 3"]),
        ({"attention_type": "gated"}, ["attention_type", "gated"]),
        ({"class_embed_type": "projection"}, ["class_embed_type", "projection"]),
        ({"transformer_layers_per_block": [1, 2]}, ["transformer_layers_per_block", "(1, 2)"]),
        ({"cross_attention_dim": [12, 16]}, ["cross_attention_dim", "(12, 16)"]),
        ({"cross_attention_dim": None}, ["cross_attention_dim", "None"]),
        ({"attention_head_dim": [1, 2, 4]}, ["attention_head_dim", "(1, 2, 4)", "2, one for each level"]),
        ({"attention_head_dim": [1, 0]}, ["attention_head_dim", "0"]),
        ({"attention_head_dim": 5}, ["attention_head_dim", "5", "at most 4 heads"]),
        ({"norm_num_groups": 3}, ["norm_num_groups", "3", "divisor"]),
        ({"act_fn": "relu"}, ["act_fn", "relu", "silu"]),
        ({"sample_size": 7}, ["sample_size", "7", "multiples of 2"]),
        ({"_class_name": "UNet2DModel"}, ["UNet2DModel", "UNet2DConditionModel"]),
    ],
)
def test_unsupported_configurations_are_named(changes, words):
    with pytest.raises(CipherDMError) as error:
        UNetConditionConfig.from_diffusers({**TINY.to_diffusers(), **changes})
    assert all(word in str(error.value) for word in words), error.value


def test_unsupported_folders_are_named(tmp_path):
    save_unet(init_unet(TINY), tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"dual_cross_attention": True}))
    with pytest.raises(CipherDMError, match=r"config\.json: .*dual_cross_attention"):
        load_unet(tmp_path)
    path.write_text(json.dumps(saved | {"_class_name": "UNet3DConditionModel"}))
    with pytest.raises(CipherDMError, match="UNet3DConditionModel; supported are UNet2DModel and UNet2DConditionModel"):
        load_unet(tmp_path)
    path.write_text(json.dumps(saved | {"cross_attention_dim": 16}))
    with pytest.raises(CipherDMError, match=r"attn2\.to_k\.weight has shape \[4, 12\] instead of \[4, 16\]"):
        load_unet(tmp_path)
