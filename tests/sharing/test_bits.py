"""Bits, comparison, selection and polynomials in `cipherdm.sharing`, against Python's integers."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from cipherdm import CipherDMError
from cipherdm.sharing import (
    BIT,
    Ring,
    ThreeParties,
    bit_decomposition,
    bit_to_number,
    less_than,
    less_than_zero,
    maximum,
    polynomial,
    relu,
    select,
    truncate,
    truncate_local,
)

SIZES = (2, 3, 5, 8, 13, 31, 32, 63, 64)
quick = settings(max_examples=50, deadline=None)


@st.composite
def ring_and_numbers(draw, fraction=1):
    """A ring and its numbers, within a fraction of its range, extremes among them."""
    ring = Ring(draw(st.sampled_from(SIZES)))
    lowest, highest = -(2 ** (ring.bits - 1) // fraction), (2 ** (ring.bits - 1) // fraction) - 1
    number = st.sampled_from([lowest, max(lowest, highest), 0, -1]) | st.integers(lowest, max(lowest, highest))
    return ring, draw(st.lists(number, min_size=6, max_size=6)), draw(st.lists(number, min_size=6, max_size=6))


@quick
@given(ring_and_numbers(), st.integers(0, 2**32))
def test_bits_and_signs_of_all_numbers(drawn, seed):
    ring, numbers, _ = drawn
    parties = ThreeParties(0, ring, seed)
    x = parties.share(np.array(numbers, np.int64))
    bits = bit_decomposition(parties, x)
    assert bits.ring == BIT
    assert parties.open(bits).tolist() == [[number >> place & 1 for place in range(ring.bits)] for number in numbers]
    negative = less_than_zero(parties, x)
    assert negative.ring == BIT
    assert parties.open(negative).tolist() == [int(number < 0) for number in numbers]
    for result in (bits, negative):
        assert np.array_equal(result.held[:, 1], np.roll(result.held[:, 0], -1, axis=0))


@quick
@given(ring_and_numbers(fraction=2), st.integers(0, 2**32))
def test_comparison_and_selection(drawn, seed):
    ring, one, other = drawn  # within half the range, so that differences fit
    parties = ThreeParties(0, ring, seed)
    x, y = (parties.share(np.array(numbers, np.int64)) for numbers in (one, other))
    pairs = list(zip(one, other, strict=True))
    smaller = less_than(parties, x, y)
    assert parties.open(smaller).tolist() == [int(a < b) for a, b in pairs]
    assert parties.open(select(parties, smaller, x, y)).tolist() == [min(pair) for pair in pairs]
    number = bit_to_number(parties, smaller, ring)
    assert parties.open(select(parties, number, y, x)).tolist() == [max(pair) for pair in pairs]
    assert parties.open(maximum(parties, x, y)).tolist() == [max(pair) for pair in pairs]
    assert parties.open(relu(parties, x)).tolist() == [max(a, 0) for a in one]


def test_a_difference_that_leaves_the_range_compares_wrongly():
    """As the docstring says; with one bit more it is right."""
    parties = ThreeParties(0, Ring(8))
    assert parties.open(less_than(parties, parties.share([-100]), parties.share([100]))).tolist() == [0]
    parties = ThreeParties(0, Ring(9))
    assert parties.open(less_than(parties, parties.share([-100]), parties.share([100]))).tolist() == [1]


@quick
@given(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.sampled_from(SIZES), st.integers(0, 2**32))
def test_bits_become_numbers(bits, size, seed):
    parties = ThreeParties(0, Ring(64), seed)
    number = bit_to_number(parties, parties.share(bits, 0, BIT), Ring(size))
    assert number.ring == Ring(size) and number.fraction_bits == 0
    assert [value % 2**size for value in parties.open(number).tolist()] == bits
    with pytest.raises(CipherDMError, match="are not bits"):
        bit_to_number(parties, number, Ring(64))


@pytest.mark.parametrize("size", SIZES)
def test_rounds_grow_with_the_logarithm_of_the_size(size):
    ring = Ring(size)
    parties = ThreeParties(0, ring)
    x = parties.share(np.zeros(8, np.int64))
    start = parties.transcript.rounds
    less_than_zero(parties, x)
    assert parties.transcript.rounds - start == 2 + int(np.ceil(np.log2(size - 1))) if size > 2 else 2
    start = parties.transcript.rounds
    bit_decomposition(parties, x)
    assert parties.transcript.rounds - start == 2 + int(np.ceil(np.log2(size)))


def test_what_a_comparison_of_64_bits_sends():
    parties = ThreeParties(0)
    x = parties.share(np.zeros(8, np.int64))  # eight numbers, so that bits fill bytes
    select(parties, less_than_zero(parties, x), x, x)
    bit_decomposition(parties, x)
    summary = parties.transcript.summary()
    # The bits of one addend; 63 products of bits; and from 63 blocks of positions to one, two products for each merger.
    assert summary.loc["less than zero"].tolist() == [8, 1 + 3 * 7, 8 * 64 // 8 + 3 * (63 + 2 * 62)]
    # One number from party 0, a product for XOR, a product for the choice.
    assert summary.loc["select"].tolist() == [3, 1 + 3 + 3, 8 * 8 * 7]
    assert summary.loc["bit decomposition"].tolist() == [8, 1 + 3 * 7, 8 * 64 // 8 * (1 + 3 + 3 * 2 * 6)]


@pytest.mark.parametrize("truncation", [truncate, truncate_local])
@quick
@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=6),
    st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_polynomials(truncation, coefficients, xs, seed):
    parties = ThreeParties(18, seed=seed)
    x = parties.share(xs)
    result = polynomial(parties, coefficients, x, truncation)
    assert result.fraction_bits == 18
    exact = np.polynomial.polynomial.polyval(np.array(xs), coefficients)
    # Each step's error: a unit of truncation, half a unit of the coefficient, half a unit of x times the value so far.
    error, value = 2.0**-18, 0.0
    bound = 0.0
    for coefficient in reversed(coefficients):
        bound = bound * 3.01 + error * (2 + value)
        value = value * 3.01 + abs(coefficient)
    np.testing.assert_allclose(parties.open(result), exact, rtol=0, atol=bound)


def test_what_polynomials_cost_and_refuse():
    parties = ThreeParties(18)
    x = parties.share([0.5])
    polynomial(parties, [1.0, 2.0, 3.0, 4.0], x)
    row = parties.transcript.summary().loc["polynomial"]
    assert row.tolist() == [2 * 1 + 3 * 3, 2 * 3 + 3 * 5, 2 * 24 + 3 * 48]
    assert parties.open(polynomial(parties, [1.25], x)).tolist() == [1.25]
    with pytest.raises(CipherDMError, match="needs a coefficient"):
        polynomial(parties, [], x)
