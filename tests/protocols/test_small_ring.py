"""FAST_MIXED: conversions between the rings at their edges, layers and a small U-Net on three parties, which layers go."""

from dataclasses import replace
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fast_layers import number
from safetensors.numpy import load_file
from skimage.metrics import peak_signal_noise_ratio
from small import ONE_LEVEL, SCHEDULER, products_of_diffusers

from cipherdm import DIRECT, CipherDMError, sample
from cipherdm.calibration import measure_products
from cipherdm.kernels.operation import Kernel
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.owner import prepare_weights
from cipherdm.owner.calibrate import calibrate
from cipherdm.owner.observe import FILE, save_calibration
from cipherdm.owner.rings import LayerProduct, products_to_arrays, small_ring_layers
from cipherdm.protocols import FAST, FAST_KERNELS, FAST_MIXED, named, small_ring
from cipherdm.protocols.fixed import Fixed, decode, encode
from cipherdm.sampling.sample import engine_for
from cipherdm.schedules import make_schedule

VALUE_BITS = FAST.value_bits
UNIT = 2.0**-VALUE_BITS
STEPS = 2
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def on_parties(cluster):
    """on_parties(layer, (array, bits), ...): a layer's result on shares, truncated to VALUE_BITS, and the cost."""
    session = cluster.session(engine_for(FAST_MIXED))

    def run(layer, *operands):
        widths = [bits for _, bits in operands]

        def entry(*shares):
            return layer(*map(load, shares, widths)).truncated(VALUE_BITS).store()

        result, cost = session.run_once(entry, *(encode(array, bits, ring=True) for array, bits in operands))
        return decode(result, VALUE_BITS, ring=True), cost

    return run


def load(share, bits):
    return Fixed.load(share, bits, ring=True)


def random(*shape, seed=0, bits=VALUE_BITS):
    """Normal numbers with so many fraction bits."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return (np.round(values * 2**bits) / 2**bits).astype(np.float32)


def matrix_product(weights, x):
    return small_ring.product(Kernel("matmul"), weights, x)


def test_downcast_is_right_to_the_last_bit_up_to_its_edge(on_parties):
    """Numbers of 36 fraction bits, as activations have, are rounded down or up at random; those with 10 bits stay."""
    edge = 2.0**8
    values = np.concatenate([random(200, bits=18) * 50, [edge - UNIT, UNIT - edge, edge - 1.5 * UNIT, 0, UNIT, -UNIT]])
    values = values.astype(np.float32)
    result, _ = on_parties(small_ring.downcast, (values, 36))
    above = result / UNIT - np.floor(values.astype(np.float64) / UNIT)
    assert set(above) == {0, 1}
    kept = np.round(values / UNIT) * UNIT
    result, cost = on_parties(small_ring.downcast, (kept, VALUE_BITS))
    np.testing.assert_array_equal(result, kept)
    assert cost.bytes == 0


def test_upcast_is_right_to_the_last_bit_up_to_its_edges(on_parties):
    """Products just inside 256, where FAST's truncation ends, come out within a unit, whatever their last bits are."""
    weights = np.array([[256, -1], [-256, 1], [255.5, 0.25], [0, 1], [0, -1]]) / 16
    x = np.array([[16, 15.984375], [UNIT, 3 * UNIT]])
    exact = weights @ x
    assert 0 < 256 - np.abs(exact).max() < 0.001
    result, cost = on_parties(matrix_product, (weights, VALUE_BITS), (x, VALUE_BITS))
    assert np.abs(result - exact).max() <= UNIT
    assert cost.by_operator().loc["kernel_matmul", "bytes"] == 3 * 4 * exact.size


def test_operands_and_partial_sums_may_be_larger_than_the_ring(on_parties):
    """2^22 and 2^23 have words of 2^32 and more; their products with 1/2 cancel."""
    weights, x = np.array([[0.5, 0.25, 1.0]]), np.array([[2.0**22], [-(2.0**23)], [3.25]])
    result, _ = on_parties(matrix_product, (weights, VALUE_BITS), (x, VALUE_BITS))
    assert abs(result[0, 0] - 3.25) <= UNIT


