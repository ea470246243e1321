"""Broadcast and transposed arrays of ring words, written out in memory before SPU computes on them.

SPU keeps broadcast and transposed arrays as views, and reads them number by number: an addition of a column takes much longer
than one of a whole array (operations.json). A matrix product with public ones sends nothing and writes its result in order,
in less time than that. SPU's compiler takes a copy by other means, such as a reshape there and back, for superfluous.
"""

import math

import jax.numpy as jnp
from jax import lax

LEAST_REPEATS = 4  # of a number
LEAST_NUMBERS = 2048  # with fewer, an operation more costs what it saves


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
