"""The JAX U-Net equals diffusers' UNet2DModel, and its list of blocks is complete."""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from layouts import check_order, check_parameters
from small import TWO_LEVELS
from torch_models import check_distribution, torch_params, with_random_vectors

from cipherdm.errors import CipherDMError
from cipherdm.models import TIME_KINDS, UNetConfig, apply_unet, init_unet, run_blocks, unet_blocks
from cipherdm.protocols import CIPHERDM, DIRECT
from cipherdm_experiments.training.modules import use_cheap_functions

EVERYWHERE = {
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}
CONFIGS = {
    "silu": TWO_LEVELS,
    "swish, two layers, one head per level": replace(
        TWO_LEVELS, act_fn="swish", layers_per_block=2, attention_head_dim=None
    ),
    "mish": replace(TWO_LEVELS, act_fn="mish"),
    "gelu": replace(TWO_LEVELS, act_fn="gelu"),
    "cheap functions": replace(TWO_LEVELS, act_fn="quad", attention_kernel="linear", attention_head_dim=2),
    "scale and shift, no norm in the middle": replace(TWO_LEVELS, resnet_time_scale_shift="scale_shift"),
    "scale and shift, norm in the middle": replace(
        TWO_LEVELS, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4, mid_block_scale_factor=2**0.5
    ),
    "odd channels per group": replace(TWO_LEVELS, block_out_channels=(9, 15), norm_num_groups=3, attention_head_dim=5),
    "attention everywhere, several heads": replace(
        TWO_LEVELS, **EVERYWHERE, attention_head_dim=2, in_channels=3, out_channels=2
    ),
    "heads that do not fill the channels": replace(
        TWO_LEVELS, block_out_channels=(6, 14), attention_head_dim=4, **EVERYWHERE
    ),
    "classes": replace(TWO_LEVELS, num_class_embeds=3),
    "three levels": replace(
        TWO_LEVELS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(4, 8, 8),
        sample_size=(8, 12),
    ),
    "other sinusoid": replace(TWO_LEVELS, freq_shift=1, flip_sin_to_cos=False, time_embedding_dim=10, norm_eps=1e-3),
    "odd sinusoid": replace(TWO_LEVELS, block_out_channels=(5, 10), norm_num_groups=5, sample_size=None),
    "padding on one side": replace(TWO_LEVELS, downsample_padding=0),
    "no attention in the middle": replace(TWO_LEVELS, add_attention=False),
    "no middle": replace(TWO_LEVELS, mid_block_type=None),
    "one level": replace(
        TWO_LEVELS, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(8,)
    ),
}


def torch_model(config: UNetConfig) -> UNet2DModel:
    """diffusers' model with random weights, normalisations and biases included, so that no term can go missing."""
    torch.manual_seed(0)
    cheap = config.act_fn == "quad"  # which diffusers does not have
    built = replace(config, act_fn="silu", attention_kernel="softmax") if cheap else config
    model = UNet2DModel(**{name: value for name, value in built.to_diffusers().items() if name[0] != "_"}).eval()
    model = use_cheap_functions(model) if cheap else model
    return with_random_vectors(model)


def inputs(config: UNetConfig, batch: int = 2):
    size = config.sample_size or 8
    height, width = size if isinstance(size, tuple) else (size, size)
    generator = np.random.default_rng(1)
    sample = generator.standard_normal((batch, config.in_channels, height, width)).astype(np.float32)
    labels = None if config.num_class_embeds is None else np.arange(batch)[::-1] % config.num_class_embeds
    return sample, labels


def one_hot(config: UNetConfig, labels):
    return None if labels is None else np.eye(config.num_class_embeds, dtype=np.float32)[labels]


