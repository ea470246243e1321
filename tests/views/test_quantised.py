"""Ditto's fraction bits and the rings of its steps: sizes and errors are those of the model, pictures tell what they show."""

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch

import cipherdm as cdm
from cipherdm.protocols import DITTO
from cipherdm.sampling.ditto import ditto_nodes
from cipherdm.views import ditto_steps, fraction_explorer, fraction_figure, fraction_study, rings_of_layer
from cipherdm.views.quantised import _computed

TEXTS = ("A wonderful film.", "Dull, and far too long for what little it has to say.")


@pytest.fixture(scope="module")
def student():
    return cdm.load_transformer("reviews-tiny-quad")


@pytest.fixture(scope="module")
def study(student):
    return fraction_study(student, TEXTS, bits=range(6, 16))


def test_numbers_without_rounding_are_those_of_the_plaintext(student):
    exact = cdm.classify(student, None, TEXTS, embedded=True).logits
    values, sizes = _computed(student, TEXTS, 14, rounded=False)
    np.testing.assert_allclose(values["logits"], exact, atol=0.01)
    assert sizes["head.logits"]["logits"] == pytest.approx(np.abs(values["logits"]).max())
    # Before its truncation, the quadratic's word is eight times as large as that of another product.
    assert sizes["layers.0.ff"]["quadratic, times 8"] > 8 * 0.375 - 0.1  # z^2 / 8 + z / 4 + 1 / 2 is no smaller


def test_rounded_numbers_are_those_that_three_parties_find(student, cluster):
    found = cdm.classify(student, cluster, TEXTS, embedded=True, protocols=DITTO).logits
    values, _ = _computed(student, TEXTS, DITTO.small_bits, rounded=True)
    assert np.abs(values["logits"] - found).max() < 0.03  # truncations of the parties round up or down at random


def test_errors_halve_with_each_bit_until_numbers_wrap_around(study):
    assert study.errors[6] > 2**3 * study.errors[10] > 2**4 * study.errors[12] > 0
    assert study.errors[15] > 0.3 and max(study.largest.values()) > 2.0 ** (30 - 2 * 15)
    assert study.agreeing[12] == study.texts == len(TEXTS)


def test_the_figure_marks_numbers_of_bits_at_which_something_does_not_fit(study):
    figure = fraction_figure(study, 12)
    assert "products up to 64 fit" in figure.get_label() and "2 of 2 classes" in figure.axes[0].get_title()
    (wrong,) = (line for line in figure.axes[0].lines if line.get_marker() == "x")
    largest = max(study.largest.values())
    assert 2.0**4 < largest < 2.0**6  # 13 bits have room for the former, 12 for the latter
    assert wrong.get_xdata().tolist() == [13, 14, 15]


def test_the_slider_moves_the_mark(study):
    box = fraction_explorer(study)
    assert list(box.controls["bits"].values) == list(range(6, 16))
    box.set(bits=10)
    assert "10 fraction bits: products up to 1,024 fit" in box.shown.text


def test_steps_are_the_nodes_in_their_rings(student):
    steps, nodes = ditto_steps(student.config), ditto_nodes(student.config, DITTO, ring=True, embedded=True)
    assert steps.index.tolist() == [node.outputs[0] for node in nodes]
    ways = {"scores": "32 bits, walked", "below_maximum": "32 bits, compared by SPU", "layer_norm": "64 bits, SPU"}
    ways |= {"up": "conversion", "down": "conversion", "softmax": "64 bits, SPU", "feed_forward": "32 bits, walked"}
    assert all((steps["computed"][steps["function"] == name] == way).all() for name, way in ways.items())
    # SPU computes in one ring alone: between its steps in 64 bits and all others there is a conversion.
    large = steps[steps["computed"] == "64 bits, SPU"]
    assert {steps["function"][name] for reads in large["reads"] for name in reads} == {"up"}


def test_the_layer_has_a_box_per_step_and_an_arrow_per_result_that_is_read(student):
    layer = ditto_steps(student.config).query("block.str.startswith('layers.0.')").assign(bytes=3000, sends=7)
    figure = rings_of_layer(layer, "a layer")
    boxes, bars = figure.axes
    assert [text.get_text() for text in boxes.texts] == [name.replace("_", " ") for name in layer["function"]]
    inside = sum(name in layer.index for reads in layer["reads"] for name in reads)
    assert sum(isinstance(patch, FancyArrowPatch) for patch in boxes.patches) == inside == 13
    assert len(bars.patches) == len(layer) and "softmax (64 bits, SPU) 3 KB" in figure.get_label()
