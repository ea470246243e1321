"""Pictures of fixed point and truncation: what is drawn is the data, and sliders work from end to end."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from matplotlib.patches import Rectangle

from cipherdm.sharing import FixedPoint, Ring
from cipherdm.views.fixed_point import (
    carry_levels,
    carry_tree,
    failure_rates,
    operation_rounds,
    overflow,
    staircase,
    staircase_explorer,
    truncations,
    wrapped,
)


def test_numbers_out_of_range_come_back_at_the_other_end():
    encoding = FixedPoint(Ring(6), 2)
    values = np.array([7.75, 8.0, -8.25, 16.0, 0.13])
    assert wrapped(values, encoding).tolist() == [7.75, -8.0, 7.75, 0.0, 0.25]


@pytest.mark.parametrize("bits, fraction_bits", [(6, 2), (3, 0), (16, 4)])
def test_a_staircase_has_the_encoded_numbers_inside_and_wrong_ones_outside(bits, fraction_bits):
    encoding = FixedPoint(Ring(bits), fraction_bits)
    figure = staircase(encoding)
    (axis,) = figure.axes
    _, right, *wrong = axis.lines
    x, y = right.get_data()
    inside = ~np.isnan(y)
    assert np.array_equal(y[inside], encoding.decode(encoding.encode(x[inside])))
    assert np.abs(y[inside] - x[inside]).max() <= encoding.unit / 2
    assert bool(wrong) == (encoding.highest < 10) == ("wrapped around" in figure.get_label())
    if wrong:
        x, y = wrong[0].get_data()
        assert np.abs((y - x)[~np.isnan(y)]).min() >= 2**bits * encoding.unit - encoding.unit
    assert f"unit {encoding.unit:g}" in axis.get_title() and f"steps of {encoding.unit:g}" in figure.get_label()


def test_the_staircase_under_sliders():
    box = staircase_explorer()
    pictures = {box.shown.picture}
    for size in (2, 16):
        for fraction in (0, 15):
            box.set(bits=size, fraction_bits=fraction)
            pictures.add(box.shown.picture)
            assert f"steps of {2.0 ** -min(fraction, size - 1):g}," in box.shown.text
    assert len(pictures) == 5


def test_wrong_truncations_are_crosses():
    true = np.array([10.4, -3.0, 7.7])
    figure = truncations(true, {"Incorrect": np.array([10.0, 1000.0, 8.0]), "right": np.array([11.0, -3.0, 7.0])})
    left, right = figure.axes
    assert [line.get_xydata().tolist() for line in left.lines] == [[[10.4, 10.0], [7.7, 8.0]], [[-3.0, 1000.0]]]
    assert [len(line.get_xdata()) for line in right.lines] == [3, 0]
    assert "Incorrect: 1 of 3" in figure.get_label() and "right: 0 of 3" in figure.get_label()


def test_failure_rates_stand_beside_the_formula():
    sizes, rates = np.array([1.0, 4.0, 16.0]), np.array([0.0, 0.02, 0.06])
    figure = failure_rates(sizes, rates, 1000, Ring(8))
    (axis,) = figure.axes
    formula, seen, never = axis.lines
    assert formula.get_ydata().tolist() == [1 / 256, 4 / 256, 16 / 256]
    assert seen.get_xydata().tolist() == [[4, 0.02], [16, 0.06]]
    assert never.get_xdata().tolist() == [1] and never.get_ydata()[0] >= axis.get_ylim()[0]
    assert "16: 0.06" in figure.get_label()


def test_overflow_marks_what_is_wrong():
    x = np.array([-2.0, 0.0, 1.0, 3.0])
    figure = overflow(x, x**2, {"Incorrect": np.array([-4.0, 0.0, 1.0, -7.0]), "remedy": x**2 + 0.1}, tolerance=0.5)
    left, right = figure.axes
    assert left.get_title() == "Incorrect"
    assert left.lines[1].get_xydata().tolist() == [[0, 0], [1, 1]]
    assert left.lines[2].get_xydata().tolist() == [[-2, -4], [3, -7]]
    assert len(right.lines) == 2
    assert "wrong from |x| = 2 on" in figure.get_label() and "remedy: right everywhere" in figure.get_label()


def test_bars_are_rounds_and_bytes_of_one_number():
    table = pd.DataFrame({"rounds": [1, 8], "messages": [3, 22], "bytes": [240, 790]}, index=["multiply", "compare"])
    figure = operation_rounds(table, 10)
    rounds, sent = ([bar.get_width() for bar in axis.patches] for axis in figure.axes)
    assert rounds == [1, 8] and sent == [24, 79]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["multiply", "compare"]
    assert "compare 8 rounds and 79 bytes" in figure.get_label()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 4, 8, 16]), st.data())
def test_blocks_make_pass_or_stop_a_carry_as_addition_does(bits, data):
    first, second = (data.draw(st.integers(0, 2**bits - 1)) for _ in range(2))
    for depth, level in enumerate(carry_levels(first, second, bits)):
        width = 2**depth
        assert len(level) == bits // width
        for block, kind in enumerate(level):
            a, b = ((number >> (block * width)) % 2**width for number in (first, second))
            out = {kept: (a + b + kept) >> width for kept in (0, 1)}
            assert kind == {(0, 0): "stops", (0, 1): "passes", (1, 1): "makes"}[out[0], out[1]]


@pytest.mark.parametrize(
    "first, second, leaves", [(109, 150, True), (255, 255, True), (0, 0, False), (128, 127, False)]
)
def test_a_carry_tree_shows_all_blocks_and_the_outcome(first, second, leaves):
    figure = carry_tree(first, second)
    (axis,) = figure.axes
    levels = carry_levels(first, second, 8)
    blocks = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert len(blocks) == sum(len(level) for level in levels) == 15
    shown = [text.get_text() for text in axis.texts]
    assert shown[1:9] == list(reversed(f"{first:08b}")) and shown[10:18] == list(reversed(f"{second:08b}"))
    assert shown[-1] == levels[-1][0]
    outcome = "a carry leaves" if leaves else "no carry leaves"
    assert outcome in axis.get_title() and f"So {outcome}" in figure.get_label()


def test_overflow_in_rows_of_two():
    x = np.arange(4.0)
    figure = overflow(x, x**2, {name: x**2 for name in "abc"}, tolerance=0.5)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]
    assert [axis.axison for axis in figure.axes] == [True, True, True, False]
