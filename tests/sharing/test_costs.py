"""Where `cipherdm.sharing` and SPU compute alike, they send alike: our transcript against the engine's counters."""

import operator

import jax.numpy as jnp
import numpy as np
import pytest

from cipherdm.engine import Call, Plan, Spec, compile_program
from cipherdm.sharing import BIT, Ring, ThreeParties, bit_to_number, less_than_zero, truncate

COUNT = 960
CALLS = 4  # because a counter of SPU's may be off by a message
NUMBERS = np.arange(-COUNT // 2, COUNT // 2, dtype=np.int32)
MATRICES = (NUMBERS[:600].reshape(20, 30), NUMBERS[:240].reshape(30, 8))


def of_engine(session, function, *arrays):
    """Messages and bytes of all parties for one call on SPU."""
    names = tuple(f"x{index}" for index in range(len(arrays)))
    session.share(dict(zip(names, arrays, strict=True)))
    program = compile_program(function, tuple(Spec(array.shape, array.dtype.name) for array in arrays))
    cost = session.run(Plan((Call(program, names, ("result",), "alike"),) * CALLS))
    return round(cost.sends / CALLS), cost.bytes / CALLS


def of_ours(function, *arrays, fraction_bits=0, ring=None):
    """Messages and bytes between parties for the same."""
    parties = ThreeParties(fraction_bits)
    shared = [parties.share(array, ring=ring) for array in arrays]
    start = len(parties.transcript.messages)
    function(parties, *shared)
    messages = parties.transcript.messages[start:]
    return len(messages), sum(message.bytes for message in messages)


def test_products_of_whole_numbers(session):
    messages, sent = of_engine(session, jnp.multiply, NUMBERS, NUMBERS)
    assert (messages, sent) == of_ours(ThreeParties.multiply, NUMBERS, NUMBERS) == (3, 3 * 8 * COUNT)


def test_products_of_matrices(session):
    messages, sent = of_engine(session, jnp.matmul, *MATRICES)
    assert (messages, sent) == of_ours(ThreeParties.matmul, *MATRICES) == (3, 3 * 8 * 20 * 8)


@pytest.mark.parametrize("function", [operator.add, operator.sub])
def test_sums_are_free(session, function):
    ours = of_ours(lambda parties, x, y: function(x, y), NUMBERS, NUMBERS)
    assert of_engine(session, function, NUMBERS, NUMBERS) == ours == (0, 0)


def test_bits_as_numbers(session):
    """SPU converts a bit when a number is added to it."""
    bits = NUMBERS > 0
    messages, sent = of_engine(session, lambda bit, x: bit.astype(jnp.int32) + x, bits, NUMBERS)
    ours = of_ours(lambda parties, bit: bit_to_number(parties, bit, Ring(64)), bits, ring=BIT)
    assert (messages, sent) == ours == (4, 4 * 8 * COUNT)


def test_truncation_sends_as_many_messages_but_longer_ones(session):
    """SPU's truncation after a public factor has the five messages of ours, and packs them tighter."""
    messages, sent = of_engine(session, lambda x: x * np.float32(2.0**-10), NUMBERS.astype(np.float32))
    ours = of_ours(lambda parties, x: truncate(parties, x * 0.5), NUMBERS, fraction_bits=18)
    assert ours == (5, 6 * 8 * COUNT)
    assert messages == 5 and 3 * 8 * COUNT < sent < ours[1]


def test_comparison_costs_about_the_same(session):
    """Both share the bits of one addend and find the carry in a tree; they cut it in slightly different pieces."""
    messages, sent = of_engine(session, lambda x: x < 0, NUMBERS)
    ours = of_ours(less_than_zero, NUMBERS)
    assert ours[0] == pytest.approx(messages, rel=0.15)
    assert ours[1] == pytest.approx(sent, rel=0.35)
