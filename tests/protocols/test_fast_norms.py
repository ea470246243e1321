"""FAST's normalisations by moments and its gated GELU, against the direct ones, in plaintext and on three parties."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from fast_layers import number, numbers, on_shares, run_on_shares
from hypothesis import given, settings

from cipherdm.approximations import exact
from cipherdm.approximations.knuth import adapt_quartic
from cipherdm.owner.fits import fit_even, newton_start, widened_ends
from cipherdm.protocols import DIRECT, FAST, direct, fast_norms
from cipherdm.protocols.fast import CONSTANT_BITS, GAIN_BITS, POWER_BITS, VALUE_BITS
from cipherdm.protocols.fast_norms import FACTOR_BITS, WEIGHT_BITS
from cipherdm.protocols.fixed import Fixed, means, sums

EPS = 1e-5
pytestmark = pytest.mark.usefixtures("quick_compilation")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_sums_and_means_over_any_axis(count, axis, seed):
    shape = [2, 3]
    shape.insert(axis, count)
    words = np.random.default_rng(seed).integers(-(2**13), 2**13, shape)
    x = Fixed.load(jnp.asarray(words * 2.0**-VALUE_BITS, jnp.float32), VALUE_BITS, ring=False)
    exact = words.sum(axis)
    assert (np.asarray(sums(x, axis).array, np.float64) * 2**VALUE_BITS == exact).all()
    mean = means(x, axis)
    assert mean.bits == VALUE_BITS
    np.testing.assert_allclose(np.asarray(mean.array) * 2**VALUE_BITS, exact / count, rtol=0, atol=0.51)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_means_on_shares(cluster, axis):
    x = 50 * random(3, 5, 7)
    result = on_shares(cluster, lambda _, x: means(x, axis), {}, x)
    np.testing.assert_allclose(result, x.mean(axis), rtol=0, atol=2 * 2.0**-VALUE_BITS)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1, 300), st.integers(0, 9))
def test_newton_from_the_start_has_the_error_that_is_said(low, ratio, steps):
    high = low * ratio
    p, q, said = newton_start(low, high, steps)
    v = np.geomspace(low, high, 5001)
    y = p - q * v
    for _ in range(steps):
        y = y * (3 - v * y * y) / 2
    largest = np.abs(y * np.sqrt(v) - 1).max()
    assert largest <= said + 1e-6
    assert largest >= 0.9 * said - 1e-6


def root_params(variances, count, newton):
    """Those of fast_norms.inverse_root for variances [B, K], a range for each of K."""
    low, high = variances.min(0) / 1.2, variances.max(0) * 1.2
    typical = np.sqrt(low * high)
    p, q, _ = np.array([newton_start(*ends, newton) for ends in zip(low / typical, high / typical, strict=True)]).T
    tiny = EPS / typical
    factors = np.stack([1 / (2 * typical), -q / typical]) / count
    offsets = np.stack([tiny / 2, p - q * tiny])
    return {"factors": (factors, FACTOR_BITS), "offsets": (offsets, FACTOR_BITS), "newton": newton}, typical


@pytest.fixture(scope="module")
def pictures():
    """Pictures whose groups' means and variances differ widely, and a layer's parameters for them."""
    scale, offset = np.exp(random(6, 4, 1, 1, seed=3) * np.float32(0.4)), random(6, 4, 1, 1, seed=4)
    x = random(6, 4, 8, 8) * scale + 2 * offset
    weight, bias = random(4, seed=1) + np.float32(2), random(4, seed=2)
    variances = x.reshape(6, 2, -1).var(2) + EPS
    assert (variances.max(0) > 2 * variances.min(0)).all()
    params, typical = root_params(variances, 2 * 64, newton=4)
    params["weight"] = (weight / np.sqrt(np.repeat(typical, 2)), WEIGHT_BITS)
    params["shift"] = (bias, GAIN_BITS)
    return x, {"weight": weight, "bias": bias}, params


def group_norm(params, x):
    return fast_norms.group_norm(params, x, groups=2, eps=EPS)


def test_group_norm_whatever_the_means_are(pictures):
    x, affine, params = pictures
    expected = direct.group_norm(affine, jnp.asarray(x), groups=2, eps=EPS)
    result = group_norm(numbers(params), number(x))
    assert result.bits == GAIN_BITS + VALUE_BITS
    assert rms(result.array - expected) < 0.003 * rms(expected)
    moved = group_norm(numbers(params), number(x + np.float32(3)))
    assert rms(moved.array - expected) < 0.005 * rms(expected)


def test_group_norm_on_shares(cluster, pictures):
    x, _, params = pictures
    expected = group_norm(numbers(params), number(x)).truncated(VALUE_BITS).array
    np.testing.assert_allclose(on_shares(cluster, group_norm, params, x), expected, rtol=0, atol=0.015)


@pytest.fixture(scope="module")
def tokens():
    """Tokens [B, C, N] with variances of their own, and a layer's parameters for them."""
    x = random(3, 24, 10) * np.exp(random(3, 1, 10, seed=5) * np.float32(0.5)) + random(3, 1, 10, seed=6)
    variances = x.var(1).reshape(-1, 1) + EPS
    assert variances.max() > 8 * variances.min()
    params, typical = root_params(variances, 24, newton=5)
    return x, params, float(typical[0])


