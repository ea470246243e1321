"""The JAX U-Net with cross-attention equals diffusers' UNet2DConditionModel, and goes in and out of its folders."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from small import SCHEDULER, TWO_LEVELS

import cipherdm as cdm
from cipherdm.errors import CipherDMError
from cipherdm.models import (
    CONTEXT_KINDS,
    TIME_KINDS,
    UNetConditionConfig,
    apply_unet,
    init_unet,
    load_unet,
    run_blocks,
    save_unet,
    unet_blocks,
    unet_shapes,
)
from cipherdm.models.calibration import observe
from cipherdm.protocols import DIRECT, FAST
from cipherdm.protocols.fast import VALUE_BITS, WEIGHT_BITS
from cipherdm.protocols.fixed import Fixed, encode

# What the published folders of Stable Diffusion 1.5 and 2.1 hold in unet/config.json, in their words.
SD_1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD_2 = SD_1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SMALLER = {
    "block_out_channels": [8, 16, 16, 16],
    "cross_attention_dim": 12,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
    "sample_size": 16,
}
SD_1_SMALL = UNetConditionConfig.from_diffusers(SD_1 | SMALLER)
SD_2_SMALL = UNetConditionConfig.from_diffusers(SD_2 | SMALLER | {"attention_head_dim": [1, 2, 4, 4]})
TINY = replace(
    SD_1_SMALL,
    block_out_channels=(4, 8),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    sample_size=8,
)
CONFIGS = {
    "Stable Diffusion 1": SD_1_SMALL,
    "Stable Diffusion 2": SD_2_SMALL,
    "mish": replace(TINY, act_fn="mish"),
    "swish, scale and shift": replace(TINY, act_fn="swish", resnet_time_scale_shift="scale_shift"),
    "two transformer blocks, linear": replace(TINY, transformer_layers_per_block=2, use_linear_projection=True),
    "heads that do not fill the channels": replace(TINY, attention_head_dim=(3, 5)),
    "classes": replace(TINY, num_class_embeds=3, mid_block_scale_factor=2),
    "no middle, padding on one side": replace(TINY, mid_block_type=None, downsample_padding=0),
    "cross-attention at the bottom": replace(
        TINY,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=5,  # more than the channels of the level that does not attend
        sample_size=(4, 6),
    ),
}


def torch_model(config: UNetConditionConfig) -> UNet2DConditionModel:
    """diffusers' model with random weights, normalisations and biases included, so that no term can go missing."""
    torch.manual_seed(0)
    model = UNet2DConditionModel.from_config(config.to_diffusers()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape) + (1.0 if name.endswith("weight") else 0.0))
    return model


def torch_params(model: UNet2DConditionModel) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def inputs(config: UNetConditionConfig, batch: int = 2, tokens: int = 7) -> dict[str, np.ndarray]:
    """Latents and prompts, different ones for each sample of the batch, and labels if there are classes."""
    height, width = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    generator = np.random.default_rng(1)
    values = {
        "sample": generator.standard_normal((batch, config.in_channels, height, width), np.float32),
        "encoder_hidden_states": generator.standard_normal((batch, tokens, config.cross_attention_dim), np.float32),
    }
    if config.num_class_embeds is not None:
        values["class_onehot"] = np.eye(config.num_class_embeds, dtype=np.float32)[np.arange(batch)[::-1]]
    return values


def torch_eps(model: UNet2DConditionModel, timestep: float, values: dict) -> np.ndarray:
    labels = values.get("class_onehot")
    labels = None if labels is None else torch.tensor(labels.argmax(1))
    sample, prompt = torch.tensor(values["sample"]), torch.tensor(values["encoder_hidden_states"])
    with torch.no_grad():
        return model(sample, torch.tensor(timestep), prompt, class_labels=labels).sample.numpy()


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
    used = Counter(full for block in unet_blocks(config) for _, full in block.params)
    assert set(used.values()) == {1}
    assert unet_shapes(config) == {name: value.shape for name, value in torch_params(torch_model(config)).items()}
    assert set(used) == set(unet_shapes(config))


def test_blocks_are_hashable_programs_in_order():
    known = {"sample", "timestep", "encoder_hidden_states"}
    blocks = unet_blocks(SD_1_SMALL)
    for block in blocks:
        assert set(block.inputs) <= known, block.name
        assert not set(block.outputs) & known, block.name
        known |= set(block.outputs)
        hash((block.function, block.static))
        assert getattr(__import__(block.function.__module__, fromlist=["_"]), block.function.__name__) is block.function
    assert blocks[-1].outputs == ("eps",)
    assert len({block.name for block in blocks}) == len(blocks)
    order = [0 if block.kind in TIME_KINDS else 1 if block.kind in CONTEXT_KINDS else 2 for block in blocks]
    assert order == sorted(order)
    transformer = {"transformer_in", "self_attention", "cross_attention", "feed_forward", "transformer_out"}
    shared = {"conv_in", "resnet", "downsample", "upsample", "conv_out"}
    assert {block.kind for block in blocks} == {*TIME_KINDS, *CONTEXT_KINDS, *transformer, *shared}


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


# Folders


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
    for name, value in ours.items():
        assert value.dtype == np.float32 and value.shape == theirs[name].shape
        if value.size > 1000:
            np.testing.assert_allclose(value.std(), theirs[name].std(), rtol=0.1, err_msg=name)
        elif "norm" in name:
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)


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
        ({"only_cross_attention": True}, ["only_cross_attention", "True", "must be False"]),
        ({"only_cross_attention": [False, True]}, ["only_cross_attention", "[False, True]"]),
        ({"dual_cross_attention": True}, ["dual_cross_attention", "True"]),
        ({"num_attention_heads": 4}, ["num_attention_heads", "4"]),
        ({"encoder_hid_dim": 64}, ["encoder_hid_dim", "64"]),
        ({"addition_embed_type": "text_time"}, ["addition_embed_type", "text_time"]),
        ({"time_cond_proj_dim": 256}, ["time_cond_proj_dim", "256"]),
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


def test_commands_without_a_prompt_refuse_the_model():
    unet = replace(init_unet(TINY), scheduler_config=SCHEDULER)
    with pytest.raises(CipherDMError, match="UNet2DConditionModel.* there is no prompt"):
        cdm.sample(unet, None, count=1, steps=2)
    with pytest.raises(CipherDMError, match="UNet2DConditionModel.* there is no prompt"):
        observe(unet, np.arange(2), np.zeros((2, 3)), images_per_class=1, seed=0, visit=lambda *_: None)
