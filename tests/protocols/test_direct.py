"""The direct functions against PyTorch's."""

import numpy as np
import pytest
import torch
from stated import grid, random

from cipherdm.protocols import DIRECT


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
    np.testing.assert_allclose(DIRECT.attention({}, q, k, v, scale=0.3, softmax=DIRECT.softmax), expected, atol=1e-5)


def test_layers_leave_parameters_that_are_not_theirs():
    params = {"weight": random(5, 3), "bias": random(5), "prepared": np.zeros(1, np.float32)}
    assert DIRECT.linear(params, random(2, 3)).shape == (2, 5)