def test_a_product_beyond_the_ring_comes_out_at_its_other_end(on_parties):
    """2,048 + 100 is -2,048 + 100, to which 1,948 can be added to be within what a truncation takes."""
    weights, x = np.array([[64.0]]), np.array([[(2048 + 100) / 64]])

    def layer(weights, x, bias):
        return matrix_product(weights, x) + bias

    result, _ = on_parties(layer, (weights, VALUE_BITS), (x, VALUE_BITS), (np.array([[1948.0]]), VALUE_BITS))
    assert abs(result[0, 0]) <= UNIT


def test_in_plaintext_products_beyond_the_ring_are_no_numbers():
    inside, outside = [2048 - UNIT, -2048, 0], [2048, -2048 - UNIT, np.inf]
    products = Fixed(jnp.float32([*inside, *outside]), 2 * small_ring.SMALL_BITS, ring=False)
    result = small_ring.upcast(products)
    np.testing.assert_array_equal(result.array, np.float32([*inside, *[np.nan] * 3]))
    assert result.bits == 2 * small_ring.SMALL_BITS + 32


@pytest.mark.parametrize(("stride", "x_bits"), [(1, VALUE_BITS), (2, 36)])
def test_a_convolution_in_the_small_ring_is_that_of_pytorch(on_parties, stride, x_bits):
    """On shares and in plaintext; its message has 4 bytes a number. Input of 36 bits is rounded to 10 before."""
    weight, bias, x = (
        random(48, 40, 3, 3) / 16,
        random(48, seed=1),
        random(2, 40, 64 * stride, 16, seed=2, bits=x_bits // 2),
    )
    weight = np.round(weight / UNIT) * UNIT
    settings = {"stride": stride, "padding": ((1, 1), (1, 1))}

    def layer(weight, bias, x):
        return small_ring.conv2d({"weight": weight, "bias": bias, "ring": 32}, x, **settings)

    operands = [(weight, VALUE_BITS), (bias, 48), (x, x_bits)]
    result, cost = on_parties(layer, *operands)
    tensors = (torch.from_numpy(array.astype(np.float64)) for array in (x, weight, bias))
    expected = torch.nn.functional.conv2d(*tensors, stride=stride, padding=1).numpy()
    rounding = 0 if x_bits == VALUE_BITS else 2 * UNIT * np.sqrt((weight**2).sum((1, 2, 3)).max())
    assert np.abs(result - expected).max() <= UNIT + 5 * rounding
    assert cost.by_operator().loc["kernel_conv2d", ["bytes", "sends"]].tolist() == [3 * 4 * expected.size, 3]
    emulated = layer(*(number(*operand) for operand in operands))
    assert emulated.bits == 52 and np.abs(emulated.array - expected).max() <= UNIT / 2 + 5 * rounding


def test_projections_go_to_the_small_ring_together(on_parties):
    weights, x = random(3, 128, 128) / 8, random(1, 128, 352, seed=1)
    weights = np.round(weights / UNIT) * UNIT

    def layer(weights, x):
        layers = [{"weight": weights[index], "ring": 32} for index in range(3)]
        q, k, v = FAST_MIXED.projections(layers, x, protocols=FAST_MIXED)
        return q + k + v

    result, cost = on_parties(layer, (weights, VALUE_BITS), (x, VALUE_BITS))
    np.testing.assert_allclose(result[0], weights.astype(np.float64).sum(0) @ x[0], atol=3 * UNIT)
    assert cost.by_operator().loc["kernel_matmul", "bytes"] == 3 * 4 * 3 * 128 * 352


def test_without_the_owners_word_layers_are_those_of_fast_shares(on_parties):
    weight, x = random(64, 512), random(1, 512, 520, seed=1) / 4
    x = np.round(x / UNIT) * UNIT
    result, cost = on_parties(
        lambda weight, x: small_ring.linear({"weight": weight}, x), (weight, VALUE_BITS), (x, VALUE_BITS)
    )
    np.testing.assert_allclose(result[0], weight.astype(np.float64) @ x[0], atol=UNIT)
    assert cost.by_operator().loc["kernel_matmul", "bytes"] == 3 * 8 * 64 * 520


ROOMY = LayerProduct(largest=10, input_bits=10, inputs=100, outputs=100, multiply_adds=1000)


@pytest.mark.parametrize(
    ("changes", "goes"),
    [
        ({}, True),
        ({"largest": 511.9}, True),  # four times as much is below 2,048
        ({"largest": 512.0}, False),
        ({"input_bits": 36}, False),  # 28 numbers' messages are saved for 100 truncations, and little time
        ({"input_bits": 36, "outputs": 333}, False),  # 3,996 bytes against 4,000
        ({"input_bits": 36, "outputs": 334}, True),
        ({"input_bits": 36, "multiply_adds": 409_599}, False),
        ({"input_bits": 36, "multiply_adds": 409_600}, True),
        ({"input_bits": 36, "multiply_adds": 409_600, "largest": 600.0}, False),
    ],
)
def test_layers_go_that_fit_and_gain(changes, goes):
    products = {"a.conv1": replace(ROOMY, **changes), "a.conv2": replace(ROOMY, largest=1e4)}
    assert small_ring_layers(products) == (("a.conv1",) if goes else ())


def test_projections_of_a_block_go_together_or_stay():
    names = [f"{block}.{leaf}" for block in "ab" for leaf in ("to_q", "to_k", "to_v")]
    products = dict.fromkeys(names, ROOMY) | {"b.to_k": replace(ROOMY, largest=513.0), "b.to_out.0": ROOMY}
    assert set(small_ring_layers(products)) == {"a.to_q", "a.to_k", "a.to_v", "b.to_out.0"}
    wide = replace(ROOMY, input_bits=36, outputs=120)  # each alone saves too little: three share one truncation
    assert small_ring_layers(dict.fromkeys(names[:1], wide)) == ()
    assert small_ring_layers(dict.fromkeys(names[:3], wide)) == tuple(names[:3])


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A small calibrated model, not yet for products."""
    folder = tmp_path_factory.mktemp("mixed")
    made = init_unet(ONE_LEVEL, seed=1)
    params = {name: array * np.float32(0.3 if ".to_q." in name else 1) for name, array in made.params.items()}
    save_unet(replace(made, params=params, scheduler_config=SCHEDULER), folder)
    made = load_unet(folder)
    save_calibration(calibrate(made, make_schedule(SCHEDULER, "ddim", STEPS), images_per_class=16), made)
    return made


@pytest.fixture(scope="module")
def mixed(unet, tmp_path_factory):
    """The same, calibrated for products too."""
    folder = tmp_path_factory.mktemp("mixed-products")
    save_unet(unet, folder)
    made = load_unet(folder)
    products = measure_products(unet, steps=STEPS, per_class=4)
    save_calibration(load_file(unet.folder / FILE) | products_to_arrays(products), made)
    return made


def test_products_are_those_of_the_layers(unet, tmp_path):
    """One step: of the first layer to float32's precision, of the others those of diffusers as nearly as FAST is."""
    save_unet(unet, tmp_path)
    unet = load_unet(tmp_path)
    save_calibration(calibrate(unet, make_schedule(SCHEDULER, "ddim", 1), images_per_class=16), unet)
    found = measure_products(unet, steps=1, per_class=2, seed=4)
    noise = np.random.default_rng(4).standard_normal((6, 1, 8, 8), dtype=np.float32)
    x = torch.from_numpy(np.round(noise * 2**10) / 2**10)
    weight = torch.from_numpy(np.round(unet.params["conv_in.weight"] * 2.0**12) / 2**12)
    largest = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1).abs().max()
    assert found["conv_in"].largest == pytest.approx(float(largest), rel=1e-6)
    assert replace(found["conv_in"], largest=0) == LayerProduct(0, VALUE_BITS, 64, 4 * 64, 4 * 64 * 9)
    assert found["conv_out"].input_bits == 36
    exact = products_of_diffusers(unet, noise, 0, [0, 1, 2] * 2)
    assert found.keys() == exact.keys()
    folded = (".to_q", ".conv1")  # the owner has put factors into these
    plain = {name: np.abs(product).max() for name, product in exact.items() if not name.endswith(folded)}
    assert {name: found[name].largest for name in plain} == pytest.approx(plain, rel=0.1)


