"""Products of ring words against Python's integers, at the extremes of several rings and across the parts of long sums."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherdm import CipherDMError
from cipherdm.kernels.digits import Digits, Format
from cipherdm.kernels.products import (
    FLOAT64,
    INT8,
    INTEGERS,
    PATHS,
    choose_path,
    is_exact,
    matrix_product,
    product,
    trial,
)
from cipherdm.kernels.rounds import mask

BITS = (64, 40, 32, 16, 8)
EXTREMES = [
    0,
    1,
    -1,
    2,
    1 << 63,
    (1 << 63) - 1,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    0x8080808080808080,
    0x7F7F7F7F7F7F7F7F,
]
EXTREMES += [-0x8080808080808080, -(1 << 21) - (1 << 43) - (1 << 63)]


def integer_product(a, b, bits=64):
    """a @ b by Python's integers, modulo 2^bits."""
    return (a.astype(object) @ b.astype(object) % (1 << bits)).astype(np.uint64)


def reduced(numbers, shape):
    return np.array([number % (1 << 64) for number in numbers], np.uint64).reshape(shape)


def random_words(generator, shape):
    return generator.integers(0, 1 << 64, shape, dtype=np.uint64)


def assert_product(path, a, b, bits):
    result = matrix_product(path, a, b, bits)
    assert result.dtype == np.uint64
    np.testing.assert_array_equal(result & mask(bits), integer_product(a, b, bits))


@st.composite
def operands(draw):
    """Two small matrices of ring words, extremes among them, and a ring."""
    bits = draw(st.sampled_from((*BITS, 37)))
    rows, inner, columns = (draw(st.integers(1, 6)) for _ in range(3))
    number = st.one_of(st.sampled_from(EXTREMES), st.integers(0, (1 << 64) - 1))
    a, b = (draw(st.lists(number, min_size=size, max_size=size)) for size in (rows * inner, inner * columns))
    return bits, reduced(a, (rows, inner)), reduced(b, (inner, columns))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@settings(max_examples=60, deadline=None)
@given(operands())
def test_products_equal_those_of_integers(path, case):
    bits, a, b = case
    assert_product(path, a, b, bits)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@settings(max_examples=60, deadline=None)
@given(operands())
def test_digits_are_in_range_and_add_up_to_the_word(path, case):
    bits, a, _ = case
    form = path.form(bits)
    digits = np.vectorize(int, otypes=[object])(form.split(a))
    if path is not INTEGERS:
        assert digits.min() >= -(1 << form.base - 1) and digits.max() < 1 << form.base - 1
    total = sum(digit * (1 << form.base * place) for place, digit in enumerate(digits))
    np.testing.assert_array_equal((total % (1 << form.bits)).astype(np.uint64), a & mask(form.bits))


@pytest.mark.parametrize("path", (INT8, FLOAT64), ids=lambda path: path.name)
@pytest.mark.parametrize("bits", BITS)
def test_limits_are_the_longest_sums_that_cannot_overflow(path, bits):
    form = path.form(bits)
    highest = (1 << 31) - 1 if path is INT8 else 1 << 53
    widths = [min(form.base, form.bits - form.base * place) for place in range(form.count)]
    sizes = [1 << width - 1 for width in widths]  # a digit's largest absolute value
    worst = max(sum(sizes[i] * sizes[s - i] for i in range(s + 1)) for s in range(form.count))
    assert form.limit * worst <= highest < (form.limit + 1) * worst


