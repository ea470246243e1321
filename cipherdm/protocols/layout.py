"""Broadcast and transposed arrays of ring words, written out in memory before SPU computes on them.

SPU keeps broadcast and transposed arrays as views, and reads them number by number: an addition of a column takes longer than
one of a whole array. A matrix product with public ones sends nothing and writes its result in order, and with it the
addition takes less time than without ("layouts" in operations.json). SPU's compiler removes plainer copies, such as a
reshape there and back.
"""

import math

import jax.numpy as jnp
from jax import lax

# Smaller results, and numbers repeated seldom, are left as views: every operation of SPU takes time, whatever its size.
LEAST_REPEATS, LEAST_NUMBERS = 4, 2048


def spread(array, shape: tuple[int, ...]):
    """As jnp.broadcast_to, of ring words; written out where whole last axes are repeated. Free of messages."""
    kept = len(shape)
    extents = (1,) * (len(shape) - array.ndim) + array.shape
    while kept and extents[kept - 1] == 1:
        kept -= 1
    repeats = math.prod(shape[kept:])
    if repeats < LEAST_REPEATS or math.prod(shape) < LEAST_NUMBERS:
        return jnp.broadcast_to(array, shape)
    rows = jnp.broadcast_to(array.reshape(extents[:kept]), shape[:kept])
    return _times_ones(rows, repeats).reshape(shape)


def in_order(array):
    """The same ring words, written out as their indices run: for transposed arrays. Free of messages."""
    return array if array.size < LEAST_NUMBERS else _times_ones(array, 1).reshape(array.shape)


def _times_ones(array, count: int):
    """Each number `count` times in a row, [N, count]."""
    ones = jnp.ones((1, count), array.dtype)
    return lax.dot_general(array.reshape(-1, 1), ones, (((1,), (0,)), ((), ())), preferred_element_type=array.dtype)
