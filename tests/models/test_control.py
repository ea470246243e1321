"""ControlNets beside U-Nets against diffusers' own, and which are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from layouts import check_order, check_parameters
from prompted_models import SD_2_SMALL, TINY, control_of, inputs, torch_eps, torch_model
from torch_models import torch_params, with_random_vectors

from cipherdm import CipherDMError
from cipherdm.files import checkout
from cipherdm.models import (
    ControlNetConfig,
    UNet,
    UNetConditionConfig,
    apply_unet,
    at_conditioning_scale,
    init_unet,
    save_unet,
    unet_blocks,
)
from cipherdm.models.control import PREFIX, ControlledConfig, control_params, with_control

THREE_LEVELS = replace(
    SD_2_SMALL,
    block_out_channels=(8, 16, 16),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(2, 4, 4),
    sample_size=8,
)
HINT_CHANNELS = (4, 6, 8)


def theirs(name: str) -> UNet2DConditionModel:
    if name == "sd-mini":
        return UNet2DConditionModel.from_pretrained(checkout() / "data" / "models" / name / "unet").eval()
    return torch_model({"two levels": TINY, "three levels": THREE_LEVELS}[name])


def controlled(unet: UNet2DConditionModel, control, **changes) -> UNet:
    """Both of diffusers' models as one of ours."""
    config = UNetConditionConfig.from_diffusers(dict(unet.config))
    of_control = ControlNetConfig.from_diffusers(dict(control.config) | changes)
    params = torch_params(unet) | control_params(of_control, torch_params(control))
    return UNet(with_control(config, of_control), params)


def of_both(unet, control, timestep, values, hint, scale=1.0, context=None):
    """What diffusers' pipeline computes in a step."""
    sample, prompt, hint = (torch.tensor(x) for x in (values["sample"], values["encoder_hidden_states"], hint))
    with torch.no_grad():
        down, middle = control(
            sample, timestep, prompt if context is None else context, hint, conditioning_scale=scale, return_dict=False
        )
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(sample, timestep, prompt, **added).sample.numpy()


@pytest.mark.parametrize("name, order", [("sd-mini", "rgb"), ("two levels", "rgb"), ("three levels", "bgr")])
def test_both_nets_equal_diffusers(name, order, compiled):
    unet = theirs(name)
    control = with_random_vectors(control_of(unet, HINT_CHANNELS, controlnet_conditioning_channel_order=order))
    ours = controlled(unet, control)
    values = inputs(ours.config)
    hint = np.random.default_rng(3).random(ours.config.hint_shape(2, ours.config.sample_shape[1:]), np.float32)
    hint[:, 0] *= 0.1  # so that the order of the channels matters

    def call(params, timestep, hint):
        return apply_unet(ours.config, params, timestep=timestep, hint=hint, **values)

    program = compiled(call, ours.params, np.float32(0), hint)
    alone = torch_eps(unet, 437, values)
    for timestep, scale in ((20, 1.0), (437, 0.3)):
        expected = of_both(unet, control, timestep, values, hint, scale)
        found = np.asarray(program(at_conditioning_scale(ours, scale).params, np.float32(timestep), hint))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected - alone).max() > 0.01
    found = np.asarray(program(at_conditioning_scale(ours, 0.0).params, np.float32(437), hint))
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["two levels", "three levels"])
def test_a_hidden_prompt_equals_zeros_in_diffusers(name, compiled):
    unet = theirs(name)
    control = with_random_vectors(control_of(unet, HINT_CHANNELS))
    ours = controlled(unet, control, hide_prompt=True)
    values = inputs(ours.config)
    hint = np.random.default_rng(3).random(ours.config.hint_shape(2, (8, 8)), np.float32)
    expected = of_both(unet, control, 437, values, hint, context=torch.zeros(2, 3, ours.config.cross_attention_dim))

    def call(params, hint):
        return apply_unet(ours.config, params, timestep=437, hint=hint, **values)

    found = np.asarray(compiled(call, ours.params, hint)(ours.params, hint))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected - of_both(unet, control, 437, values, hint)).max() > 1e-3
    read = {name for block in unet_blocks(ours.config) if block.name.startswith(PREFIX) for name in block.inputs}
    assert "hint" in read and "encoder_hidden_states" not in read
    assert not any("attn2" in name or "transformer_blocks.0.norm2" in name for name in ours.params if PREFIX in name)


def test_blocks_use_every_parameter_once_and_come_in_order():
    unet = theirs("three levels")
    ours = controlled(unet, control_of(unet, HINT_CHANNELS))
    check_parameters(ours.config, ours.params)
    check_order(ours.config, ("sample", "timestep", "encoder_hidden_states", "hint"))
    blocks = unet_blocks(ours.config)
    assert len({block.name for block in blocks}) == len(blocks)


SMALL = ControlNetConfig.from_diffusers(
    {name: value for name, value in TINY.to_diffusers().items() if name != "_class_name"}
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_pool_conditions": True}, "global_pool_conditions is True"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"addition_embed_type": "text"}, "addition_embed_type is 'text'"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim is 8"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type is 'UNetMidBlock2D'"),
        ({"controlnet_conditioning_channel_order": "rbg"}, "order is 'rbg'.*'rgb', 'bgr'"),
        ({"conditioning_embedding_out_channels": [4, 0]}, "conditioning_embedding_out_channels is 0"),
        ({"down_block_types": None}, "down_block_types is None"),
        ({"_class_name": "UNet2DConditionModel"}, "of a UNet2DConditionModel, and not of a ControlNetModel"),
    ],
)
def test_unsupported_configurations_are_named(changes, message):
    values = {name: value for name, value in SMALL.to_diffusers().items() if name != "up_block_types"}
    with pytest.raises(CipherDMError, match=message):
        ControlNetConfig.from_diffusers(values | changes)


@pytest.mark.parametrize(
    "changes", [{"cross_attention_dim": 24}, {"block_out_channels": (8, 16)}, {"layers_per_block": 2}]
)
def test_a_control_net_of_another_unet_is_refused(changes):
    (name, value) = next(iter(changes.items()))
    with pytest.raises(CipherDMError, match="made from another U-Net.*") as error:
        with_control(TINY, replace(SMALL, **changes))
    assert f"its {name} is {value!r}" in str(error.value)


def test_wrong_hints_and_scales_are_named(tmp_path):
    config = with_control(TINY, SMALL)
    unet, values = init_unet(config), inputs(TINY)
    assert isinstance(config, ControlledConfig)
    for hint in (None, np.zeros((2, 3, 8, 8), np.float32), np.zeros((2, 1, 64, 64), np.float32)):
        with pytest.raises(CipherDMError, match=r"hints .* give images \[B, C, H, W\] = \(2, 3, 64, 64\)"):
            apply_unet(config, unet.params, timestep=0, hint=hint, **values)
    with pytest.raises(CipherDMError, match="has no ControlNet, and takes no hints"):
        apply_unet(TINY, init_unet(TINY).params, timestep=0, hint=np.zeros((2, 3, 64, 64)), **values)
    for scale in (-1, np.nan, np.inf):
        with pytest.raises(CipherDMError, match="conditioning_scale must be a number from 0 on"):
            at_conditioning_scale(unet, scale)
    with pytest.raises(CipherDMError, match="no ControlNet; leave conditioning_scale out"):
        at_conditioning_scale(init_unet(TINY), 0.5)
    with pytest.raises(CipherDMError, match="StableDiffusionControlNetPipeline.save_pretrained"):
        save_unet(unet, tmp_path)
    assert not list(tmp_path.iterdir())