def layer_norm(params, x):
    return fast_norms.layer_norm(params, x, eps=EPS)


def test_layer_norm_of_tokens_that_differ(tokens):
    x, params, typical = tokens
    expected = direct.layer_norm({}, jnp.asarray(x), eps=EPS) * np.float32(np.sqrt(typical))
    result = layer_norm(numbers(params), number(x))
    assert rms(result.array - expected) < 0.003 * rms(expected)


def test_layer_norm_on_shares(cluster, tokens):
    x, params, _ = tokens
    expected = layer_norm(numbers(params), number(x)).truncated(VALUE_BITS).array
    np.testing.assert_allclose(on_shares(cluster, layer_norm, params, x), expected, rtol=0, atol=0.015)


@pytest.fixture(scope="module")
def gates():
    """What a gated GELU gets [B, 2 C, N], and its parameters, the scales not yet in the second half."""
    x = random(2, 6, 40) * np.float32([1, 1, 1, 0.5, 1, 0.8]).reshape(1, 6, 1)
    channels = np.moveaxis(x[:, 3:], 1, 0).reshape(3, -1)
    even = fit_even(channels, widened_ends(channels), exact.gelu)
    scale = (-even[:, -1]) ** (1 / 8)
    constants = np.array([adapt_quartic(row) for row in -even / scale[:, None] ** np.arange(0, 10, 2)]) * [1, 1, 1, -1]
    params = {letter: (constants[:, index], CONSTANT_BITS[index]) for index, letter in enumerate("abcd")}
    params["linear"] = (1 / (2 * scale), 2 * POWER_BITS)
    scaled = np.concatenate([x[:, :3], x[:, 3:] * scale[None, :, None].astype(np.float32)], axis=1)
    return x, scaled, params


def geglu(params, x):
    return fast_norms.geglu(params, x, protocols=FAST)


def test_gated_gelu_is_near_the_exact_one(gates):
    x, scaled, params = gates
    expected = direct.geglu({}, jnp.asarray(x), protocols=DIRECT)
    assert rms(geglu(numbers(params), number(scaled)).array - expected) < 0.03 * rms(expected)


def test_gated_gelu_on_shares(cluster, gates):
    _, scaled, params = gates
    expected = geglu(numbers(params), number(scaled)).truncated(VALUE_BITS).array
    np.testing.assert_allclose(on_shares(cluster, geglu, params, scaled), expected, rtol=0, atol=0.03)


def test_group_norm_without_newton_is_that_by_a_line(pictures):
    x, _, _ = pictures
    one, zero = np.ones((1, 4), np.float32), np.zeros((1, 2, 4), np.float32)
    params = {"gain0": (one, GAIN_BITS), "slopes": (zero, GAIN_BITS - 2 * VALUE_BITS), "shift": (one[0], GAIN_BITS)}
    result = group_norm(numbers(params), number(x))  # with no slope it is x plus the shift
    np.testing.assert_allclose(result.array, number(x).array + 1, rtol=0, atol=1e-5)


def test_messages_are_those_that_are_said(cluster, pictures, tokens, gates):
    """Of all parties, in several calls, because a counter may be off by a message; a truncation at the end is 5 more."""
    calls, truncation = 4, 5
    layers = {
        "group_norm": (group_norm, pictures[2], pictures[0], 22 + 4 * 11),
        "layer_norm": (layer_norm, tokens[1], tokens[0], 19 + 5 * 11),
        "geglu": (geglu, gates[2], gates[1], 22 - truncation),  # its input has few bits here
    }
    for name, (layer, params, x, said) in layers.items():
        _, cost = run_on_shares(cluster, layer, params, x, calls=calls)
        assert cost.sends == pytest.approx(calls * (said + truncation), abs=1), name
