"""Pictures of linear layers on shares: what is drawn is the data, and sliders work from end to end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from numpy.lib.stride_tricks import sliding_window_view

from cipherdm.kernels.products import FLOAT64, INT8
from cipherdm.kernels.shares import replicate
from cipherdm.views import kernels, rings
from cipherdm.views.pictures import image_panels
from cipherdm.views.style import PALETTE


def random_words(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, shape, np.uint64)


def image_of(axis):
    (image,) = axis.get_images()
    return np.asarray(image.get_array())


# One convolution.


def test_a_convolution_is_drawn_with_its_filter_as_numbers():
    picture, weights, result = np.eye(6), np.array([[1.0, -2.0], [0.0, 0.5]]), np.arange(25.0).reshape(5, 5) - 30
    figure = kernels.convolution(picture, weights, result)
    before, middle, after, _ = figure.axes
    assert np.array_equal(image_of(before), picture) and np.array_equal(image_of(after), result)
    assert [text.get_text() for text in middle.texts] == ["1", "-2", "0", "0.5"]
    low, high = after.get_images()[0].get_clim()
    assert low == -high == -30  # so that zero is in the middle of the colours
    assert "5 x 5 values from -30 to -6" in figure.get_label()


def test_every_party_is_shown_what_it_holds_sends_and_receives_and_nothing_else():
    pictures, filters = (replicate(random_words(3, *shape, seed=seed)) for seed, shape in enumerate(((6, 5), (3, 3))))
    z = list(random_words(3, 4, 3, seed=2))
    figure = kernels.party_views(pictures, filters, z, [z[1], z[2], z[0]])
    axes = np.array(figure.axes).reshape(3, 6)
    for party, row in enumerate(axes):
        after = (party + 1) % 3
        shown = (*pictures[party], *filters[party], z[party], z[after])
        for axis, words in zip(row, shown, strict=True):
            np.testing.assert_allclose(image_of(axis), words / 2.0**64)
            assert axis.get_images()[0].get_clim() == (0, 1)
        colours = [to_hex(axis.spines["left"].get_edgecolor()).upper() for axis in row]
        assert colours == [PALETTE[party], PALETTE[after]] * 3
        assert row[0].get_ylabel() == f"party {party}"
        assert row[4].get_title().endswith(f", to party {(party - 1) % 3}")
        assert row[5].get_title().endswith(f"from party {after}")


def test_the_description_tells_small_words_from_noise():
    noise = [random_words(2, 90, 90, seed=seed) for seed in range(3)]
    small = [pair >> np.uint64(40) for pair in noise]
    for pairs, words in (
        (noise, "below 0.10 and a tenth above 0.90 of"),
        (small, "below 0.00 and a tenth above 0.00 of"),
    ):
        messages = [pair[0] for pair in pairs]
        assert words in kernels.party_views(pairs, pairs, messages, messages).get_label()


def test_pictures_are_told_from_noise_in_words():
    ramp = np.add.outer(np.arange(20.0), np.arange(20.0))
    noise = random_words(20, 20).astype(np.float64)
    figure = image_panels({"one": ramp, "two": noise, "three": np.zeros((4, 4))})
    assert [axis.get_title() for axis in figure.axes] == ["one", "two", "three"]
    for axis, values in zip(figure.axes, (ramp, noise, np.zeros((4, 4))), strict=True):
        assert np.array_equal(image_of(axis), values)
    label = figure.get_label()
    assert "one: values from 0 to 38, a picture" in label
    assert label.index("noise") > label.index("two:") and "three: values from 0 to 0, all equal" in label


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 8), st.integers(0, 8))
def test_pixels_are_counted_as_patches_have_them(size, stride, more_rows, more_columns):
    shape = (size + more_rows, size + more_columns)
    indices = np.arange(shape[0] * shape[1]).reshape(shape)
    patches = sliding_window_view(indices, (size, size))[::stride, ::stride]
    expected = np.bincount(patches.ravel(), minlength=indices.size).reshape(shape)
    assert np.array_equal(kernels.patch_counts(shape, size, stride), expected)


def test_patches_are_drawn_beside_the_words_that_are_split():
    figure = kernels.patches((8, 7), size=3, stride=2)
    left, right, *_ = figure.axes
    assert np.array_equal(image_of(left), kernels.patch_counts((8, 7), 3, 2))
    assert [bar.get_width() for bar in right.patches] == [56, 3 * 3 * 9]
    assert "56 words, after it 81" in figure.get_label()


# Digits.


@pytest.mark.parametrize(
    "form",
    [path.form(bits) for path in (INT8, FLOAT64) for bits in (64, 32)],
    ids=lambda form: f"{form.bits} in {form.base}",
)
def test_digits_of_a_table_add_up_to_its_numbers(form):
    half = 1 << form.bits - 1
    numbers = [0, 5, -5, 200, half - 1, -half, 0x7F7F7F7F, -0x80808080 // 2]
    table = kernels.digit_table(form, numbers)
    assert table["sum"].tolist() == list(table.index) == [f"{number:,}" for number in numbers]
    digits = table.drop(columns="sum").to_numpy()
    assert digits.shape == (len(numbers), form.count)
    assert (digits >= -(1 << form.base - 1)).all() and (digits < 1 << form.base - 1).all()
    for number, row in zip(numbers, digits, strict=True):
        assert (sum(int(digit) << form.base * place for place, digit in enumerate(row)) - number) % (
            1 << form.bits
        ) == 0


@pytest.mark.parametrize(("path", "needed"), [(INT8, (36, 10)), (FLOAT64, (6, 3))])
def test_the_pairs_that_a_product_needs_have_a_colour(path, needed):
    forms = path.form(64), path.form(32)
    figure = kernels.digit_pairs(forms)
    for axis, form, count in zip(figure.axes, forms, needed, strict=True):
        squares = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
        coloured = [to_hex(square.get_facecolor()).upper() in PALETTE for square in squares]
        assert len(squares) == form.count**2 and sum(coloured) == count
        for square, is_coloured in zip(squares, coloured, strict=True):
            places = round(square.get_x() + 0.46) + round(square.get_y() + 0.46)
            assert is_coloured == (form.base * places < form.bits)
        assert f"{count} of {form.count**2} products" in axis.get_title()
        assert f"{count} of {form.count**2} pairs" in figure.get_label()


# Two rings.


@pytest.mark.parametrize(("inner", "bits"), [(16, 4), (300, 12), (2048, 14), (64, 15)])
def test_the_small_ring_is_right_exactly_below_its_edge(inner, bits):
    """Against the sum of products of the rounded numbers, in Python's integers."""
    products = rings.inner_products(inner, bits)
    generator = np.random.default_rng(0)
    values, weights = generator.normal(size=(12, inner)), generator.normal(0, rings.SPREAD, size=(inner, 12))
    first, second = (np.round(part * 2**bits).astype(np.int64).astype(object) for part in (values, weights))
    exact = (first @ second).ravel()
    assert (products.large * 4**bits).tolist() == exact.tolist()
    wrapped = (exact + 2**31) % 2**32 - 2**31
    assert (products.small * 4**bits).tolist() == wrapped.tolist()
    outside = np.array([not -(2**31) <= number < 2**31 for number in exact])
    assert np.array_equal(products.overflowed, outside)
    assert products.edge == 2**31 / 4**bits
    np.testing.assert_allclose(products.large, products.true, atol=inner**0.5 * 2.0**-bits)


