"""The bench of the arithmetic covers each layer, ring and path once, and counts the work right."""

import numpy as np
import pytest

from cipherdm.linear.paths import FLOAT64, INT8
from cipherdm.linear.rates import LAYERS, Layer, Rate, measure

SMALL = (
    Layer("convolution", "conv", 3, 18, 16),
    Layer("matrix", "linear", 3, 4, 5, 2),
    Layer("scores", "attention", 3, 4, 5, 2),
)


def test_every_case_is_measured_once():
    seen = []
    rates = list(measure(SMALL, repetitions=1, progress=lambda done, total, name: seen.append((done, total, name))))
    cases = [(rate.layer, rate.bits, rate.path) for rate in rates]
    assert cases == [(layer, bits, path.name) for layer in SMALL for bits in (64, 32) for path in (INT8, FLOAT64)]
    assert [done for done, *_ in seen] == list(range(12)) and all(total == 12 for _, total, _ in seen)
    assert all(rate.seconds_prepare == 0 for rate in rates if rate.layer.kind == "attention")


def test_work_is_that_of_the_layer_and_twice_as_much_on_shares():
    by_name = {layer.name: layer.multiply_adds for layer in LAYERS}
    assert by_name["mnist10 convolution"] == 128 * 128 * 9 * 14 * 14
    assert by_name["Stable Diffusion scores"] == by_name["Stable Diffusion values"] == 8 * 4096 * 4096 * 40
    rate = Rate(SMALL[0], "int8", 64, seconds=2.0, seconds_prepare=0.0)
    assert rate.layer_rate == pytest.approx(3 * 18 * 16 / 2)
    assert rate.ring_rate == pytest.approx(np.float64(3 * 18 * 16))
