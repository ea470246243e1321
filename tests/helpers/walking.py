"""Walks of three parties in one process, and random programs for them."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from three_parties import run, shared, three_streams

from cipherdm.kernels.narrow import sizes_of
from cipherdm.kernels.shares import joined
from cipherdm.kernels.trace import trace
from cipherdm.kernels.walk import ROOM, Walk
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed

read = partial(trace, fraction_bits=ENGINE_FRACTION_BITS)


def words_of(array):
    """Words of an array as the engine makes them."""
    if np.asarray(array).dtype.kind == "i":
        return np.asarray(array, np.int64)
    return np.round(np.asarray(array, np.float64) * 2.0**ENGINE_FRACTION_BITS).astype(np.int64)


def walked(plan, arrays, call=0, streams=None, room=ROOM):
    """Results of three parties' walk, int64, and all messages."""
    streams = three_streams() if streams is None else streams
    program = plan.program
    words = [array.view(np.uint64) for array in arrays]
    numbers = list(zip(program.inputs, words, strict=True))
    given = [3 * [array] if number in program.public else shared(array) for number, array in numbers]
    steps = [Walk(plan, r, room).steps([three[r] for three in given], streams[r], call) for r in range(3)]
    results, log = run(steps)
    outputs = [joined(pairs).view(np.int64) for pairs in zip(*results, strict=True)]
    return outputs, log


BITS = 16
KINDS = ["add", "subtract", "times", "product", "sum", "turn", "join", "part", "offset", "scale"]


def build(kinds, choices):
    """A function of two [3, 3] arrays of words at BITS, whose values all stay below 1 in size."""

    def entry(a, b):
        values = [Fixed.load(a, BITS, True), Fixed.load(b, BITS, True)]
        pick = iter(choices)
        for kind in kinds:
            x, y = values[next(pick) % len(values)], values[next(pick) % len(values)]
            if kind == "add":
                new = (x + y).times_power_of_two(-1).truncated(BITS)
            elif kind == "subtract":
                new = (x - y).times_power_of_two(-1).truncated(BITS)
            elif kind == "times":
                new = (x * y).truncated(BITS)
            elif kind == "product":
                new = Fixed(lax.dot_general(x.array, y.array, (((1,), (0,)), ((), ()))), 2 * BITS + 2, True).truncated(
                    BITS
                )
            elif kind == "sum":
                total = lax.dot_general(x.array, jnp.ones((3,), jnp.int32), (((1,), (0,)), ((), ())))
                new = x.with_array(jnp.broadcast_to(total[:, None], (3, 3))).times_power_of_two(-2).truncated(BITS)
            elif kind == "turn":
                new = x.with_array(jnp.swapaxes(x.array, 0, 1))
            elif kind == "join":
                new = x.with_array(jnp.concatenate([x.array[:1], y.array[1:]]))
            elif kind == "part":
                new = x.with_array(jnp.broadcast_to(y.array[1:2, ::2][:, :1], (3, 3)))
            elif kind == "offset":
                new = x.with_array(x.array - np.int32(1 << BITS - 1)).times_power_of_two(-1).truncated(BITS)
            else:
                new = x.with_array(x.array * np.int32(-3)).times_power_of_two(-2).truncated(BITS)
            values.append(new)
        return tuple(value.store() for value in values[-3:])

    return entry


def met(program, arrays):
    """Sizes of the values for these words."""
    pairs = zip(program.inputs, arrays, strict=True)
    return sizes_of(program, [array if number in program.public else array.astype(float) for number, array in pairs])[0]
