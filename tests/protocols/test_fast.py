"""The layers of FAST against the direct ones, in plaintext and on three parties."""

from dataclasses import replace
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fast_layers import number, numbers, on_shares

from cipherdm.approximations.knuth import adapt_quartic
from cipherdm.owner.fits import fit_exponential, fit_inverse_root, fit_reciprocal
from cipherdm.protocols import FAST, direct, fast, fast_attention
from cipherdm.protocols.fast import WEIGHT_BITS
from cipherdm.protocols.fixed import Fixed

VALUE_BITS = fast.VALUE_BITS
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def ring(cluster):
    """ring(layer, params, *inputs): what a layer makes of secret parameters and inputs on three parties."""
    return partial(on_shares, cluster)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (3, 1, ((1, 1), (1, 1))),
        (3, 2, ((1, 1), (1, 1))),
        (3, 2, ((0, 1), (0, 1))),
        (1, 1, ((0, 0), (0, 0))),
    ],
)
@pytest.mark.parametrize("conv2d", [fast.conv2d, fast.conv2d_as_one])
def test_convolution(conv2d, size, stride, padding):
    params = {"weight": (random(5, 3, size, size), WEIGHT_BITS), "bias": (random(5, seed=1), WEIGHT_BITS)}
    x = number(random(2, 3, 6, 6, seed=2))
    result = conv2d(numbers(params), x, stride=stride, padding=padding)
    weight, bias, image = (torch.tensor(np.asarray(part.array)) for part in (*numbers(params).values(), x))
    (top, bottom), (left, right) = padding
    padded = torch.nn.functional.pad(image, (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, weight, bias, stride=stride)
    np.testing.assert_allclose(result.array, expected, atol=1e-5)
    assert result.bits == VALUE_BITS + WEIGHT_BITS


def test_a_product_that_would_not_fit_is_truncated_before():
    params = numbers({"weight": (random(4, 3), WEIGHT_BITS)})
    x = random(2, 3, 7, seed=1)
    result = fast.linear(params, Fixed.load(jnp.asarray(x), 52, ring=False))
    assert result.bits == VALUE_BITS + WEIGHT_BITS
    exact = np.einsum("oc,bcn->bon", params["weight"].array, number(x).array)
    np.testing.assert_allclose(result.array, exact, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    params = {"weight": (random(4, 3), WEIGHT_BITS)} | ({"bias": (random(4, seed=1), WEIGHT_BITS)} if bias else {})
    params, x = numbers(params), number(random(*shape, seed=2))
    expected = direct.linear({name: fixed.array for name, fixed in params.items()}, x.array)
    np.testing.assert_allclose(fast.linear(params, x).array, expected, atol=1e-5)


def test_projections_are_the_layers_one_by_one():
    layers = [
        numbers({"weight": (random(4, 3, seed=i), WEIGHT_BITS), "bias": (random(4, seed=i + 9), WEIGHT_BITS)})
        for i in range(3)
    ]
    x = number(random(2, 3, 7, seed=20))
    results = fast.projections(layers, x, protocols=FAST)
    assert len(results) == 3
    for params, result in zip(layers, results, strict=True):
        expected = direct.linear({name: fixed.array for name, fixed in params.items()}, x.array)
        assert result.bits == VALUE_BITS
        np.testing.assert_allclose(result.array, expected, atol=0.6 * 2.0**-VALUE_BITS)


def norm_params(x, groups, weight, bias):
    """The parameters of fast.group_norm for images like x [B, C, H, W], from the fits of their groups."""
    rows = x.reshape(len(x), groups, -1).astype(np.float64)
    width, count = x.shape[1] // groups, rows.shape[2]
    center = rows.mean((0, 2))
    squares = np.square(rows - center[:, None]).mean(2)
    lines = [fit_inverse_root(squares[:, group], rows.var(2)[:, group] + 1e-5) for group in range(groups)]
    p, q = np.repeat(np.array(lines).T, width, axis=1)
    rstd = np.repeat((1 / rows.std(2)).mean(0), width)
    slopes = np.stack([-weight * q / count, -weight * rstd / count])
    of_batch = {"gain0": weight * p, "slopes": slopes, "center": center}
    bits = {"gain0": fast.GAIN_BITS, "slopes": fast.SLOPE_BITS, "center": VALUE_BITS}
    params = {name: (np.stack([values] * len(x)), bits[name]) for name, values in of_batch.items()}
    return params | {"shift": (bias, fast.GAIN_BITS)}


@pytest.fixture(scope="module")
def normalisation():
    """Images of similar variances and of group means that are not zero, and a layer's parameters for them."""
    x = random(4, 4, 8, 8) * np.float32(1.2) + np.float32([0.5, 0.3, -1, -0.8]).reshape(1, 4, 1, 1)
    x = x + random(4, 1, 1, 1, seed=3) * np.float32(0.05)
    weight, bias = random(4, seed=1) + np.float32(2), random(4, seed=2)
    return x, weight, bias, norm_params(x, 2, weight, bias)


def test_group_norm(normalisation):
    x, weight, bias, params = normalisation
    result = fast.group_norm(numbers(params), number(x), groups=2, eps=1e-5)
    expected = direct.group_norm({"weight": weight, "bias": bias}, jnp.asarray(x), groups=2, eps=1e-5)
    assert rms(result.array - expected) < 0.01 * rms(expected)
    # Other images of the same model: the fits are lines, not constants, and means are subtracted.
    for change in (lambda x: x * np.float32(1.05), lambda x: x + np.float32(0.05)):
        result = fast.group_norm(numbers(params), number(change(x)), groups=2, eps=1e-5)
        assert rms(result.array - expected) < 0.02 * rms(expected)


def test_group_norm_on_shares(normalisation, ring):
    x, _, _, params = normalisation
    layer = partial_norm(fast.group_norm)
    expected = layer(numbers(params), number(x)).truncated(VALUE_BITS).array
    np.testing.assert_allclose(ring(layer, params, x), expected, atol=0.01)


def partial_norm(function):
    return lambda params, x: function(params, x, groups=2, eps=1e-5)


@pytest.mark.parametrize("third", [None, [0.3, -0.2]], ids=["silu", "mish"])
def test_activations_are_the_polynomials_that_they_are_made_of(third):
    """A line, or a cubic without a square, minus a quartic in z^2."""
    quartic = np.array([[0.1, 0.6, 0.4, 0.05, 1], [0.2, -0.3, 0.5, -0.04, 1]])  # of 1 to the fourth power, by channel
    constants = np.array([adapt_quartic(row) for row in quartic]) * [1, 1, 1, -1]
    bits = fast.POWER_BITS
    params = {name: (constants[:, index], 2 * bits) for index, name in enumerate("abcd")}
    params["b"] = (params["b"][0], bits)
    params["linear"] = (np.array([0.5, 0.7]), 2 * bits if third is None else bits)
    if third is not None:
        params["third"] = (np.array(third), 2 * bits)
    z = np.linspace(-1.5, 1.5, 24).reshape(1, 2, 3, 4)
    only_activation = replace(FAST, group_norm=lambda params, x, *, groups, eps: x)
    settings = {"groups": 1, "eps": 1e-5, "act_fn": "silu", "protocols": only_activation}
    result = fast.norm_activation(numbers(params) | {"cubic": int(third is not None)}, number(z, 40), **settings)
    for channel in range(2):
        x = z[0, channel]
        expected = [0.5, 0.7][channel] * x - np.polyval(quartic[channel][::-1], x * x)
        expected += 0 if third is None else third[channel] * x**3
        np.testing.assert_allclose(result.array[0, channel], expected, atol=0.02)


def attention_params(q, k, squarings):
    """The parameters of fast_attention.attention for queries and keys like these, and the query with its factor."""
    size = q.shape[2]
    scores = np.einsum("bhdn,bhdm->bhnm", q, k).reshape(-1, k.shape[3]) / np.sqrt(size)
    (alpha, beta, gamma), error = fit_exponential(scores.astype(np.float64), squarings)
    sums = (np.polyval((alpha, beta, gamma), scores) ** 2**squarings).sum(1)
    (factor, r0, r1), inverse_error = fit_reciprocal(sums)
    alpha, beta, gamma = np.array([alpha, beta, gamma]) * factor ** (0.5**squarings)
    stretch = np.sqrt(alpha)
    h = beta / (2 * stretch)
    params = {"h": (h, fast_attention.FEATURE_BITS), "c": (gamma - h**2, 20), "constant": (gamma, 20)}
    bits, newton = fast_attention.MIXED_BITS, next(n for n in range(3) if inverse_error ** (2**n) < 0.003)
    params |= {"r0": (r0, bits), "r1": (r1, 2 * bits), "squarings": squarings, "newton": newton}
    assert error < 0.06
    return {f"to_q.{name}": values for name, values in params.items()}, q * stretch * 2**squarings / np.sqrt(size)


def heads(deviation, tokens=64, size=4):
    """Queries, keys, whose mean is zero, and values of two images with two heads."""
    q, k, v = (random(2, 2, size, tokens, seed=seed) for seed in range(3))
    k = (k - k.mean((0, 3), keepdims=True)) * np.float32(deviation)
    return q * np.float32(deviation), k, v


def attend(params, q, k, v):
    return fast_attention.attention(params, q, k, v, scale=0.5, softmax=None)


def by_scores():
    """Attention computed with a number for each pair of tokens, even where features pay."""
    return mock.patch.object(fast_attention, "_features_pay", return_value=False)


def test_attention_by_features_is_attention_by_scores_and_both_are_near_softmax():
    q, k, v = heads(0.35)
    params, scaled = attention_params(q, k, squarings=0)
    inputs = [number(x) for x in (scaled, k, v)]
    with mock.patch.object(
        fast_attention, "_attention_by_features", wraps=fast_attention._attention_by_features
    ) as features:
        by_feature = attend(numbers(params), *inputs)
        assert features.called
        with by_scores():
            by_score = attend(numbers(params), *inputs)
        assert features.call_count == 1
    exact = direct.attention({}, q, k, v, scale=0.5, softmax=jax.nn.softmax)
    assert rms(by_feature.array - by_score.array) < 0.02 * rms(exact)
    assert rms(by_feature.array - exact) < 0.04 * rms(exact)
    assert rms(by_score.array - exact) < 0.04 * rms(exact)
    # What the scores add to the mean over all tokens is there, too.
    beyond_mean = exact - v.mean(3, keepdims=True)
    assert rms(by_feature.array - exact) < 0.2 * rms(beyond_mean)


@pytest.mark.parametrize("squarings", [2, 3])
def test_attention_with_squarings_is_near_softmax(squarings):
    q, k, v = heads(0.7)
    params, scaled = attention_params(q, k, squarings)
    result = attend(numbers(params), number(scaled), number(k), number(v))
    exact = direct.attention({}, q, k, v, scale=0.5, softmax=jax.nn.softmax)
    assert rms(result.array - exact) < 0.05 * rms(exact)


@pytest.mark.parametrize("squarings", [0, 2])
def test_attention_on_shares(ring, squarings):
    q, k, v = heads(0.35 if squarings == 0 else 0.8, tokens=16, size=2)
    params, scaled = attention_params(q, k, squarings)
    expected = attend(numbers(params), number(scaled), number(k), number(v)).truncated(VALUE_BITS).array
    assert fast_attention._features_pay(number(q), number(k))  # so that squarings decide which form it is
    np.testing.assert_allclose(ring(attend, params, scaled, k, v), expected, atol=0.02)


def test_attention_by_features_fits_into_the_ring_with_many_tokens(ring):
    """As with 64 x 64 latents, where the number of tokens itself would not fit among the sums."""
    q, k, v = heads(0.35, tokens=4096, size=2)
    params, scaled = attention_params(q, k, squarings=0)
    assert fast_attention._features_pay(number(q), number(k)) and 4096 >= 2 ** (18 - fast_attention.SUM_BITS)
    v = v + np.float32(0.5)  # with a mean that is not small, of which the result consists
    emulated = attend(numbers(params), number(scaled), number(k), number(v)).truncated(VALUE_BITS).array
    exact = direct.attention({}, q, k, v, scale=2**-0.5, softmax=jax.nn.softmax)
    assert rms(emulated - exact) < 0.02 * rms(exact)
    np.testing.assert_allclose(ring(attend, params, scaled, k, v), emulated, atol=0.02)


@pytest.mark.parametrize("factor", [1, 2, 30])
def test_the_guard_of_a_normalisation_on_shares(normalisation, ring, factor):
    """At 30 the unguarded result does not even fit into the ring; what the comparisons let pass is in the range."""
    x, _, _, params = normalisation
    usual = partial_norm(fast.group_norm)(numbers(params), number(x)).array
    low, high = (np.percentile(usual, end, axis=(0, 2, 3)) for end in (1, 99))
    guarded = params | {"low": (low, fast.POWER_BITS), "high": (high, fast.POWER_BITS)}
    far = x * np.float32(factor)
    result = ring(partial_norm(fast.guarded_group_norm), guarded, far)
    unit = 2.0**-VALUE_BITS
    assert ((result >= low[:, None, None] - unit) & (result <= high[:, None, None] + unit)).all()
    unguarded = partial_norm(fast.group_norm)(numbers(params), number(far)).truncated(fast.POWER_BITS).array
    assert np.isnan(unguarded).any() == (factor == 30)
    if factor < 30:
        expected = np.clip(unguarded, low[:, None, None], high[:, None, None])
        np.testing.assert_allclose(result, expected, atol=0.01)
        emulated = partial_norm(fast.guarded_group_norm)(numbers(guarded), number(far)).array
        np.testing.assert_allclose(emulated, expected, atol=2 * unit)