def test_the_owner_marks_the_layers_and_rounds_their_weights(mixed):
    timesteps = make_schedule(SCHEDULER, "ddim", STEPS).timesteps
    weights, plain = (prepare_weights(mixed, timesteps, protocols) for protocols in (FAST_MIXED, FAST_KERNELS))
    marked = {name.removesuffix(".ring") for name in weights.static.keys() - plain.static.keys()}
    assert "conv_in" in marked and "mid_block.attentions.0.to_q" in marked and "conv_out" not in marked
    assert {name: weights.bits.get(f"{name}.weight") for name in marked} == dict.fromkeys(marked, 10)
    assert {name: bits for name, bits in weights.bits.items() if name not in plain.bits} == {
        f"{name}.weight": 10 for name in marked
    }


def test_a_small_unet_on_three_parties_follows_the_emulation_and_the_exact_model(mixed, cluster):
    """All layers as kernels, and fewer bytes than in one ring."""
    settings = {"labels": [2, 0], "steps": STEPS, "seed": 5}
    with mock.patch("cipherdm.protocols.fast_kernels.LEAST_MULTIPLY_ADDS", 0):
        expected = sample(mixed, None, protocols=FAST_MIXED, **settings).images
        result, wide = (
            sample(mixed, cluster, granularity="step", protocols=protocols, **settings)
            for protocols in (FAST_MIXED, FAST_KERNELS)
        )
    exact = sample(mixed, None, protocols=DIRECT, **settings).images
    extent = float(expected.max() - expected.min())
    assert peak_signal_noise_ratio(expected, result.images, data_range=extent) > 45
    assert peak_signal_noise_ratio(exact, result.images, data_range=extent) > 30
    kernels = [report.cost.by_operator().loc["kernel_conv2d", "bytes"] for report in (result, wide)]
    assert kernels[0] < kernels[1] and result.cost.bytes < wide.cost.bytes


