"""Figures of the activations: what is drawn is what was computed or recorded, and described in words."""

import itertools
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import ImageFont

from cipherdm.approximations import exact
from cipherdm.approximations.exp import exp_cipherdm, exp_corrected
from cipherdm.approximations.piecewise import PiecewisePolynomial
from cipherdm.approximations.silu import silu_cipherdm, silu_polynomial
from cipherdm.errors import CipherDMError
from cipherdm.records import read_record
from cipherdm.views.activations import approximation_figure, counts_in_words, row_sums_figure, segments_figure
from cipherdm.views.pareto import AXES, Point, frontier, pareto_figure, pareto_points
from cipherdm.views.style import png

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"
KINDS = ("silu", "mish", "gelu", "exp", "softmax")


@pytest.fixture(scope="module")
def record():
    return read_record(MEASUREMENTS / "activations.json")


def lines_of(axis):
    return {line.get_label(): line.get_xydata() for line in axis.get_lines()}


# Curves.


def test_an_approximation_is_drawn_beside_the_exact_function_and_its_error_below():
    figure = approximation_figure([silu_cipherdm, silu_polynomial(10, 6)], exact.silu, -10, 10)
    above, below = figure.axes
    drawn = lines_of(above)
    x, y = drawn["silu_cipherdm"].T
    np.testing.assert_allclose(y, silu_cipherdm(np.float32(x)), rtol=1e-6)
    np.testing.assert_allclose(drawn["exact"][:, 1], exact.silu(x), rtol=1e-6)
    np.testing.assert_allclose(below.get_lines()[0].get_ydata(), y - exact.silu(x), atol=1e-6)
    assert "Incorrect" not in above.get_title() and "silu_cipherdm is off by at most 0.06" in figure.get_label()
    assert len(png(figure)) > 10_000


def test_what_is_outside_the_domain_is_called_incorrect():
    figure = approximation_figure(silu_polynomial(6), exact.silu, -9, 9)
    assert figure.axes[0].get_title().startswith("Incorrect outside [-6, 6]")
    assert sorted(patch.get_x() for patch in figure.axes[0].patches) == [-9, 6]
    assert all(patch.get_hatch() for axis in figure.axes for patch in axis.patches)
    assert "Hatched outside [-6, 6]" in figure.get_label()
    inside = approximation_figure(silu_polynomial(6), exact.silu, -6, 6)
    assert not inside.axes[0].patches and "Incorrect" not in inside.axes[0].get_title()


def test_errors_can_be_shares_of_the_value():
    low, high = -2, -1
    figure = approximation_figure(exp_corrected, np.exp, low, high, relative=True, title="mine")
    x, error = figure.axes[1].get_lines()[0].get_xydata().T
    np.testing.assert_allclose(error, exp_corrected(np.float32(x)) / np.exp(x) - 1, atol=1e-5)
    assert figure.axes[0].get_title() == "mine" and "relative" in figure.get_label()


def test_a_piecewise_polynomial_draws_itself():
    figure = segments_figure(silu_cipherdm, -8, 8, exact.silu)
    drawn = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 3]
    assert [line.get_label() for line in drawn][:1] + [drawn[-1].get_label()] == ["0", "x"]
    assert "- 0.522 - 0.169 x - 0.0142 x^2" in figure.get_label() and "+ 8.03e-05 x^6" in figure.get_label()
    for line in drawn:
        x, y = line.get_xydata().T
        np.testing.assert_allclose(y, silu_cipherdm(np.float32(x)), atol=1e-5)
    assert sum(len(line.get_xdata()) for line in drawn) == 801
    assert figure.axes[0].get_title() == "silu_cipherdm, 3 comparisons, 3 selections, 3 products, 2 sums"
    one = PiecewisePolynomial("quad", (-4, 4), (), ((0.5, 0.25, 0.125),))
    assert counts_in_words(one) == "0 comparisons, 0 selections, 1 product, 1 sum"
    assert segments_figure(one, -5, 5).axes[0].get_title().startswith("Incorrect where hatched")


