"""One cut in this process: what was sent is told as it was, and the pictures show it."""

import re

import numpy as np
import pytest

from cipherdm.kernels.cut import Cut
from cipherdm.views.cut_figures import cut_diagram, message_histograms, openings
from cipherdm.views.cuts import additive_parts, cut_costs, interval, knowledge, run_cut, signed, told_apart

OF = Cut(16, 6, 16)
NUMBER = -11952


def parts_of(number, count=1, seed=0):
    parts = np.random.default_rng(seed).integers(0, 1 << 16, (3, count)).astype(np.uint64)
    parts[2] = np.uint64(number % (1 << 64)) - parts[0] - parts[1]
    return parts


@pytest.fixture(scope="module")
def one():
    return run_cut(parts_of(NUMBER), OF, operation=0)


def test_messages_have_their_names_and_the_results_are_right(one):
    assert list(one.sent) == ["z", "c", "f", "e", "t0", "t1"]
    table = one.table()
    assert table["round"].tolist() == [1, 1, 1, 2, 2, 3]
    assert table["bytes"].sum() == 9 and table["message"].tolist() == ["z₂", "c₁", "f", "e", "t₀", "t₁"]
    assert one.numbers.tolist() == [NUMBER] and one.results[0] in (-187, -186)
    y1 = (one.sent["t0"] + one.sent["t1"]) & np.uint64(0xFFFF)
    assert y1 == one.pairs[0][1] & np.uint64(0xFFFF)


def test_of_the_addends_the_result_follows(one):
    x1 = one.known_to_party_1.astype(np.int64)
    # As the cut's docstring says: r is x_1 modulo 2^s.
    assert one.results[0] == (NUMBER - 1 - x1[0] % 64 >> 6) + 1
    table = knowledge(one)
    assert table.loc["party 2", "receives"] == "nothing"
    assert table.loc["party 1", "works out"] == f"x₁ = {x1[0]:04x}"
    x0 = int(table.loc["party 0", "works out"][-4:], 16)
    assert (x0 + x1[0] + 1 - NUMBER) % (1 << 16) == 0
    words = [set(text.split(", ")) for text in table["ends with"]]
    assert all(len(words[party] & words[(party + 1) % 3]) == 1 for party in range(3))


def test_many_numbers_over_several_strips():
    seen = run_cut(parts_of(NUMBER, 40_000), OF, operation=3)
    assert set(seen.results.tolist()) == {-187, -186}
    assert seen.results.mean() == pytest.approx(NUMBER / 64, abs=0.02)
    assert (seen.known_to_party_1 < 1 << 16).all() and len(seen.sent["e"]) == 40_000


def test_products_of_components_add_up():
    x, y = (np.random.default_rng(seed).integers(0, 1 << 16, (3, 5)).astype(np.uint64) for seed in (0, 1))
    parts = additive_parts(x, y)
    np.testing.assert_array_equal(parts.sum(axis=0), x.sum(axis=0) * y.sum(axis=0))
    assert signed(np.array([0xFFFF, 5, 0x18000], np.uint64), 16).tolist() == [-1, 5, -(1 << 15)]


def test_costs_are_those_of_the_messages():
    table = cut_costs([Cut(64, 18, 64), Cut(32, 10, 32), Cut(64, 32, 32)])
    assert table["all"].tolist() == [27.25, 14.25, 16] and table["rounds"].tolist() == [3, 3, 2]
    assert table.loc["64 bits to 32, 32 off", "e"] == 0


def test_messages_do_not_tell_two_numbers_apart_but_other_ones_do():
    count = 100_000
    first, second = parts_of(NUMBER), parts_of(100)
    second[:2] = first[:2]
    second[2] = np.uint64(100) - second[0] - second[1]
    cuts = [run_cut(np.repeat(parts, count, axis=1), OF, operation) for operation, parts in enumerate((first, second))]
    assert all(told_apart(*cuts, party) > 1e-4 for party in (0, 1))
    cuts[1].sent["t0"][:] >>= np.uint64(1)
    assert told_apart(*cuts, 1) < 1e-9
    figure = message_histograms({"one": cuts[0], "other": cuts[1]})
    assert len(figure.axes) == 6 and "p-value" in figure.get_label()


def test_the_diagram_has_an_arrow_for_each_message(one):
    shown = cut_diagram(one).shown
    assert len(re.findall("l-?11-5v10z", shown.picture)) == 6
    assert f"round 1, party 2 to party 0, z₂ + share of zero = {int(one.sent['z'][0]):04x}, 2 B" in shown.text


def test_openings_end_at_the_number():
    seen = run_cut(parts_of(NUMBER, 4096), OF, operation=5)
    possible = interval(seen, 4096)
    assert possible[0] == 64 and possible[-1] == 1
    figure = openings(seen, 4096)
    alone = 1 + int(np.argmax(possible == 1))
    assert f"one is left after {alone} openings" in figure.get_label()
    found = figure.axes[0].lines[1].get_ydata()
    assert found[-1] == pytest.approx(NUMBER, abs=2)