def test_the_set_has_a_name():
    assert named("fast-mixed") is FAST_MIXED


def test_without_products_the_command_is_named(unet, run, capsys):
    with pytest.raises(CipherDMError, match=f"cipherdm calibrate {unet.folder} --products"):
        sample(unet, None, labels=[0], steps=STEPS, protocols=FAST_MIXED)
    assert run("check-ranges", unet.folder, "--protocols", "fast-mixed") == 1
    assert f"cipherdm calibrate {unet.folder} --products" in capsys.readouterr().err


def test_the_command_adds_products_and_changes_nothing_else(unet, tmp_path, run, capsys):
    save_unet(unet, tmp_path)
    before = load_file(unet.folder / FILE)
    save_calibration(before, load_unet(tmp_path))
    for seed in (0, 1):  # the second time in the place of the first
        arguments = ("--products", "--timesteps", STEPS, "--images", 2, "--seed", seed)
        assert run("calibrate", tmp_path, *arguments) == 0
        after = load_file(tmp_path / FILE)
        assert {name: after[name].tobytes() for name in before} == {name: before[name].tobytes() for name in before}
        expected = products_to_arrays(measure_products(unet, steps=STEPS, per_class=2, seed=seed))
        assert after.keys() - before.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(after[name], array)
    assert "linear layers go to the ring of 32 bits" in capsys.readouterr().out


@pytest.mark.parametrize(("settings", "message"), [({"per_class": 0}, "1 image"), ({"steps": 0}, "steps")])
def test_mistakes_are_answered(unet, settings, message):
    with pytest.raises(CipherDMError, match=message):
        measure_products(unet, **{"steps": 1, "per_class": 1} | settings)


def test_products_of_an_uncalibrated_model_are_refused(tmp_path, run, capsys):
    save_unet(replace(init_unet(ONE_LEVEL), scheduler_config=SCHEDULER), tmp_path)
    assert run("calibrate", tmp_path, "--products") == 1
    assert "cipherdm calibrate" in capsys.readouterr().err
