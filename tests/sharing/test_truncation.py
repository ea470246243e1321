"""Truncation in `cipherdm.sharing`: right to one word, and wrong as often as the formula says."""

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from cipherdm import CipherDMError
from cipherdm.sharing import Ring, ThreeParties, truncate, truncate_local

SIZES = (3, 8, 13, 16, 32, 63, 64)


def shared(ring, numbers, fraction_bits, seed=0):
    """Parties, and words that they share. The words are given as Python's integers."""
    parties = ThreeParties(fraction_bits, ring, seed)
    x = parties.share(np.array(numbers, np.int64), 0)
    return parties, type(x)(x.held, ring, fraction_bits)


def words_of(parties, x):
    """The words of a result, with their sign, as Python's integers."""
    return parties.open(type(x)(x.held, x.ring, 0)).tolist()


def nearest(number, bits):
    """The one or two words that number / 2^bits lies between."""
    exact = Fraction(number, 2**bits)
    return {exact.__floor__(), exact.__ceil__()}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SIZES), st.data(), st.integers(0, 2**32))
def test_the_sure_truncation_is_right_over_all_its_range(size, data, seed):
    ring, end = Ring(size), 2 ** (size - 2)
    bits = data.draw(st.integers(0, size - 2))
    number = st.sampled_from([-end, end - 1, 0, -1, 1]) | st.integers(-end, end - 1)
    numbers = data.draw(st.lists(number.filter(lambda value: -end <= value < end), min_size=1, max_size=8))
    parties, x = shared(ring, numbers, size - 1, seed)
    result = truncate(parties, x, bits)
    assert result.fraction_bits == size - 1 - bits
    for before, after in zip(numbers, words_of(parties, result), strict=True):
        assert after in nearest(before, bits)
    assert np.array_equal(result.held[:, 1], np.roll(result.held[:, 0], -1, axis=0))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from((32, 63, 64)), st.data(), st.integers(0, 2**32))
def test_the_local_truncation_is_right_for_small_numbers(size, data, seed):
    """Of words below 2^(l - 30), one in 2^30 fails."""
    ring, end = Ring(size), 2 ** (size - 30)
    bits = data.draw(st.integers(0, size - 1))
    numbers = data.draw(st.lists(st.integers(-end, end), min_size=1, max_size=8))
    parties, x = shared(ring, numbers, size - 1, seed)
    result = truncate_local(parties, x, bits)
    for before, after in zip(numbers, words_of(parties, result), strict=True):
        assert after in nearest(before, bits)
    assert np.array_equal(result.held[:, 1], np.roll(result.held[:, 0], -1, axis=0))


SAMPLES = 40_000


def failures(truncation, ring, number, bits):
    """How many of many truncations of one word are wrong, each by what the docstring says."""
    parties, x = shared(ring, np.full(SAMPLES, number), bits, seed=7)
    results = np.array(words_of(parties, truncation(parties, x, bits)))
    right = np.isin(results, list(nearest(number, bits)))
    off = 2 ** (ring.bits - bits)
    shifted = {(value + sign * off) for value in nearest(number, bits) for sign in (-1, 1)}
    in_ring = {(value + ring.modulus // 2) % ring.modulus - ring.modulus // 2 for value in shifted}
    assert np.isin(results[~right], list(in_ring)).all()
    return int((~right).sum())


@pytest.mark.parametrize("size, bits", [(16, 6), (24, 10), (64, 18)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share_of_ring", [2, 3, 5, 8, 11])
def test_the_local_truncation_fails_as_often_as_the_formula_says(size, bits, sign, share_of_ring):
    number = sign * (2 ** (size - share_of_ring) - 1)
    wrong = failures(truncate_local, Ring(size), number, bits)
    rate = abs(number) / 2**size
    assert stats.binomtest(wrong, SAMPLES, rate).pvalue > 1e-4
    # The same counts refute a formula that is off by a factor of two, so that the line above can fail.
    assert stats.binomtest(wrong, SAMPLES, 2 * rate).pvalue < 1e-2 or rate < 2**-10


@pytest.mark.parametrize("size, bits", [(16, 6), (64, 18)])
@pytest.mark.parametrize("number, rate", [(3 / 8, 1 / 4), (-3 / 8, 1 / 4), (5 / 16, 1 / 8), (-0.49, 0.48), (0.25, 0)])
def test_beyond_its_range_the_sure_truncation_fails_too(size, bits, number, rate):
    """`number` is a share of the ring; the range ends at a quarter. At its very end nothing has failed yet."""
    wrong = failures(truncate, Ring(size), round(number * 2**size), bits)
    assert stats.binomtest(wrong, SAMPLES, rate).pvalue > 1e-4 if rate else wrong == 0


@pytest.mark.parametrize("truncation", [truncate, truncate_local])
@pytest.mark.parametrize("number", [1000, -1000, 1024, 13])
def test_rounding_is_right_on_average(truncation, number):
    parties, x = shared(Ring(64), np.full(SAMPLES, number), 6, seed=3)
    results = words_of(parties, truncation(parties, x, 6))
    up = sum(result == Fraction(number, 64).__floor__() + 1 for result in results)
    chance = Fraction(number, 64) % 1
    assert stats.binomtest(up, SAMPLES, float(chance)).pvalue > 1e-4 if chance else up == 0


@pytest.mark.parametrize("truncation, rounds, messages, words", [(truncate, 3, 5, 6), (truncate_local, 1, 1, 1)])
def test_what_truncations_send(truncation, rounds, messages, words):
    parties = ThreeParties()
    x = parties.share(np.ones((7, 3)))
    truncation(parties, parties.multiply(x, x))
    row = parties.transcript.summary().iloc[-1]
    assert (row["rounds"], row["messages"], row["bytes"]) == (rounds, messages, words * 8 * 21)


@pytest.mark.parametrize("truncation", [truncate, truncate_local])
def test_mistakes_are_named(truncation):
    parties = ThreeParties(18)
    x = parties.share([1.0])
    for bits in (19, -1):
        with pytest.raises(CipherDMError, match=f"{bits} bits cannot be dropped from 18"):
            truncation(parties, x, bits)
    assert truncation(parties, x).fraction_bits == 0
    assert parties.open(truncation(parties, parties.multiply(*[parties.share(-2.5)] * 2))) == 6.25  # a single number


@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_offset_must_stay_whole(size):
    parties = ThreeParties(size - 1, Ring(size))
    with pytest.raises(CipherDMError, match=f"at most {size - 2} bits can be dropped"):
        truncate(parties, parties.share([0.25]), size - 1)
