"""Attention of FAST where not all tokens count: padding, which is secret, and tokens to come, which are public."""

from functools import partial

import jax
import numpy as np
import pytest
from fast_layers import number, numbers, on_shares

from cipherdm.approximations.softmax import PADDING, softmax_bounded
from cipherdm.owner.calibrate import fit_attention
from cipherdm.protocols import direct, fast_attention
from cipherdm.protocols.fast import VALUE_BITS
from cipherdm.protocols.fast_attention import TOKEN_BITS, shares_among, token_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")
TOKENS, SIZE = 20, 4
CAUSAL = np.tri(TOKENS, dtype=np.float32)


def heads():
    """Queries, keys and values of two texts with two heads, and a mask of 1 for tokens: 20, and 7."""
    generator = np.random.default_rng(5)
    q, k, v = generator.standard_normal((3, 2, 2, SIZE, TOKENS), dtype=np.float32)
    mask = np.ones((2, TOKENS), np.float32)
    mask[1, 7:] = 0
    return q, k, v, mask


def fitted(q, k, there):
    """The parameters of `fast_attention.attention`, fitted to the scores that count, and the query with its factor."""
    scores = np.einsum("bhdn,bhdm->bhnm", q, k).astype(np.float64) / SIZE**0.5
    rows = np.where(there, scores, np.nan).reshape(-1, TOKENS)
    found = fit_attention([rows - np.nanmean(rows, 1, keepdims=True)], np.nanmean)
    (alpha, beta, gamma), (squarings, newton) = found["exp"][0], found["counts"].astype(int)
    stretch, bits = np.sqrt(alpha), fast_attention.MIXED_BITS
    h = beta / (2 * stretch)
    params = {"h": (h, fast_attention.FEATURE_BITS), "c": (gamma - h**2, 20), "constant": (gamma, 20)}
    params |= {"r0": (found["sum"][0, 0], bits), "r1": (found["sum"][0, 1], 2 * bits)}
    params |= {"squarings": int(squarings), "newton": int(newton), "centred": 1}
    return {f"to_q.{name}": values for name, values in params.items()}, q * stretch * 2**squarings / SIZE**0.5


def exact(q, k, v, **masked):
    return np.asarray(direct.attention({}, q, k, v, scale=SIZE**-0.5, softmax=jax.nn.softmax, **masked))


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def with_mask(params, q, k, v, weights):
    """Attention with weights of tokens, which are public here."""
    mask = fast_attention.constant(weights, TOKEN_BITS, q)
    return fast_attention.attention(params, q, k, v, scale=0.5, softmax=None, mask=mask)


def test_padding_has_no_weight(cluster):
    q, k, v, mask = heads()
    params, scaled = fitted(q, k, mask.astype(bool)[:, None, None])
    found = with_mask(numbers(params), *map(number, (scaled, k, v)), token_weights(mask))
    expected = exact(q, k, v, mask=((1 - mask) * PADDING).astype(np.float32))
    assert rms(np.asarray(found.array) - expected) < 0.05 * rms(expected)
    # Another text in the place of the padding changes nothing.
    other = [x.copy() for x in (k, v)]
    for array, value in zip(other, (0.3, 5.0), strict=True):
        array[1, :, :, 7:] = value
    again = with_mask(numbers(params), *map(number, (scaled, *other)), token_weights(mask))
    np.testing.assert_allclose(again.array[1], found.array[1], atol=0.02)
    secure = on_shares(cluster, partial(with_mask, weights=token_weights(mask)), params, scaled, k, v)
    np.testing.assert_allclose(secure, found.truncated(VALUE_BITS).array, atol=0.03)


def test_a_token_attends_to_itself_and_those_before(cluster):
    q, k, v, _ = heads()
    among = (CAUSAL, *shares_among(CAUSAL.sum(1), TOKENS))
    params, scaled = fitted(q, k, CAUSAL.astype(bool))
    attend = partial(fast_attention.attention, scale=0.5, softmax=None, among=among)
    found = attend(numbers(params), *map(number, (scaled, k, v)))
    expected = exact(q, k, v, among=among)
    assert rms(np.asarray(found.array) - expected) < 0.05 * rms(expected)
    np.testing.assert_allclose(found.array[..., 0], v[..., 0], atol=0.1)  # the first one has itself alone
    secure = on_shares(cluster, attend, params, scaled, k, v)
    np.testing.assert_allclose(secure, found.truncated(VALUE_BITS).array, atol=0.03)


@pytest.mark.parametrize("places", [1, 5, 64, 1000])
def test_shares_are_between_1_and_2_and_units_whole_powers_of_two(places):
    counts = np.arange(1, places + 1)
    share, unit = shares_among(counts, places)
    assert (share >= 1).all() and (share < 2).all()
    np.testing.assert_array_equal(np.log2(unit) % 1, 0)
    assert unit.min() >= 1
    np.testing.assert_allclose(share * unit / 2.0 ** fast_attention.token_shift(places), 1 / counts, rtol=1e-6)


def test_a_bounded_softmax_leaves_out_what_is_masked():
    q, k, v, mask = heads()
    softmax = softmax_bounded(6)
    padding = ((1 - mask) * PADDING).astype(np.float32)
    found = direct.attention({}, q, k, v, scale=SIZE**-0.5, softmax=softmax, mask=padding)
    np.testing.assert_allclose(found, exact(q, k, v, mask=padding), atol=0.05)
    among = (CAUSAL, *shares_among(CAUSAL.sum(1), TOKENS))
    found = direct.attention({}, q, k, v, scale=SIZE**-0.5, softmax=softmax, among=among)
    np.testing.assert_allclose(found, exact(q, k, v, among=among), atol=0.05)
