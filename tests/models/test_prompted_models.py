"""The JAX U-Net with cross-attention equals diffusers' UNet2DConditionModel."""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from layouts import check_order, check_parameters
from prompted_models import CONFIGS, SD_1, SD_1_SMALL, TINY, inputs, torch_eps, torch_model
from small import SCHEDULER, TWO_LEVELS
from torch_models import torch_params

import cipherdm as cdm
from cipherdm.errors import CipherDMError
from cipherdm.models import (
    CONTEXT_KINDS,
    TIME_KINDS,
    UNetConditionConfig,
    apply_unet,
    init_unet,
    run_blocks,
    unet_blocks,
    unet_shapes,
)
from cipherdm.owner.calibrate import calibrate
from cipherdm.protocols import DIRECT, FAST
from cipherdm.protocols.fast import VALUE_BITS, WEIGHT_BITS
from cipherdm.protocols.fixed import Fixed, encode
from cipherdm.schedules import make_schedule


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_equals_diffusers(config, compiled):
    model, values = torch_model(config), inputs(config)
    params = torch_params(model)

    def call(params, timestep, values):
        return apply_unet(config, params, timestep=timestep, **values)

    program = compiled(call, params, np.float32(0), values)
    for timestep in (0, 437, 999):
        expected = torch_eps(model, timestep, values)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(program(params, np.float32(timestep), values), expected, rtol=0, atol=1e-4)
    # Were the prompt ignored, or one sample given the other's, this would be the same.
    swapped = values | {"encoder_hidden_states": values["encoder_hidden_states"][::-1].copy()}
    expected = torch_eps(model, 437, swapped)
    assert np.abs(expected - torch_eps(model, 437, values)).max() > 1e-2
    np.testing.assert_allclose(program(params, np.float32(437), swapped), expected, rtol=0, atol=1e-4)


