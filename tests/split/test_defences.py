"""The disguise of the features: odd, increasing, and undone by its inverse."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cipherdm.split import phi, phi_inverse

VALUES = st.floats(-1e4, 1e4)


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(VALUES)
def test_it_is_the_published_formula_and_odd(value):
    published = abs(value) * (2 * torch.sigmoid(tensor(value)) - 1)
    assert torch.isclose(phi(tensor(value)), published, rtol=1e-12, atol=1e-12)
    assert phi(tensor(-value)) == -phi(tensor(value))


@given(VALUES, VALUES)
def test_it_increases(first, second):
    low, high = sorted((first, second))
    assert phi(tensor(low)) <= phi(tensor(high))
    if high - low > 1e-6 * max(1, abs(low), abs(high)) and max(abs(low), abs(high)) > 1e-3:
        assert phi(tensor(low)) < phi(tensor(high))


@given(VALUES)
def test_its_inverse_is_exact(value):
    # Below 1e-150 the square of the value, which is what phi is there, has no digits left.
    assert abs(phi_inverse(phi(tensor(value))) - value) <= 1e-12 * max(1e-100, abs(value)) + 1e-150


@given(st.floats(-1e3, 1e3))
def test_float16_costs_no_more_than_its_rounding(value):
    exact = phi(tensor(value))
    rounding = 2.0**-11 * abs(float(exact)) + 2.0**-25  # of a normal number, and of the smallest ones
    below, above = (phi_inverse(exact + sign * rounding) for sign in (-1, 1))
    found = phi_inverse(exact.half())
    assert below - 1e-9 <= found <= above + 1e-9


def test_shapes_and_signs_are_kept():
    values = torch.linspace(-5, 5, 24).reshape(2, 3, 4)
    assert phi(values).dtype == torch.float32 and phi_inverse(values).shape == values.shape
    assert np.array_equal(np.sign(phi_inverse(values)), np.sign(values))
