"""Functions that models have to be trained for: the quadratic activation, attention without softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stated import activations, random, stated_errors

from cipherdm.approximations import exact, quad
from cipherdm.approximations.gelu import gelu_nimbus
from cipherdm.protocols import direct
from cipherdm.protocols.direct import linear_attention


def test_quad_is_silu_to_second_order_at_zero():
    """And has the errors that its docstring states."""
    largest, place, mean = stated_errors("quad")
    x = np.linspace(-0.01, 0.01, 21)
    np.testing.assert_allclose(quad(jnp.asarray(x, jnp.float32)), exact.silu(x), atol=1e-7)
    x = np.linspace(-4, 4, 100_001)
    error = np.abs(quad(jnp.asarray(x, jnp.float32)) - exact.silu(x))
    assert error.max() == pytest.approx(largest, abs=0.005) and abs(x[error.argmax()]) == pytest.approx(place)
    normal = activations()
    error = quad(jnp.asarray(normal, jnp.float32)) - exact.silu(normal)
    assert np.sqrt(np.mean(np.square(error))) == pytest.approx(mean, abs=0.001)


def test_nimbus_gelu_has_its_stated_errors():
    largest, place, mean = stated_errors("gelu_nimbus")
    x = np.linspace(-8, 8, 160_001).astype(np.float32)
    error = np.abs(gelu_nimbus(x) - exact.gelu(x))
    assert error.max() == pytest.approx(largest, abs=1e-4) and abs(x[error.argmax()]) == pytest.approx(place, abs=1e-3)
    normal = activations().astype(np.float32)
    assert np.sqrt(np.mean(np.square(gelu_nimbus(normal) - exact.gelu(normal)))) == pytest.approx(mean, abs=1e-4)


def test_linear_attention_is_softmax_attention_to_first_order():
    q, k, v = (random(1, 2, 4, 9, seed=seed) for seed in range(3))
    k = k - k.mean(-1, keepdims=True)  # so that no row's mean score is left for softmax to divide out
    distances = []
    for size in (0.02, 0.01):
        exactly = direct.attention({}, size * q, k, v, scale=0.5, softmax=jax.nn.softmax)
        distances.append(np.abs(linear_attention({}, size * q, k, v, scale=0.5) - exactly).max())
    assert distances[0] < 5e-4 and distances[0] / distances[1] == pytest.approx(4, rel=0.2)