def torch_eps(model: UNet2DModel, sample, timestep, labels) -> np.ndarray:
    with torch.no_grad():
        labels = None if labels is None else torch.tensor(labels.copy())
        return model(torch.tensor(sample), torch.tensor(timestep), labels).sample.numpy()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_equals_diffusers(config, compiled):
    model = torch_model(config)
    sample, labels = inputs(config)
    arguments = (torch_params(model), sample, np.float32(0), one_hot(config, labels))
    program = compiled(partial(apply_unet, config), *arguments)
    for timestep in (0, 437, 999):
        eps = program(*arguments[:2], np.float32(timestep), arguments[3])
        expected = torch_eps(model, sample, timestep, labels)
        assert eps.dtype == jnp.float32 and np.abs(expected).max() > 0.1
        np.testing.assert_allclose(eps, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_blocks_use_every_parameter_once(config):
    check_parameters(config, torch_params(torch_model(config)))


def test_blocks_are_hashable_programs_in_order():
    config = CONFIGS["classes"]
    blocks = unet_blocks(config)
    check_order(config, ("sample", "timestep", "class_onehot"))
    assert len({block.name for block in blocks}) == len(blocks)
    seen = {block.kind for block in blocks}
    assert seen == {*TIME_KINDS, "conv_in", "resnet", "attention", "downsample", "upsample", "conv_out"}
    assert [block.kind in TIME_KINDS for block in blocks] == sorted(
        (b.kind in TIME_KINDS for b in blocks), reverse=True
    )


def test_equal_blocks_are_interchangeable():
    config = CONFIGS["swish, two layers, one head per level"]
    by_name = {block.name: block for block in unet_blocks(config)}
    first, second = by_name["up_blocks.0.attentions.0"], by_name["mid_block.attentions.0"]
    assert (first.function, first.static) == (second.function, second.static)
    params = init_unet(config).params
    hidden = np.random.default_rng(0).standard_normal((1, 8, 4, 4)).astype(np.float32)
    local = {name: params[full] for name, full in second.params}
    np.testing.assert_array_equal(first(local, hidden, protocols=DIRECT), second(local, hidden, protocols=DIRECT))


def test_owner_computes_time_terms_exactly(compiled):
    """With precomputed time terms the emulation differs from the exact network only outside of the time blocks."""
    config = CONFIGS["classes"]
    sample, labels = inputs(config)
    arguments = torch_params(torch_model(config)), sample, np.float32(437), one_hot(config, labels)
    time = [block for block in unet_blocks(config) if block.kind in TIME_KINDS]
    rest = [block for block in unet_blocks(config) if block.kind not in TIME_KINDS]

    def by_hand(params, sample, timestep, onehot):
        values = {"sample": sample, "timestep": timestep[None], "class_onehot": onehot}
        values = run_blocks(time, params, values, protocols=DIRECT)
        return run_blocks(rest, params, values, protocols=CIPHERDM)["eps"]

    expected = compiled(by_hand, *arguments)(*arguments)
    eps = compiled(partial(apply_unet, config, protocols=CIPHERDM), *arguments)(*arguments)
    np.testing.assert_allclose(eps, expected, rtol=0, atol=1e-6)
    inside = partial(apply_unet, config, protocols=replace(CIPHERDM, time_embedding="inside"))
    assert np.abs(eps - compiled(inside, *arguments)(*arguments)).max() > 1e-4


def test_random_weights_are_distributed_as_in_torch():
    config = replace(TWO_LEVELS, block_out_channels=(16, 32), num_class_embeds=50)
    ours = init_unet(config, seed=3).params
    torch.manual_seed(0)
    theirs = torch_params(UNet2DModel(**{k: v for k, v in config.to_diffusers().items() if k[0] != "_"}))
    check_distribution(ours, theirs)
    np.testing.assert_array_equal(init_unet(config, seed=3).params["conv_in.weight"], ours["conv_in.weight"])


def test_published_size():
    """The audit's counts for CipherDM's network: every softmax element, and every SiLU outside of the time blocks."""
    config = replace(TWO_LEVELS, sample_size=28, layers_per_block=2)
    counts = Counter()

    def counting(name, function):
        def counted(x):
            counts[name] += x.size
            return function(x)

        return counted

    protocols = replace(CIPHERDM, silu=counting("silu", DIRECT.silu), softmax=counting("softmax", DIRECT.softmax))
    sample = np.zeros((1, 1, 28, 28), np.float32)
    jax.eval_shape(lambda: apply_unet(config, init_unet(config).params, sample, 0, protocols=protocols))
    assert counts == {"silu": 72_128, "softmax": 230_496}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, ["down_block_types", "SkipDownBlock2D"]),
        ({"up_block_types": ("UpBlock2D",)}, ["up_block_types", "2 entries"]),
        ({"time_embedding_type": "fourier"}, ["time_embedding_type", "fourier", "positional"]),
        ({"class_embed_type": "timestep"}, ["class_embed_type", "timestep", "None"]),
        ({"center_input_sample": True}, ["center_input_sample", "True"]),
        ({"act_fn": "relu"}, ["act_fn", "relu", "silu"]),
        ({"downsample_type": "resnet"}, ["downsample_type", "resnet"]),
        ({"resnet_time_scale_shift": "ada_group"}, ["resnet_time_scale_shift", "ada_group"]),
        ({"norm_num_groups": 3}, ["norm_num_groups", "3", "divisor"]),
        ({"norm_num_groups": None}, ["norm_num_groups", "None"]),
        ({"attn_norm_num_groups": 3}, ["attn_norm_num_groups", "3"]),
        ({"attention_head_dim": 16}, ["attention_head_dim", "16"]),
        ({"block_out_channels": (4, 0)}, ["block_out_channels", "0"]),
        ({"block_out_channels": "big"}, ["block_out_channels", "big"]),
        ({"sample_size": 7}, ["sample_size", "7", "multiples of 2"]),
        ({"freq_shift": 2}, ["freq_shift", "2"]),
        ({"norm_eps": "small"}, ["norm_eps", "small"]),
        ({"norm_eps": float("nan")}, ["norm_eps", "nan"]),
        ({"_class_name": "UNet2DConditionModel"}, ["UNet2DConditionModel"]),
    ],
)
def test_unsupported_configurations_are_named(changes, words):
    with pytest.raises(CipherDMError) as error:
        UNetConfig.from_diffusers({**TWO_LEVELS.to_diffusers(), **changes})
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_configuration_round_trip(config):
    assert UNetConfig.from_diffusers(config.to_diffusers()) == config
    assert UNetConfig.from_diffusers(dict(torch_model(config).config)) == config
    hash(config)


def test_wrong_inputs_are_named():
    params = init_unet(TWO_LEVELS).params
    for shape in ((1, 8, 8), (1, 3, 8, 8), (1, 1, 7, 8)):
        with pytest.raises(CipherDMError, match="sample has shape"):
            apply_unet(TWO_LEVELS, params, np.zeros(shape, np.float32), 0)
    sample = np.zeros((2, 1, 8, 8), np.float32)
    with pytest.raises(CipherDMError, match="no class embedding"):
        apply_unet(TWO_LEVELS, params, sample, 0, np.zeros((2, 3), np.float32))
    config = CONFIGS["classes"]
    for onehot in (None, np.zeros((1, 3), np.float32)):
        with pytest.raises(CipherDMError, match=r"shape \(2, 3\)"):
            apply_unet(config, init_unet(config).params, sample, 0, onehot)
