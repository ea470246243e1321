"""The check of the products in the ring of 32 bits: its numbers are diffusers', its verdict the ring's."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from small import ONE_LEVEL, SCHEDULER, products_of_diffusers
from typer.testing import CliRunner

from cipherdm import CipherDMError
from cipherdm.calibration import measure_products
from cipherdm.cli import build
from cipherdm.kernels.products import INTEGERS, matrix_product
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.owner.calibrate import calibrate
from cipherdm.owner.observe import load_calibration, save_calibration
from cipherdm.owner.ring_ranges import check_small_ring
from cipherdm.owner.rings import products_from_arrays, products_to_arrays, small_ring_layers
from cipherdm.schedules import make_schedule

NOISE = {"steps": 1, "per_class": 2, "seed": 3}
FIRST = "conv_in"
BITS = 10  # of values and of weights
LIMIT = 2**31 / 2 ** (2 * BITS)
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A small model, calibrated for products too."""
    folder = tmp_path_factory.mktemp("ring") / "model"
    save_unet(replace(init_unet(replace(ONE_LEVEL, num_class_embeds=2)), scheduler_config=SCHEDULER), folder)
    made = load_unet(folder)
    fits = calibrate(made, make_schedule(SCHEDULER, "ddim", 1), images_per_class=16)
    save_calibration(fits, made)
    save_calibration(fits | products_to_arrays(measure_products(made, steps=1, per_class=2)), made)
    return made


@pytest.fixture(scope="module")
def large(unet, tmp_path_factory):
    """A model whose first layer leaves the ring, beside the calibration of one where it does not, and what is found."""
    model = scaled(unet, FIRST, 4000, tmp_path_factory.mktemp("ring-large"))
    return model, check_small_ring(model, **NOISE)


def scaled(unet, name, factor, folder):
    """The model with one weight times a factor, in a folder with the same calibration."""
    params = unet.params | {f"{name}.weight": np.float32(factor) * unet.params[f"{name}.weight"]}
    made = replace(unet, params=params, folder=folder)
    save_calibration(load_calibration(unet), made)
    return made


def first_sample():
    """What the check begins with: pictures of the classes 0, 1, 0, 1."""
    return np.random.default_rng(NOISE["seed"]).standard_normal((4, 1, 8, 8), dtype=np.float32)


def test_every_layer_in_the_small_ring_is_met_with_the_numbers_that_diffusers_has(unet):
    found = {entry.layer: entry for entry in check_small_ring(unet, **NOISE)}
    calibration = load_calibration(unet)
    assert found.keys() == set(small_ring_layers(products_from_arrays(calibration, unet.folder)))
    products = products_of_diffusers(unet, first_sample(), 0, [0, 1, 0, 1])  # the one timestep of one step
    queries = [name for name in found if name.endswith(".to_q")]
    for name in queries:  # the owner folds the scale and a factor of the exponential into the queries
        block = name.removesuffix(".to_q")
        stretch = np.sqrt(calibration[f"{block}.exp"][0, 0] / unet.config.attention_head_dim)
        products[name] = products[name] * stretch * 2 ** calibration[f"{block}.counts"][0]
    assert queries and FIRST in found
    for name, entry in found.items():
        # Weights are rounded to multiples of 2^-10, and a product has up to 72 terms of size 1.
        np.testing.assert_allclose(
            (entry.lowest, entry.highest), (products[name].min(), products[name].max()), atol=0.03
        )
        assert entry.allowed == (-LIMIT, LIMIT) and entry.outside == entry.excess == 0 and entry.step is None


def test_what_is_outside_is_what_comes_out_wrong_modulo_2_to_the_32(large):
    """The first layer on the words of its real input, by the reference of the kernels, against the product in float64."""
    model, found = large
    first = {entry.layer: entry for entry in found}[FIRST]
    x = np.pad(first_sample()[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    patches = sliding_window_view(x, (3, 3), axis=(1, 2)).reshape(-1, 9)
    weights = model.params[f"{FIRST}.weight"].reshape(4, 9).astype(np.float64)
    words = [np.round(a * 2**BITS).astype(np.int64).astype(np.uint32) for a in (patches, weights.T)]
    small = matrix_product(INTEGERS, *words).view(np.int32) / 2.0 ** (2 * BITS)
    true = patches @ weights.T
    wrong = np.abs(small - true) > LIMIT  # a wrap is twice as far, rounding much less
    assert 0.02 < wrong.mean() < 0.9
    assert first.outside == pytest.approx(wrong.mean(), abs=0.003)  # numbers within rounding of the edge
    assert first.step == 0 and first.allowed == (-LIMIT, LIMIT)
    assert first.excess == pytest.approx(np.abs(true).max() - LIMIT, rel=1e-5)


def test_layers_that_leave_the_ring_come_first(large):
    found = large[1]
    assert found[0].layer == FIRST and found[0].outside > 0
    assert [entry.outside for entry in found] == sorted((entry.outside for entry in found), reverse=True)
    inside = [max(-entry.lowest, entry.highest) for entry in found if not entry.outside]
    assert inside == sorted(inside, reverse=True) and inside


def test_numbers_that_are_none_are_outside(unet, tmp_path):
    name = "mid_block.attentions.0.to_v"
    found = {entry.layer: entry for entry in check_small_ring(scaled(unet, name, np.nan, tmp_path), **NOISE)}
    assert found[name].outside == 1 and found[FIRST].outside == 0


def test_the_command_names_the_layer_and_fails(unet, large, tmp_path):
    """Normalisations may leave their ranges in both models: their first layer is what differs."""
    for name, model in (("large", large[0]), ("small", unet)):
        folder = tmp_path / name
        save_unet(model, folder)
        save_calibration(load_calibration(unet), load_unet(folder))
        options = ["--protocols", "fast-mixed", "--steps", "1", "--count", "2", "--seed", "3"]
        result = CliRunner().invoke(build(), ["check-ranges", str(folder), *options])
        *rows, verdict = result.stdout.splitlines()
        (row,) = [row.split() for row in rows if row.split()[:2] == [FIRST, "conv2d"]]
        assert row[4:7] == ["-2048", "to", "2048"], result.stdout
        leaving = verdict.removesuffix(".").rpartition(": ")[2].split(", ")
        assert (FIRST in leaving) == (row[7] != "0%") == (name == "large"), verdict
        assert result.exit_code == (3 if "leave their range" in verdict else 0)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"per_class": 0}, "at least 1 step and 1 image"),
        ({}, {"steps": 2000}, "steps"),
        ({"scheduler_config": None}, {}, "no scheduler"),
    ],
)
def test_mistakes_are_answered(unet, changes, settings, message):
    with pytest.raises(CipherDMError, match=message):
        check_small_ring(replace(unet, **changes), **NOISE | settings)
