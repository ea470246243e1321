"""Products of the matrices of a batch as one product, on three parties: the same numbers in fewer messages."""

import numpy as np
import pytest
from fast_layers import number, run_on_shares

from cipherdm.protocols.fixed import dot_general, dot_general_together


@pytest.mark.parametrize(("one", "other"), [(2, 2), (3, 3), (2, 3)])
def test_small_products_of_a_batch_are_one_product(cluster, one, other):
    generator = np.random.default_rng(3)
    first, second = (generator.standard_normal((2, 2, 5, 5)).astype(np.float32) for _ in range(2))
    dimensions = (((one,), (other,)), ((0, 1), (0, 1)))

    def together(_, x, y):
        return dot_general_together(x, y, dimensions)

    def one_by_one(_, x, y):
        return dot_general(x, y, dimensions)

    expected = np.einsum(f"bh{'dn' if one == 2 else 'nd'},bh{'dm' if other == 2 else 'md'}->bhnm", first, second)
    found, cost = run_on_shares(cluster, together, {}, first, second)
    np.testing.assert_allclose(found, expected, atol=0.02)
    plain = together(None, number(first), number(second))
    np.testing.assert_allclose(plain.array, expected, atol=0.02)
    _, separate = run_on_shares(cluster, one_by_one, {}, first, second)
    assert separate.sends - cost.sends == 3 * 3


def test_large_products_of_a_batch_are_computed_one_by_one(cluster):
    first, second = (np.ones((2, 2, 40, 40), np.float32) for _ in range(2))

    def together(_, x, y):
        return dot_general_together(x, y, (((2,), (2,)), ((0, 1), (0, 1))))

    found, cost = run_on_shares(cluster, together, {}, first, second)
    np.testing.assert_allclose(found, 40, atol=0.01)
    assert cost.bytes < 1.2 * 2 * 2 * 40 * 40 * (24 + 40)
