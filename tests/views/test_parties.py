"""The pictures of the engine at work show what they are given, describe it in words, and follow a slider at once."""

import io

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cipherdm import LAN, WAN, Network
from cipherdm.engine import Spec, compile_program
from cipherdm.hosts import make_certificates
from cipherdm.views.networks import PARTS, SharesPicture, network_explorer, network_times, parts
from cipherdm.views.parties import (
    byte_histograms,
    byte_uniformity,
    certificate_table,
    instructions,
    operation_costs,
    random_numbers,
    squares,
)
from cipherdm.views.style import png


@pytest.fixture
def table():
    """Three operations as `bench.operations` tells of them."""
    columns = {
        "ms": [5.0, 20.0, 400.0],
        "bytes_per_element": [0.0, 52.0, 680.0],
        "messages": [0, 8, 520],
        "busiest_messages": [0, 3, 180],
        "busiest_bytes": [0, 200_000, 2_400_000],
    }
    return pd.DataFrame(columns, index=["addition", "product", "softmax"])


def assert_readable(figure):
    """The figure can be drawn, its axes are labelled, and it says in words what it shows."""
    assert Image.open(io.BytesIO(png(figure))).size[0] > 400
    assert all(axis.get_xlabel() for axis in figure.axes)
    assert len(figure.get_label()) > 60


def test_byte_histograms_count_bytes():
    figure = byte_histograms({"even": np.arange(256, dtype=np.uint8), "one value": b"\x07" * 100})
    assert_readable(figure)
    even, single = ([bar.get_height() for bar in axis.patches] for axis in figure.axes)
    np.testing.assert_allclose(even, 100 / 256)
    assert single[7] == 100 and sum(single) == 100
    assert "one value: the most frequent byte makes up 100%" in figure.get_label()


def test_uniform_bytes_pass_and_others_do_not():
    generator = np.random.default_rng(1)
    assert byte_uniformity(generator.integers(0, 2**64, 20_000, np.uint64)) > 1e-6
    assert byte_uniformity(generator.normal(size=20_000)) < 1e-6
    assert byte_uniformity(generator.integers(0, 2**62, 20_000, np.uint64)) < 1e-6  # two bits are missing


def test_operation_costs_draw_bars_and_the_record_beside_them(table):
    figure = operation_costs({"this run": table, "recorded": table.assign(ms=table["ms"] * 2)})
    assert_readable(figure)
    times, sizes, messages = figure.axes
    assert [bar.get_width() for bar in times.patches] == [5, 20, 400]
    np.testing.assert_allclose(times.collections[0].get_offsets()[:, 0], [10, 40, 800])
    # A logarithmic axis has no zero; a mark there would be lost without a word.
    assert len(sizes.collections[0].get_offsets()) == len(messages.collections[0].get_offsets()) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["this run", "recorded"]
    assert "softmax 400 ms, 680 bytes per element, 520 messages" in figure.get_label()
    assert not operation_costs({"this run": table}).legends


def test_a_networks_parts_are_delay_and_bandwidth(table):
    times = parts(table, Network("mine", 40e-3, 100e6))
    assert list(times.columns) == list(PARTS)
    assert list(times.loc["product"]) == pytest.approx([20, 3 * 20, 200_000 * 8 / 100e6 * 1000])
    assert list(times.loc["addition"]) == [5, 0, 0]


def test_network_times_stack_the_parts(table):
    figure = network_times(table, [LAN, WAN])
    assert_readable(figure)
    for axis, network in zip(figure.axes, (LAN, WAN), strict=True):
        ends = [bar.get_x() + bar.get_width() for bar in axis.patches[-3:]]
        np.testing.assert_allclose(ends, parts(table, network).sum(axis=1))
    assert "over WAN softmax takes longest, 4,048 ms" in figure.get_label()


def test_the_shares_picture_follows_the_network(table):
    fast, slow = Network("fast", 0.1e-3, 10e9), Network("slow", 300e-3, 10e6)
    picture = SharesPicture(table, fast)
    assert_readable(picture.figure)
    near = picture.pixels()
    far_label = picture.show(slow).get_label()
    far = picture.pixels()
    assert near.shape == far.shape and (near != far).any()
    assert "softmax 92%" in far_label
    picture.show(fast)
    np.testing.assert_array_equal(picture.pixels(), near)  # nothing of the other network is left


def test_the_explorer_answers_to_both_sliders_at_their_ends(table):
    box = network_explorer(table)
    assert "Messages on their way" in box.shown.text
    seen = {box.shown.picture}
    for name, control in box.controls.items():
        for end in (control.values[0], control.values[-1]):
            box.set(**{name: end})
            seen.add(box.shown.picture)
            assert f"{end:.3g} {'ms' if name == 'round_trip' else 'Mbit/s'}" in box.shown.text
    assert len(seen) == 5


def test_random_numbers_are_titled():
    generator = np.random.default_rng(0)
    figure = random_numbers(generator.uniform(-1e8, 1e8, 1000), generator.normal(size=1000))
    assert_readable(figure)
    assert figure.axes[0].get_title().startswith("Incorrect")
    assert "Incorrect" not in figure.axes[1].get_title()


def test_squares_mark_what_is_wrong():
    x = np.float32([1e3, 1e4, 2e4, 3e4])
    true = x.astype(float) ** 2
    figure = squares(x, np.where(true < 2**27, true, -true), true, 2.0**27)
    assert_readable(figure)
    assert "wrong from 4e+08 on" in figure.get_label()
    for axis, wrong in zip(figure.axes, (2, 0), strict=True):
        assert [len(marks.get_offsets()) for marks in axis.collections] == [4 - wrong, wrong]
    assert "Incorrect" in figure.axes[0].get_title() and "Incorrect" not in figure.axes[1].get_title()


ROLES = ("party0", "party1", "party2", "client", "owner")


def test_the_certificates_table_names_roles_and_their_authority(tmp_path):
    rows = certificate_table(make_certificates(tmp_path, ROLES, hosts=("example.org", "10.0.0.1"), days=3))
    assert list(rows.index) == list(ROLES)
    assert rows.loc["party1", "subject"] == "CN=party1"
    assert rows.loc["client", "valid for"] == "client, example.org, 10.0.0.1"
    assert rows["signed by"].nunique() == 1 and set(rows["days"]) == {3}


def test_instructions_are_a_line_each():
    def shifted_product(a, b):
        return a @ b + jnp.float32(2.5)

    lines = instructions(compile_program(shifted_product, (Spec((3, 4)), Spec((4, 2))))).splitlines()
    assert [line.split()[2] for line in lines] == ["constant", "dot", "add"]
    assert "2.5" in lines[0]
