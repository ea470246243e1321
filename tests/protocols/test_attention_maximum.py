"""Attention below each row's maximum: right for scores that are far apart, in plaintext and on shares."""

import numpy as np
import pytest
from fast_layers import number, numbers, run_on_shares
from scipy.special import softmax

from cipherdm.owner.calibrate import LOWEST, fit_attention
from cipherdm.owner.fold import fold_exponential
from cipherdm.owner.fold_norms import Fits
from cipherdm.owner.prepared import PreparedWeights
from cipherdm.protocols import fast_attention

HEADS, SIZE, QUERIES, TOKENS = 2, 8, 6, 11


def projected(seed, spread):
    """Queries [1, heads, d, N] with scores of that deviation, keys and values."""
    generator = np.random.default_rng(seed)
    shapes = [(1, HEADS, SIZE, count) for count in (QUERIES, TOKENS, TOKENS)]
    q, k, v = (generator.standard_normal(shape).astype(np.float32) for shape in shapes)
    return q * np.float32(spread), k, v


def scores_of(q, k):
    return np.einsum("bhdn,bhdm->bhnm", q, k) * SIZE**-0.5


def fitted(spread):
    """The calibration of one step of scores with that deviation about their row's mean."""
    scores = np.concatenate([scores_of(*projected(seed, spread)[:2]).reshape(-1, TOKENS) for seed in range(50)])
    return fit_attention([scores - scores.mean(1, keepdims=True)])


def prepared(spread):
    """The parameters of `fast_attention.attention`, and by what the query's projection is multiplied."""
    stored = {f"attention.{leaf}": values for leaf, values in fitted(spread).items()}
    identity = {"attention.to_q.weight": np.ones((1, 1)), "attention.to_q.bias": np.zeros(1)}
    weights = PreparedWeights(identity, {}, {}, {}, {})
    fold_exponential(weights, Fits(stored, np.array([0])), "attention", SIZE)
    params = {
        name.removeprefix("attention."): (values[0].astype(np.float32), weights.bits[name])
        for name, values in weights.by_step.items()
        if name in weights.bits and not name.endswith((".weight", ".bias"))
    }
    public = {name.removeprefix("attention."): count for name, count in weights.static.items()}
    return params | public | {"to_q.centred": 0}, weights.by_step["attention.to_q.weight"][0, 0, 0]


def expected(q, k, v):
    return np.einsum("bhnm,bhdm->bhdn", softmax(scores_of(q, k), -1), v)


def attention(params, q, k, v):
    return fast_attention.attention(params, q, k, v, scale=1, softmax=None)


def test_small_scores_are_taken_about_the_mean():
    assert "floor" not in fitted(0.5)


@pytest.mark.parametrize("spread", [6, 20])
def test_scores_far_apart_are_taken_below_the_maximum(spread):
    assert fitted(spread)["floor"] == [LOWEST]
    params, factor = prepared(spread)
    q, k, v = projected(1000, spread)
    assert np.ptp(scores_of(q, k), axis=-1).max() > -1.5 * LOWEST
    found = attention(numbers(params), number(q * np.float32(factor)), number(k), number(v))
    np.testing.assert_allclose(found.array, expected(q, k, v), atol=0.03)


def test_scores_farther_apart_than_any_of_the_calibration_are_right_too():
    params, factor = prepared(8)
    q, k, v = projected(2000, 24)
    found = attention(numbers(params), number(q * np.float32(factor)), number(k), number(v))
    np.testing.assert_allclose(found.array, expected(q, k, v), atol=0.03)


def test_parties_find_the_maximum_too(cluster):
    params, factor = prepared(10)
    q, k, v = projected(3000, 10)
    found, cost = run_on_shares(cluster, attention, params, q * np.float32(factor), k, v)
    np.testing.assert_allclose(found, expected(q, k, v), atol=0.03)
    without = {name: values for name, values in params.items() if name != "to_q.floor"}
    _, plain = run_on_shares(cluster, attention, without, q * np.float32(factor), k, v)
    assert cost.sends - plain.sends == 32 * (4 + 1)  # of 11 tokens 6, 3, 2 and 1 are left
