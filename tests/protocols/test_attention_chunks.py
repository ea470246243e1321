"""Attention in parts of its queries: the same numbers, whatever the parts are."""

import numpy as np
import pytest
from fast_layers import number, numbers, on_shares
from walking import read, walked, words_of

from cipherdm.engine import Spec
from cipherdm.kernels.ring_program import WalkPlan
from cipherdm.protocols import fast, fast_attention
from cipherdm.protocols.fast_attention import by_query_chunks
from cipherdm.protocols.fixed import Fixed, encode

PARAMS = {
    "to_q.h": (np.float32(0.75), fast_attention.FEATURE_BITS),
    "to_q.c": (np.float32(0.25), 20),
    "to_q.r0": (np.float32(-2.5), fast_attention.MIXED_BITS),
    "to_q.r1": (np.float32(0.125), 2 * fast_attention.MIXED_BITS),
    "to_q.squarings": 1,
    "to_q.newton": 0,
    "to_q.centred": 1,
}


def inputs(batch, heads, size, queries, tokens, seed=0):
    """Queries, keys and values of about 1/4."""
    generator = np.random.default_rng(seed)
    shapes = ((batch, heads, size, count) for count in (queries, tokens, tokens))
    return [generator.standard_normal(shape).astype(np.float32) / 4 for shape in shapes]


def attention(params, q, k, v, **rest):
    return fast_attention.attention(params, q, k, v, scale=1, softmax=None, **rest)


@pytest.mark.parametrize(("batch", "scores"), [(1, 1), (1, 30), (2, 50), (2, 1000)])
def test_parts_give_the_same_numbers(batch, scores):
    """As near as float32 sums are: on some processors their order depends on the shape of the product."""
    numbers_in = [number(x) for x in inputs(batch, 2, 3, 7, 5)]
    whole = attention(numbers(PARAMS), *numbers_in)
    parts = attention(numbers(PARAMS), *numbers_in, chunk_scores=scores)
    assert parts.bits == whole.bits
    np.testing.assert_allclose(parts.array, whole.array, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scores", "expected"), [(1, [1] * 7), (24, [2, 2, 2, 1]), (36, [3, 3, 1]), (1000, [7])])
def test_no_part_has_more_scores_than_allowed(scores, expected):
    q, _, _ = inputs(1, 2, 3, 7, 6)
    widths = []

    def attend(part):
        widths.append(part.shape[3])
        return part

    np.testing.assert_array_equal(by_query_chunks(attend, q, 6, scores), q)
    assert widths == expected


def test_parts_on_shares_are_what_plaintext_computes(cluster):
    values = inputs(1, 2, 4, 6, 5)
    expected = attention(numbers(PARAMS), *(number(x) for x in values)).truncated(fast.VALUE_BITS).array

    def in_parts(params, q, k, v):
        return attention(params, q, k, v, chunk_scores=2 * 5 * 2)

    np.testing.assert_allclose(on_shares(cluster, in_parts, PARAMS, *values), expected, atol=0.02)


def test_parts_are_walked():
    values = inputs(1, 2, 4, 6, 5)
    secret = {name: pair for name, pair in PARAMS.items() if isinstance(pair, tuple)}
    pairs = [*secret.values(), *((array, fast.VALUE_BITS) for array in values)]
    encoded = [encode(array, bits, ring=True) for array, bits in pairs]

    def in_parts(*arrays):
        loaded = [Fixed.load(array, bits, ring=True) for array, (_, bits) in zip(arrays, pairs, strict=True)]
        params, qkv = PARAMS | dict(zip(secret, loaded, strict=False)), loaded[len(secret) :]
        return attention(params, *qkv, chunk_scores=2 * 5 * 2).truncated(fast.VALUE_BITS).store()

    program = read(in_parts, [Spec.of(array) for array in encoded])
    with np.errstate(over="ignore"):  # NumPy warns of numbers that wrap around, and not of arrays
        (found,), _ = walked(WalkPlan.in_64_bits(program), [words_of(array) for array in encoded])
    expected = attention(numbers(PARAMS), *(number(x) for x in values)).truncated(fast.VALUE_BITS).array
    np.testing.assert_allclose(found * 2.0**-fast.VALUE_BITS, expected, atol=0.02)
