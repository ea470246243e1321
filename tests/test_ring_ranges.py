"""The check of a model's products against the ring of 32 bits: its numbers are diffusers', its verdict the ring's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from numpy.lib.stride_tricks import sliding_window_view
from small import ONE_LEVEL, SCHEDULER
from typer.testing import CliRunner

from cipherdm import CipherDMError
from cipherdm.cli import app
from cipherdm.linear.paths import INTEGERS
from cipherdm.linear.products import matrix_product
from cipherdm.models import init_unet, save_unet
from cipherdm.models.ring_ranges import check_small_ring, ring_limit

NOISE = {"steps": 1, "per_class": 2, "seed": 3}
FIRST = "conv_in"


@pytest.fixture(scope="module")
def unet():
    return replace(init_unet(replace(ONE_LEVEL, num_class_embeds=2)), scheduler_config=SCHEDULER)


@pytest.fixture(scope="module")
def large(unet):
    """A model whose first layer leaves the ring, and what the check finds of it."""
    model = scaled(unet, FIRST, 800)
    return model, check_small_ring(model, **NOISE)


def scaled(unet, name, factor):
    """The model with one weight times a factor."""
    return replace(unet, params=unet.params | {f"{name}.weight": np.float32(factor) * unet.params[f"{name}.weight"]})


def first_sample():
    """What the check begins with: pictures of the classes 0, 1, 0, 1."""
    return np.random.default_rng(NOISE["seed"]).standard_normal((4, 1, 8, 8), dtype=np.float32)


def products_of_diffusers(unet, timestep):
    """What diffusers' own layers give for `first_sample`, less their biases, by name."""
    model = UNet2DModel(**{name: value for name, value in unet.config.to_diffusers().items() if name[0] != "_"}).eval()
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in unet.params.items()})
    found = {}

    def hook(name):
        def look(layer, inputs, output):
            shape = (1, -1, 1, 1) if output.ndim == 4 else (-1,)
            found[name] = (output - (0 if layer.bias is None else layer.bias.reshape(shape))).detach().numpy()

        return look

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and "time_emb" not in name:
            layer.register_forward_hook(hook(name))
    with torch.no_grad():
        model(torch.from_numpy(first_sample()), int(timestep), class_labels=torch.tensor([0, 1, 0, 1]))
    return found


def test_every_linear_layer_is_met_with_the_numbers_that_diffusers_has(unet):
    found = check_small_ring(unet, **NOISE)
    expected = products_of_diffusers(unet, 0)  # the one timestep of one step
    entries = {entry.layer: entry for entry in found if entry.function in ("conv2d", "linear")}
    assert entries.keys() == expected.keys()
    for name, products in expected.items():
        entry = entries[name]
        np.testing.assert_allclose((entry.lowest, entry.highest), (products.min(), products.max()), atol=2e-5)
        assert entry.allowed == (-(2.0**9), 2.0**9) and entry.outside == entry.excess == 0 and entry.step is None
    attention = {(entry.layer, entry.function) for entry in found} - {(e.layer, e.function) for e in entries.values()}
    blocks = {name.removesuffix(".to_q") for name in expected if name.endswith(".to_q")}
    assert attention == {(name, function) for name in blocks for function in ("scores", "mixed values")} and blocks


def test_what_is_outside_is_what_comes_out_wrong_modulo_2_to_the_32(large):
    """The first layer on the words of its real input, by the reference of the kernels, against the product in float64."""
    value_bits, weight_bits = 10, 12
    limit = ring_limit(value_bits + weight_bits)
    model, found = large
    first = {entry.layer: entry for entry in found}[FIRST]
    x = np.pad(first_sample()[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    patches = sliding_window_view(x, (3, 3), axis=(1, 2)).reshape(-1, 9)
    weights = model.params[f"{FIRST}.weight"].reshape(4, 9).astype(np.float64)
    words = [
        np.round(a * 2**bits).astype(np.int64).astype(np.uint32)
        for a, bits in ((patches, value_bits), (weights.T, weight_bits))
    ]
    small = matrix_product(INTEGERS, *words).view(np.int32) / 2.0 ** (value_bits + weight_bits)
    true = patches @ weights.T
    wrong = np.abs(small - true) > limit  # a wrap is twice as far, rounding much less
    assert 0.02 < wrong.mean() < 0.9
    assert first.outside == pytest.approx(wrong.mean(), abs=0.003)  # numbers within rounding of the edge
    assert first.step == 0 and first.allowed == (-limit, limit)
    assert first.excess == pytest.approx(np.abs(true).max() - limit, rel=1e-5)


def test_layers_that_leave_the_ring_come_first_and_fewer_bits_bring_them_back(large):
    model, found = large
    assert found[0].layer == FIRST and found[0].outside > 0
    assert [entry.outside for entry in found] == sorted((entry.outside for entry in found), reverse=True)
    inside = [max(-entry.lowest, entry.highest) / entry.allowed[1] for entry in found if not entry.outside]
    assert inside == sorted(inside, reverse=True)
    values = [entry for entry in found if entry.function == "scores"]
    assert values and all(entry.allowed[1] == 2.0**11 for entry in values)
    assert not any(entry.outside for entry in check_small_ring(model, value_bits=5, weight_bits=8, **NOISE))


def test_numbers_that_are_none_are_outside(unet):
    broken = scaled(unet, "conv_out", np.nan)
    found = {entry.layer: entry for entry in check_small_ring(broken, **NOISE)}
    assert found["conv_out"].outside == 1 and found["conv_in"].outside == 0


def test_the_command_names_the_layer_and_fails(large, tmp_path):
    save_unet(large[0], tmp_path / "model")
    arguments = ["check-ranges", str(tmp_path / "model"), "--small-ring", "--steps", "1", "--count", "2", "--seed", "3"]
    for bits, code, words in (((10, 12), 3, "leave their range: conv_in"), ((5, 8), 0, "layers stay in their ranges")):
        options = [f"--{name}-bits={number}" for name, number in zip(("value", "weight"), bits, strict=True)]
        result = CliRunner().invoke(app, [*arguments, *options])
        assert result.exit_code == code and words in result.stdout, result.stdout


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"per_class": 0}, "at least 1 picture"),
        ({}, {"value_bits": 16}, "from 1 to 15 fraction bits"),
        ({}, {"weight_bits": 0}, "fraction bits"),
        ({}, {"steps": 2000}, "steps"),
        ({"scheduler_config": None}, {}, "no scheduler"),
    ],
)
def test_mistakes_are_answered(unet, changes, settings, message):
    with pytest.raises(CipherDMError, match=message):
        check_small_ring(replace(unet, **changes), **NOISE | settings)
