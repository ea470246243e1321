"""Normalisations with an approximate inverse root, against PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cipherdm.approximations import exact
from cipherdm.approximations.inverses import InverseSqrt
from cipherdm_experiments.activations_cases import GroupNorm, LayerNorm


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("steps", [0, 1])
def test_approximate_normalisations_are_as_near_as_their_inverse_root(steps):
    """Against torch, at variances that fill the domain of the root, weight and bias included."""
    root = InverseSqrt("root", (0.5, 2.0), steps)
    x = random(4, 6, 50)
    x = x / x.std((1, 2), keepdims=True) * np.sqrt(np.array([0.5, 0.8, 1.3, 2.0], np.float32))[:, None, None]
    params = {"weight": random(6, seed=1), "bias": random(6, seed=2)}
    weight, bias = (torch.from_numpy(params[name]) for name in ("weight", "bias"))
    spread = np.abs(params["weight"]).max() * np.abs(x).max()
    largest = root.max_error(exact.inverse_sqrt, 0.5, 2.0, relative=True) * spread * 1.5
    found = GroupNorm("g", root)(params, jnp.asarray(x), groups=1, eps=1e-5)
    expected = torch.nn.functional.group_norm(torch.from_numpy(x), 1, weight, bias, 1e-5).numpy()
    assert np.abs(found - expected).max() < largest

    y = exact.normalised_rows(random(4, 50, 6)).astype(np.float32) * np.float32(1.2)
    found = LayerNorm("l", root)(params, jnp.asarray(y.swapaxes(1, 2)), eps=1e-5)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(y), (6,), weight, bias, 1e-5).numpy()
    assert np.abs(found - expected.swapaxes(1, 2)).max() < largest
