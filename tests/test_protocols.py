"""Protocol functions against the exact functions, on dense grids, with the errors that their docstrings state."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch

from cipherdm.errors import CipherDMError
from cipherdm.protocols import CIPHERDM, DIRECT, named
from cipherdm.protocols.exp_chebyshev import LOWEST, PUBLISHED, chebyshev_exp, exp_published
from cipherdm.protocols.sums import weighted_sum


def grid(low, high):
    return np.linspace(low, high, 400_001, dtype=np.float32)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("name", "bound"), [("silu", 0.0749), ("mish", 0.1275)])
def test_published_activations_have_their_stated_error(name, bound):
    x = grid(-20, 20)
    exact = getattr(torch.nn.functional, name)(torch.tensor(x)).numpy()
    error = np.abs(getattr(CIPHERDM, name)(x) - exact)
    assert error.max() == pytest.approx(bound, abs=1e-4)
    assert abs(x[error.argmax()] - 6) < 1e-3


def test_published_exp_has_its_stated_error():
    x = grid(-30, 0)
    y = np.asarray(exp_published(x))
    assert np.abs(y - np.exp(x)).max() == pytest.approx(0.0485, abs=1e-4)
    assert y[-1] == pytest.approx(0.9515, abs=1e-4)
    inside = x > LOWEST
    assert np.mean(y[inside] < 0) == pytest.approx(0.68, abs=0.01)
    assert not y[~inside].any()


def test_true_chebyshev_coefficients_are_better():
    x = grid(-14, 0)[1:]
    interpolant = np.polynomial.chebyshev.chebinterpolate(lambda t: np.exp(7 * (t - 1)), 7)
    series = [scipy.special.ive(k, 7) * (1 if k == 0 else 2) for k in range(8)]
    assert np.abs(chebyshev_exp(x, interpolant) - np.exp(x)).max() == pytest.approx(0.0073, abs=1e-4)
    assert np.abs(chebyshev_exp(x, series) - np.exp(x)).max() == pytest.approx(0.0055, abs=1e-4)


def test_exp_is_the_chebyshev_series():
    x = grid(-14, 0)[1:]
    series = np.polynomial.chebyshev.chebval(2 * (x.astype(np.float64) + 14) / 14 - 1, PUBLISHED)
    np.testing.assert_allclose(exp_published(x), series, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "formulas"),
    [
        (
            "silu",
            (
                lambda x: -0.52212664 - 0.16910363 * x - 0.01420163 * x**2,
                lambda x: 0.03453821 + 0.49379432 * x + 0.19784596 * x**2 - 0.00602401 * x**4 + 0.00008032 * x**6,
            ),
        ),
        (
            "mish",
            (
                lambda x: -0.55684445 - 0.18375535 * x - 0.01572019 * x**2,
                lambda x: 0.07559242 + 0.54902050 * x + 0.20152583 * x**2 - 0.00735309 * x**4 + 0.00010786 * x**6,
            ),
        ),
    ],
)
def test_segments_meet_where_published(name, formulas):
    low, middle = formulas
    below = np.nextafter(np.float32([-6, -2]), np.float32(-9))
    x = np.float32([below[0], -6, below[1], -2, 6, np.nextafter(np.float32(6), np.float32(9)), 1000, -1000])
    expected = [0, low(-6), low(-2), middle(-2), middle(6), 6, 1000, 0]
    np.testing.assert_allclose(getattr(CIPHERDM, name)(x), expected, rtol=0, atol=1e-4)


def test_published_softmax_is_its_formula():
    scores = random(2, 3, 5, 6)
    series = np.polynomial.chebyshev.chebval(2 * (scores - scores.max(-1, keepdims=True) + 14) / 14 - 1, PUBLISHED)
    expected = series / series.sum(-1, keepdims=True)
    np.testing.assert_allclose(CIPHERDM.softmax(scores), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(CIPHERDM.softmax(np.full((2, 4), 3, np.float32)), np.full((2, 4), 0.25), atol=1e-6)


def test_published_softmax_has_no_bound():
    """One score at the maximum and 27 where the polynomial is most negative: the sum all but vanishes."""
    x = grid(-14, 0)[1:]
    lowest = x[np.argmin(exp_published(x))]
    row = np.concatenate([np.zeros(1), np.full(27, lowest)]).astype(np.float32)
    assert np.abs(CIPHERDM.softmax(row[None])).max() > 1.1


@pytest.mark.parametrize("name", ["silu", "mish", "gelu"])
def test_direct_activations_equal_torch(name):
    x = grid(-20, 20)
    expected = getattr(torch.nn.functional, name)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(getattr(DIRECT, name)(x), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 6, 7), (3, 6)])
def test_direct_norms_equal_torch(shape):
    x, params = random(*shape), {"weight": random(6, seed=1), "bias": random(6, seed=2)}
    weight, bias = (torch.tensor(params[name]) for name in ("weight", "bias"))
    group = torch.nn.functional.group_norm(torch.tensor(x), 2, weight, bias, 1e-3)
    np.testing.assert_allclose(DIRECT.group_norm(params, x, groups=2, eps=1e-3), group, atol=1e-5)
    last = torch.nn.functional.layer_norm(torch.tensor(x).movedim(1, -1), (6,), weight, bias, 1e-3)
    np.testing.assert_allclose(DIRECT.layer_norm(params, x, eps=1e-3), last.movedim(-1, 1), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_direct_linear_layers_equal_torch(bias):
    params = {"weight": random(5, 3, seed=1)} | ({"bias": random(5, seed=2)} if bias else {})
    arguments = [torch.tensor(value) for value in params.values()]
    for shape in ((2, 3), (2, 3, 7)):
        x = random(*shape)
        expected = torch.nn.functional.linear(torch.tensor(x).movedim(1, -1), *arguments).movedim(-1, 1)
        np.testing.assert_allclose(DIRECT.linear(params, x), expected, atol=1e-5)

    kernel = params | {"weight": random(5, 3, 3, 3, seed=3)}
    x = random(2, 3, 6, 8)
    padded = torch.nn.functional.pad(torch.tensor(x), (0, 1, 1, 2))
    expected = torch.nn.functional.conv2d(padded, *(torch.tensor(value) for value in kernel.values()), stride=2)
    np.testing.assert_allclose(DIRECT.conv2d(kernel, x, stride=2, padding=((1, 2), (0, 1))), expected, atol=1e-4)


def test_direct_attention_equals_torch():
    q, k, v = random(2, 3, 4, 5), random(2, 3, 4, 7, seed=1), random(2, 3, 4, 7, seed=2)
    expected = torch.nn.functional.scaled_dot_product_attention(*(torch.tensor(x).mT for x in (q, k, v)), scale=0.3).mT
    np.testing.assert_allclose(DIRECT.attention(q, k, v, scale=0.3, softmax=DIRECT.softmax), expected, atol=1e-5)


def test_layers_leave_parameters_that_are_not_theirs():
    params = {"weight": random(5, 3), "bias": random(5), "prepared": np.zeros(1, np.float32)}
    assert DIRECT.linear(params, random(2, 3)).shape == (2, 5)


def test_weighted_sum_stays_one_product():
    """XLA must not split it into a product for each array, each of which would be truncated on its own."""
    arrays = [random(2, 3, seed=seed) for seed in range(4)]
    function = jax.jit(lambda *arrays: weighted_sum(arrays, (0.5, -2.0, 3.0, 0.25), 1.5))
    expected = 1.5 + 0.5 * arrays[0] - 2 * arrays[1] + 3 * arrays[2] + 0.25 * arrays[3]
    np.testing.assert_allclose(function(*arrays), expected, atol=1e-5)
    assert function.lower(*arrays).compile().as_text().count(" dot(") == 1


def test_sets_are_values():
    assert named("direct") is DIRECT and named("CipherDM") is CIPHERDM
    assert hash(replace(CIPHERDM)) == hash(CIPHERDM) and replace(CIPHERDM) == CIPHERDM
    assert (DIRECT.time_embedding, CIPHERDM.time_embedding) == ("inside", "precomputed")
    assert CIPHERDM.group_norm is DIRECT.group_norm
    for name in ("fastest", None):
        with pytest.raises(CipherDMError, match="direct, cipherdm"):
            named(name)


def test_results_are_float32():
    for protocols in (DIRECT, CIPHERDM):
        for function in (protocols.silu, protocols.mish, protocols.gelu, protocols.softmax):
            assert function(random(2, 3)).dtype == jnp.float32
