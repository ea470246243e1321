"""Walks of three parties against plaintext: layers, a whole step, random programs, orders, and addresses."""

import random
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from three_parties import three_streams
from walking import BITS, KINDS, build, met, read, walked, words_of

from cipherdm import CipherDMError
from cipherdm.engine import Spec
from cipherdm.kernels import walk as walk_module
from cipherdm.kernels.ring_program import WalkPlan, in_the_clear
from cipherdm.kernels.rings import costs, planned
from cipherdm.protocols import FAST_64, fast
from cipherdm.protocols.fixed import Fixed, encode


def random_numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHT, VALUE = fast.WEIGHT_BITS, fast.VALUE_BITS
LAYERS = {
    "convolution": (
        lambda x, w, b: fast.conv2d({"weight": w, "bias": b}, x, stride=2, padding=((0, 1), (1, 1))),
        [(random_numbers(2, 3, 6, 6), VALUE), (random_numbers(5, 3, 3, 3), WEIGHT), (random_numbers(5), WEIGHT)],
    ),
    "linear": (
        lambda x, w: fast.linear({"weight": w}, x),
        [(random_numbers(2, 3, 7), VALUE), (random_numbers(4, 3), WEIGHT)],
    ),
    "convolution by a kernel": (
        lambda x, w: FAST_64.conv2d({"weight": w}, x, padding=((1, 1), (1, 1))),
        [(random_numbers(1, 64, 32, 32), VALUE), (random_numbers(32, 64, 3, 3) / 16, WEIGHT)],
    ),
    "square": (lambda x: x * x, [(random_numbers(50), VALUE)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_fast(name):
    layer, arguments = LAYERS[name]

    def entry(ring, *arrays):
        numbers = [Fixed.load(array, bits, ring) for array, (_, bits) in zip(arrays, arguments, strict=True)]
        return layer(*numbers).truncated(VALUE).store()

    expected = jax.jit(partial(entry, False))(*(encode(array, bits, False) for array, bits in arguments))
    encoded = [encode(array, bits, True) for array, bits in arguments]
    program = read(partial(entry, True), [Spec.of(array) for array in encoded])
    (result,), _ = walked(WalkPlan.in_64_bits(program), [words_of(array) for array in encoded])
    assert np.abs(result * 2.0**-VALUE - expected).max() <= 2 * 2.0**-VALUE


def test_a_step_of_a_model(step):
    program, arrays, expected = step
    (sample,), log = walked(WalkPlan.in_64_bits(program), arrays)
    error = sample * 2.0**-VALUE - expected
    assert np.sqrt(np.mean(error**2)) < 6 * 2.0**-VALUE
    assert np.abs(error).max() < 24 * 2.0**-VALUE
    # Parts of the cuts are passed around: no party sends much more than another.
    sent = Counter()
    for _, sender, _, content in log:
        sent[sender] += content.size
    assert max(sent.values()) < 1.1 * min(sent.values())


def test_each_address_is_used_once(step, monkeypatch):
    """In two calls of a step's program, by all that draw words."""
    program, arrays, _ = step
    used = Counter()
    for name in ("cut", "reshare"):
        protocol = getattr(walk_module, name)

        def recorded(streams, rank, *rest, protocol=protocol):
            used[rank, rest[-1]] += 1
            return protocol(streams, rank, *rest)

        monkeypatch.setattr(walk_module, name, recorded)
    streams = three_streams()
    for call in range(2):
        walked(WalkPlan.in_64_bits(program), arrays, call, streams)
    assert set(used.values()) == {1}
    assert len({address for _, address in used}) == len(used) // 3


def test_the_order_of_operations_changes_nothing(step):
    """Branches in another order, the same at all parties: other rounds, and the same results to the last bit."""
    program, arrays, _ = step
    plan = WalkPlan.in_64_bits(program)
    (expected,), _ = walked(plan, arrays)
    generator, there = random.Random(0), {*program.inputs, *program.constants}
    left, order = list(program.operations), []
    while left:
        ready = [operation for operation in left if there.issuperset(operation.inputs)]
        for operation in generator.sample(ready, k=max(1, len(ready) // 2)):
            order.append(operation)
            there.add(operation.output)
        done = {operation.output for operation in order}
        left = [operation for operation in left if operation.output not in done]
    shuffled = replace(plan, program=replace(program, operations=tuple(order)))
    (result,), _ = walked(shuffled, arrays)
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=3, max_size=12),
    choices=st.lists(st.integers(0, 30), min_size=24, max_size=24),
    seed=st.integers(0, 1000),
)
def test_random_programs_are_right_to_their_last_places(kinds, choices, seed):
    spec = Spec((3, 3))
    program = read(build(kinds, choices), [spec, spec])
    arrays = list(np.random.default_rng(seed).integers(-(1 << BITS) + 1, 1 << BITS, (2, 3, 3)))
    clear = in_the_clear(program, arrays)
    for plan, places in ((WalkPlan.in_64_bits(program), 2), (planned(program, met(program, arrays)), 3)):
        results, log = walked(plan, arrays)
        for number, result in zip(program.outputs, results, strict=True):
            # All numbers are below 1 in size, so that an operation at most adds its operands' errors and its last places.
            assert np.abs(result - clear[number]).max() <= places * 2 ** len(kinds)
        assert costs(plan)[0] == sum(content.size for *_, content in log)


def test_large_values_wait_until_there_is_room():
    """Parts that need nothing of each other are computed one after the other, with the same results."""

    def parts(x):
        found = []
        for row in range(4):
            y = Fixed(x[row], 18, True)
            for _ in range(3):
                y = (y * y).truncated(18)
            found.append(y.array[:4])
        return lax.bitcast_convert_type(jnp.concatenate(found), jnp.float32)

    plan = WalkPlan.in_64_bits(read(lambda x: parts(lax.bitcast_convert_type(x, jnp.int32)), [Spec((4, 1000))]))
    words = np.random.default_rng(0).integers(-(1 << 18), 1 << 18, (4, 1000))
    (at_once,), at_once_log = walked(plan, [words])
    (in_turn,), in_turn_log = walked(plan, [words], room=2000)
    np.testing.assert_array_equal(in_turn, at_once)
    rounds = [1 + max(number for number, *_ in log) for log in (at_once_log, in_turn_log)]
    assert rounds[1] >= 3 * rounds[0]
    assert sum(content.size for *_, content in in_turn_log) == sum(content.size for *_, content in at_once_log)


def test_public_numbers_below_zero_are_as_in_jax():
    """Places, comparisons and constants that depend on a public argument."""

    def function(x, place):
        words = lax.bitcast_convert_type(x, jnp.int32)
        row = lax.dynamic_slice(words, (place,), (1,))
        factor = lax.select(place < -1, jnp.int32(1), jnp.int32(3))
        return lax.bitcast_convert_type(words * jnp.broadcast_to(factor, (4,)) + row, jnp.float32)

    program = read(function, [Spec((4,)), Spec((), "int32", public=True)])
    words = np.array([10, 20, 30, 40])
    for place, expected in ((-2, words + 30), (-1, 3 * words + 40), (1, 3 * words + 20)):
        (result,), _ = walked(WalkPlan.in_64_bits(program), [words, np.array(place)])
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("bits", [1, 7, 20])
def test_local_truncations_into_a_smaller_ring(bits):
    """Right to within 1.5 of the last place, nearly without a bias, for every number, and then cut into a larger ring."""

    def function(x):
        number = Fixed.load(x, 40, True)
        return number.truncated(40 - bits).truncated(30 - bits).store()

    program = read(function, [Spec((20_000,))])
    first, second = [o for o in program.operations if o.kind == "truncate"]
    rings = [64] * len(program.shapes)
    rings[first.output] = 64 - bits
    plan = WalkPlan(program, tuple(rings), frozenset([second.output]))
    words = np.random.default_rng(0).integers(-(1 << 60 - bits), 1 << 60 - bits, 20_000)
    (result,), log = walked(plan, [words])
    error = result - words / 2.0 ** (bits + 10)
    assert np.abs(error).max() < 1 + 1.5 / 2**10 + 2.0**-bits
    assert abs(error.mean()) < 0.02
    assert len({number for number, *_ in log}) == 2  # those of the cut alone


def doubled_and_truncated():
    """A program of two operations."""
    return read(lambda x: (Fixed.load(x, 20, True) + Fixed.load(x, 20, True)).truncated(10).store(), [Spec((3,))])


def test_plans_that_cannot_be_right_are_refused():
    plan = WalkPlan.in_64_bits(doubled_and_truncated())
    bits = np.array(plan.bits)
    add, cut = (operation.output for operation in plan.program.operations)
    for number, message in ((cut, "one of 64 or 32 bits for each result"), (add, "cannot be: a ring has 2 to 64 bits")):
        changed = np.where(np.arange(bits.size) == number, 10, bits)
        with pytest.raises(CipherDMError, match=message):
            replace(plan, bits=tuple(changed.tolist()))
    with pytest.raises(CipherDMError, match="makes bits that what it reads does not have"):
        replace(plan, cuts=frozenset())


def test_programs_with_two_values_of_one_number_are_refused():
    """Their masks would be the same."""
    program = doubled_and_truncated()
    first, second = program.operations
    for operations in ((first, replace(second, output=first.output)), (second, first), (first,)):
        with pytest.raises(CipherDMError, match="two values of one number|not there"):
            replace(program, operations=operations)


@pytest.mark.parametrize(
    "function", [lambda x: jnp.maximum(x, 0), lambda x: x / x, jnp.exp, lambda x: x * x, lambda x: x.astype(jnp.int32)]
)
def test_what_is_no_sum_and_no_product_is_left_to_spu(function):
    with pytest.raises(CipherDMError, match="SPU has to compute it|words of float32"):
        read(function, [Spec((3,))])