def test_overflown_products_are_crosses_and_the_errors_are_drawn_for_both_rings():
    figure = rings.two_rings(15, 256)
    left, right = figure.axes
    products = rings.inner_products(256, 15)
    lines = {line.get_label(): line for line in left.lines}
    crosses, dots = lines["wrong"], lines["right"]
    assert np.array_equal(crosses.get_xdata(), products.true[products.overflowed])
    assert np.array_equal(dots.get_ydata(), products.small[~products.overflowed])
    assert f"{products.overflowed.sum()} of 144 are wrong" in figure.get_label() and products.overflowed.any()
    large, small = rings.largest_errors(256)
    drawn = {line.get_label(): line.get_ydata() for line in right.lines}
    assert np.array_equal(drawn["64 bits"], large) and np.array_equal(drawn["32 bits"], small)
    assert large[-1] < 1e-3 < 1 < small[-1]
    assert not any(line.get_label() == "wrong" for line in rings.two_rings(10, 16).axes[0].lines)


def test_the_rings_under_sliders():
    bits, inner, image, text = rings.two_rings_explorer().children
    pictures = {image.value}
    for fraction in (bits.min, bits.max):
        for power in (inner.min, inner.max):
            bits.value, inner.value = fraction, power
            pictures.add(image.value)
            assert f"of {2**power:,} terms with {fraction} fraction bits" in text.value
    assert len(pictures) == 5