def test_row_sums_show_where_denominators_vanish():
    scores = np.random.default_rng(0).normal(0, 2.5, (100, 196))
    figure = row_sums_figure(scores, [exp_cipherdm, exp_corrected])
    shifted = np.float32(scores - scores.max(axis=1, keepdims=True))
    x, y = lines_of(figure.axes[0])["exp_cipherdm"].T
    np.testing.assert_allclose(x, np.exp(np.float64(shifted)).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(y, np.asarray(exp_cipherdm(shifted)).sum(axis=1), atol=1e-3)
    assert (y < 0).any() and f"exp_cipherdm from {y.min():.2g}" in figure.get_label()


# Error against cost.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cost", AXES)
def test_the_pareto_picture_shows_the_record(record, kind, cost):
    points = pareto_points(record, kind, cost)
    rows = [row for row in record["rows"] if row["kind"] == kind and row["elements"] == 100_000]
    amounts = [row["bytes"] / row["elements"] if cost == "bytes" else row[cost] for row in rows]
    assert [(p.cost, p.error) for p in points] == list(zip(amounts, (row["max_error"] for row in rows), strict=True))
    assert {p.family for p in points} >= {"direct", "published", "ours", "ours, scales folded"}
    shown = pareto_figure(record, kind, cost)
    assert len(marks_of(shown.picture)) >= len(points) + len({p.family for p in points})  # those of the legend, too
    assert AXES[cost] in shown.text and all(p.label in shown.text for p in points)
    assert ">largest error</text>" in shown.picture and f">{AXES[cost]}</text>" in shown.picture


@pytest.mark.parametrize("kind", KINDS)
def test_marks_stand_on_logarithmic_axes(record, kind):
    points = sorted(pareto_points(record, kind), key=lambda p: p.cost)
    places = np.array(marks_of(pareto_figure(record, kind).picture)[: len(points)])
    for values, along in zip(np.log([(p.cost, p.error) for p in points]).T, places.T, strict=True):
        assert np.abs(np.polyval(np.polyfit(values, along, 1), values) - along).max() < 0.3  # pixels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cost", AXES)
def test_labels_overlap_nothing(record, kind, cost):
    picture, points = pareto_figure(record, kind, cost).picture, pareto_points(record, kind, cost)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 10)
    found = re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)" font-size="10" stroke[^>]*>([^<]+)<', picture)
    boxes = [(float(x), float(y) - 8, float(x) + font.getlength(unescape(text)), float(y)) for x, y, text in found]
    assert len(boxes) == len(points)
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
    for x, y in marks_of(picture)[: len(points)]:
        assert not any(left < x < right and top < y < bottom for left, top, right, bottom in boxes)
    assert all(64 <= left and right <= 580 and 34 <= top and bottom <= 350 for left, top, right, bottom in boxes)


def marks_of(picture):
    return [
        tuple(map(float, place)) for place in re.findall(r'transform="translate\(([\d.]+) ([\d.]+)\)" [rd]=', picture)
    ]


def test_the_frontier_is_what_nothing_beats():
    points = [Point(str(i), "ours", *pair) for i, pair in enumerate([(1, 9), (2, 5), (2, 6), (3, 5), (4, 1), (5, 2)])]
    assert [p.label for p in frontier(points)] == ["0", "1", "4"]


def test_unknown_costs_kinds_and_sizes_are_named(record):
    with pytest.raises(CipherDMError, match="'hours'.*bytes, sends, ms"):
        pareto_points(record, "silu", "hours")
    with pytest.raises(CipherDMError, match="'relu'.*silu"):
        pareto_points(record, "relu")
    with pytest.raises(CipherDMError, match="7 elements: there are none"):
        pareto_points(record, "silu", elements=7)