def full_size(config: UNetConditionConfig, latents: tuple[int, int], tokens: int = 77):
    """eps of diffusers and of the JAX functions at the configuration's own width, for weights that both hold only once.

    The JAX functions are compiled one by one, and once for blocks that are alike, so that no program holds all weights.
    """
    generator, params = np.random.default_rng(0), {}
    for name, shape in unet_shapes(config).items():
        values = generator.random(shape, np.float32)
        values -= np.float32(0.5)
        # Weights and biases as large as PyTorch makes them, normalisations from 0.5 to 1.5.
        if "norm" in name:
            values += np.float32(name.endswith("weight"))
        else:
            values *= np.float32(2 / np.sqrt(np.prod(shape[1:]))) if len(shape) > 1 else np.float32(0.1)
        params[name] = values
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config.to_diffusers()).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in params.items()}, assign=True)
    values = inputs(replace(config, sample_size=latents), batch=1, tokens=tokens)
    expected = torch_eps(model, 437, values)

    programs = {}
    values["timestep"] = np.float32([437])
    for block in unet_blocks(config):
        same = (block.function, block.static)
        program = programs.setdefault(same, jax.jit(partial(block.function, protocols=DIRECT, **dict(block.static))))
        outputs = program({name: params[full] for name, full in block.params}, *(values[name] for name in block.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        values.update(zip(block.outputs, map(np.asarray, outputs), strict=True))
    return expected, values["eps"]


@pytest.mark.slow
def test_stable_diffusion_15_itself():
    config = UNetConditionConfig.from_diffusers(SD_1)
    assert sum(int(np.prod(shape)) for shape in unet_shapes(config).values()) == 859_520_964  # as published
    expected, eps = full_size(config, (8, 8))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(eps, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_blocks_use_every_parameter_once(config):
    check_parameters(config, torch_params(torch_model(config)))


def test_blocks_are_hashable_programs_in_order():
    check_order(SD_1_SMALL, ("sample", "timestep", "encoder_hidden_states"))
    blocks = unet_blocks(SD_1_SMALL)
    assert len({block.name for block in blocks}) == len(blocks)
    order = [0 if block.kind in TIME_KINDS else 1 if block.kind in CONTEXT_KINDS else 2 for block in blocks]
    assert order == sorted(order)
    transformer = {"transformer_in", "self_attention", "cross_attention", "feed_forward", "transformer_out"}
    shared = {"conv_in", "resnet", "downsample", "upsample", "conv_out"}
    assert {block.kind for block in blocks} == {*TIME_KINDS, "context", *transformer, *shared}


def test_keys_and_values_are_of_the_prompt_alone(compiled):
    """Computed once, they serve every step: nothing else reads the prompt, and they read nothing else."""
    values, model = inputs(TINY), torch_model(TINY)
    params, blocks = torch_params(model), unet_blocks(TINY)
    context = [block for block in blocks if block.kind in CONTEXT_KINDS]
    rest = [block for block in blocks if block.kind not in CONTEXT_KINDS]
    prompt = {"encoder_hidden_states": values.pop("encoder_hidden_states")}
    kept = run_blocks(context, params, prompt, protocols=DIRECT)
    names = [name for block in context for name in block.outputs]
    assert len(names) == 2 * sum(name.endswith("attn2.to_k.weight") for name in params)
    assert {kept[name].shape for name in names} == {(2, 4, 7), (2, 8, 7)}  # channels of the levels, tokens
    values |= {name: kept[name] for name in names}

    def step(params, timestep, values):
        return run_blocks(rest, params, values | {"timestep": timestep[None]}, protocols=DIRECT)["eps"]

    program = compiled(step, params, np.float32(0), values)
    for timestep in (20, 800):
        expected = torch_eps(model, timestep, values | prompt)
        np.testing.assert_allclose(program(params, np.float32(timestep), values), expected, rtol=0, atol=1e-4)


def test_every_softmax_and_gelu_is_a_protocol():
    """Elements of both in one call of Stable Diffusion 1.5 with 64 x 64 latents and 77 tokens, counted by hand."""
    config, counts = UNetConditionConfig.from_diffusers(SD_1), Counter()

    def counting(name):
        def counted(x):
            counts[name] += x.size
            return getattr(DIRECT, name)(x)

        return counted

    protocols = replace(DIRECT, softmax=counting("softmax"), gelu=counting("gelu"))
    params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in unet_shapes(config).items()}
    values = inputs(config, batch=1, tokens=77)
    jax.eval_shape(lambda params: apply_unet(config, params, timestep=0, protocols=protocols, **values), params)
    # Transformers, tokens and channels: two on each way down and three on each way up, and one in the middle.
    levels = ((5, 64 * 64, 320), (5, 32 * 32, 640), (5, 16 * 16, 1280), (1, 8 * 8, 1280))
    assert counts["softmax"] == sum(count * 8 * tokens * (tokens + 77) for count, tokens, _ in levels)
    assert counts["gelu"] == sum(count * tokens * 4 * channels for count, tokens, channels in levels)


def test_blocks_of_fixed_point_numbers():
    """Keys and values of FAST are those of the exact functions, but for rounding to 10 and weights to 12 fraction bits."""
    block = next(block for block in unet_blocks(TINY) if block.kind == "context")
    params = torch_params(torch_model(TINY))
    local = {name: params[full] for name, full in block.params}
    prompt = inputs(TINY)["encoder_hidden_states"]
    exact = block(local, prompt, protocols=DIRECT)

    def load(array, bits):
        return Fixed.load(encode(array, bits, False), bits, False)

    local = {name: load(array, WEIGHT_BITS) for name, array in local.items()}
    for ours, expected in zip(block(local, load(prompt, VALUE_BITS), protocols=FAST), exact, strict=True):
        assert ours.bits == VALUE_BITS
        # 12 terms, each off by half a unit of one factor times the other, and twice the result's own rounding.
        largest = max(np.abs(params[full]).max() for _, full in block.params), np.abs(prompt).max()
        bound = 12 * (2.0**-11 * largest[0] + 2.0**-13 * largest[1]) + 2.0**-10
        np.testing.assert_allclose(ours.array, expected, rtol=0, atol=bound)


def test_wrong_inputs_are_named():
    params, good = init_unet(TINY).params, inputs(TINY)
    for shape in ((2, 8, 8), (2, 3, 8, 8), (2, 4, 7, 8)):
        with pytest.raises(CipherDMError, match=r"sample has shape .* multiples of 2"):
            apply_unet(TINY, params, timestep=0, **good | {"sample": np.zeros(shape, np.float32)})
    for shape in ((2, 7, 11), (1, 7, 12), (2, 12), (2, 0, 12)):
        prompt = {"encoder_hidden_states": np.zeros(shape, np.float32)}
        with pytest.raises(CipherDMError, match=r"must be \[2, tokens, 12\]") as error:
            apply_unet(TINY, params, timestep=0, **good | prompt)
        assert str(shape) in str(error.value)
    with pytest.raises(CipherDMError, match="is missing"):
        apply_unet(TINY, params, good["sample"], 0)
    sample = np.zeros((2, 1, 8, 8), np.float32)
    with pytest.raises(CipherDMError, match="attends to no prompt"):
        apply_unet(TWO_LEVELS, init_unet(TWO_LEVELS).params, sample, 0, None, good["encoder_hidden_states"])


def test_what_has_no_prompt_refuses_the_model():
    unet = replace(init_unet(TINY), scheduler_config=SCHEDULER)
    with pytest.raises(CipherDMError, match="UNet2DConditionModel.* there is no prompt"):
        cdm.sample(unet, None, count=1, steps=2)
    with pytest.raises(CipherDMError, match="UNet2DConditionModel.* there is no prompt"):
        calibrate(unet, make_schedule(SCHEDULER, "ddim", 2))
