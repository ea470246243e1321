"""Views of ring words written out in memory: the numbers that NumPy's broadcasting and transposing give."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from cipherdm.protocols.fixed import LEAST_NUMBERS, LEAST_REPEATS, Fixed, spread, written_out

EXTENTS = st.lists(st.sampled_from([1, 2, 3, 8, 32]), min_size=1, max_size=4)


def integers(*shape):
    return np.random.default_rng(0).integers(-(2**31), 2**31, shape).astype(np.int32)


def in_order(array):
    return written_out(Fixed(array, 0, ring=True)).array


@settings(max_examples=80, deadline=None)
@given(EXTENTS, st.data())
def test_spreading_is_broadcasting(shape, data):
    array = integers(*(data.draw(st.sampled_from([1, extent])) for extent in shape))
    array = array.reshape(array.shape[data.draw(st.integers(0, len(shape))) if array.size == 1 else 0 :])
    result = spread(jnp.asarray(array), tuple(shape))
    assert result.dtype == jnp.int32 and np.array_equal(result, np.broadcast_to(array, shape))


@settings(max_examples=20, deadline=None)
@given(st.permutations([0, 1, 2]), st.sampled_from([2, 40]))
def test_order_in_memory_is_no_order_of_numbers(axes, extent):
    array = integers(8, 9, extent).transpose(axes)
    assert np.array_equal(in_order(jnp.asarray(array)), array)


def test_products_with_ones_are_made_where_they_pay():
    def products(function, *shapes):
        jaxpr = jax.make_jaxpr(function)(*(jnp.zeros(shape, jnp.int32) for shape in shapes))
        return [equation.primitive.name for equation in jaxpr.eqns].count("dot_general")

    large = (LEAST_NUMBERS // LEAST_REPEATS, LEAST_REPEATS)
    assert products(lambda x: spread(x, large), (large[0], 1)) == 1
    assert products(lambda x: spread(x, (large[0] - 1, large[1])), (large[0] - 1, 1)) == 0  # few numbers
    assert products(lambda x: spread(x, (large[0], 3)), (large[0], 1)) == 0  # repeated seldom
    assert products(lambda x: spread(x, large), (1, large[1])) == 0  # repeated as a whole
    assert products(lambda x: in_order(x.T), large) == 1