@pytest.mark.parametrize("bits", (64, 32))
@pytest.mark.parametrize("path", (INT8, FLOAT64), ids=lambda path: path.name)
@pytest.mark.parametrize("lowest", (True, False))
def test_long_sums_of_extreme_digits(path, bits, lowest):
    """Every digit at one end of its range, and sums of one part, one more than one part, and several parts."""
    form = path.form(bits)
    halves = int(form.halves)
    number = -halves if lowest else halves - sum(1 << place for place in range(0, form.bits, form.base))
    for inner in (form.limit, form.limit + 1, 3 * form.limit + 5):
        a = reduced([number], (1, 1)).repeat(inner, 1)
        expected = inner * number * number % (1 << bits)
        assert int(matrix_product(path, a, a.T, bits)[0, 0]) % (1 << bits) == expected
        assert len(Digits.left(form, a).parts) == -(-inner // form.limit)


@pytest.mark.parametrize("bits", (64, 40, 8))
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 5), (3, 40, 700), (700, 17, 3), (530, 33, 520), (5, 1030, 6), (2, 0, 3)]
)
def test_shapes_larger_than_a_block_and_odd_ones(bits, shape):
    rows, inner, columns = shape
    generator = np.random.default_rng(1)
    a, b = random_words(generator, (rows, inner)), random_words(generator, (inner, columns))
    expected = (a @ b) & mask(bits)  # NumPy's words wrap around
    for path in (INT8, FLOAT64):
        np.testing.assert_array_equal(matrix_product(path, a, b, bits) & mask(bits), expected)


def test_result_can_go_into_a_view_and_digits_can_be_used_again():
    generator = np.random.default_rng(2)
    a, b, c = (random_words(generator, shape) for shape in ((7, 9), (9, 5), (9, 4)))
    form = INT8.form(64)
    left = Digits.left(form, a)
    room = np.zeros((7, 12), np.uint64)
    product(INT8, left, Digits.right(form, b.T), out=room[:, 1:11:2])
    np.testing.assert_array_equal(room[:, 1:11:2], integer_product(a, b))
    assert not room[:, ::2].any()
    np.testing.assert_array_equal(product(INT8, left, Digits.right(form, c.T)), integer_product(a, c))


def test_the_chosen_path_is_the_fastest_exact_one():
    found = trial()
    assert found is trial() and choose_path() is found.path
    assert is_exact(found.path)
    assert found.path.name in str(found)
    assert found.rates == {} or found.rates[found.path.name] == max(found.rates.values())


def test_a_path_that_saturates_is_not_exact():
    """Sums of pairs of products held in 16 bits, as processors without VNNI do."""

    def saturating(left, right, out):
        products = left[:, None].astype(np.int32) * right[None]
        if products.shape[2] % 2:
            products = np.pad(products, ((0, 0), (0, 0), (0, 1)))
        pairs = products[..., 0::2] + products[..., 1::2]
        out[:] = pairs.clip(-(1 << 15), (1 << 15) - 1).sum(-1)

    assert not is_exact(replace(INT8, multiply=saturating))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda form, a: product(INT8, Digits.right(form, a), Digits.right(form, a)), "make them with Digits.left"),
        (lambda form, a: product(FLOAT64, Digits.left(form, a), Digits.right(form, a)), "path 'float64'"),
        (lambda form, a: product(INT8, Digits.left(form, a), Digits.right(form, a[:, 1:])), "3 and 2"),
        (lambda form, a: Digits.left(form, a.astype(np.uint32)), "not of uint32"),
        (lambda form, a: Digits.left(form, a[0]), "two axes"),
        (lambda form, a: INT8.form(0), "1 to 64 bits"),
        (lambda form, a: product(INT8, Digits.left(form, a), Digits.right(INT8.form(32), a)), "different rings"),
    ],
)
def test_operands_that_do_not_fit_are_refused(call, message):
    with pytest.raises(CipherDMError, match=message):
        call(INT8.form(64), np.zeros((3, 3), np.uint64))


def test_parts_are_nearly_equal_and_none_is_too_long(monkeypatch):
    monkeypatch.setattr(Format, "limit", 10)
    form = INT8.form(64)
    assert form.sizes(10) == (10,)
    assert form.sizes(11) == (5, 6)
    assert form.sizes(31) == (7, 8, 8, 8)
