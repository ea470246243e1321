"""`Fixed` numbers against exact integers: as real numbers in plaintext, and as words of the ring on three parties."""

from fractions import Fraction

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

from cipherdm.engine import Call, EngineConfig, Plan, Spec, compile_program
from cipherdm.protocols.fixed import (
    ENGINE_FRACTION_BITS,
    Fixed,
    broadcast_to,
    concatenate,
    decode,
    dot_general,
    encode,
    matmul,
    public_like,
    sums,
    swapaxes,
    written_out,
)

SMALL_WORDS = st.lists(
    st.integers(-(2**11) + 1, 2**11 - 1), min_size=6, max_size=6
)  # exact in float32, as products too
BITS = st.integers(0, 12)


def number(words, bits):
    """Words as real numbers, in the plaintext reading."""
    return Fixed.load(jnp.asarray(np.float64(words) * 2.0**-bits, jnp.float32), bits, ring=False)


def fractions(values, bits=0):
    """Exact numbers: values / 2^bits."""
    return [Fraction(float(value)) / Fraction(2) ** bits for value in np.ravel(values)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=8), st.integers(0, 17), st.booleans())
def test_encoding_and_decoding_round_to_the_nearest_unit(values, bits, ring):
    values = np.float32(values)
    encoded = encode(values, bits, ring)
    assert encoded.dtype == np.float32
    words = fractions(encoded, -(ENGINE_FRACTION_BITS if ring else bits))
    assert all(word.denominator == 1 for word in words)
    for value, back in zip(fractions(values), fractions(decode(encoded, bits, ring)), strict=True):
        assert abs(back - value) <= Fraction(1, 2 ** (bits + 1))


@settings(max_examples=60, deadline=None)
@given(SMALL_WORDS, SMALL_WORDS, BITS, BITS)
def test_sums_and_products_are_exact(first, second, first_bits, second_bits):
    x, y = number(first, first_bits), number(second, second_bits)
    one, other = fractions(first, first_bits), fractions(second, second_bits)
    pairs = list(zip(one, other, strict=True))
    # A sum's unit is the finer one's, and float32 has 24 bits for it.
    bound = Fraction(2**12, 2**24)
    for sum_, sign in ((x + y, 1), (x - y, -1)):
        assert sum_.bits == max(first_bits, second_bits)
        results = zip(fractions(sum_.array), pairs, strict=True)
        assert all(abs(result - (a + sign * b)) <= bound for result, (a, b) in results)
    assert (x * y).bits == first_bits + second_bits
    assert fractions((x * y).array) == [a * b for a, b in pairs]
    assert fractions((-x).array) == [-a for a in one]
    assert fractions(sums(x.reshape(2, 3), -1).array) == [sum(one[:3]), sum(one[3:])]
    product = matmul(x.reshape(2, 3), y.reshape(3, 2))
    assert product.bits == first_bits + second_bits
    exact = [sum(one[3 * i + k] * other[2 * k + j] for k in range(3)) for i in range(2) for j in range(2)]
    assert all(abs(a - b) <= bound for a, b in zip(fractions(product.array), exact, strict=True))


@settings(max_examples=60, deadline=None)
@given(SMALL_WORDS, BITS, st.integers(0, 30))
def test_more_bits_and_powers_of_two_leave_the_words_alone(words, bits, more):
    x = number(words, bits)
    assert x.raised(bits + more).bits == bits + more
    assert fractions(x.raised(bits + more).array) == fractions(words, bits)
    moved = x.times_power_of_two(more - 15)
    assert moved.bits == bits - (more - 15)
    assert fractions(moved.array) == [value * Fraction(2) ** (more - 15) for value in fractions(words, bits)]


@settings(max_examples=60, deadline=None)
@given(SMALL_WORDS, st.integers(5, 12), st.integers(0, 5))
def test_truncation_is_within_half_a_unit(words, bits, shorter):
    result = number(words, bits).truncated(shorter)
    assert result.bits == shorter
    for value, back in zip(fractions(words, bits), fractions(result.array), strict=True):
        assert abs(back - value) <= Fraction(1, 2 ** (shorter + 1)) or shorter == bits
        assert (back * 2**shorter).denominator == 1


@pytest.mark.parametrize("bits", [8, 10, 14])
def test_a_truncation_that_the_ring_has_no_room_for_is_not_a_number(bits):
    end = 2.0 ** (62 - ENGINE_FRACTION_BITS - bits)
    inside, outside = np.float32([0.999 * end, -0.999 * end]), np.float32([end, -end, 4 * end])
    x = Fixed.load(jnp.asarray(np.append(inside, outside)), 2 * bits, ring=False).truncated(bits).array
    np.testing.assert_allclose(x[:2], inside, atol=2.0**-bits)
    assert np.isnan(x[2:]).all()


def test_fewer_bits_take_a_truncation():
    with pytest.raises(ValueError, match="12 fraction bits do not become 10"):
        number([1], 12).raised(10)


@pytest.fixture(scope="module")
def run(cluster):
    """run(function, *words): what a function of `Fixed` numbers without fraction bits makes of secret words, and its cost.

    Words come and go as Python's or NumPy's 64-bit integers. A result is put together from its low 32 bits and, for the
    high ones, the nearest float32; that is exact below 2^55.
    """
    session = cluster.session(EngineConfig(fraction_bits=ENGINE_FRACTION_BITS))

    def call(function, *arrays, calls=1):
        def entry(*shares):
            as_floats = [lax.bitcast_convert_type(share, jnp.float32) for share in shares]
            result = function(*(Fixed.load(share, 0, ring=True) for share in as_floats))
            return result.store(), result.array

        names = tuple(f"x{index}" for index in range(len(arrays)))
        session.share({name: np.asarray(array, np.int64) for name, array in zip(names, arrays, strict=True)})
        program = compile_program(entry, tuple(Spec(np.shape(array), "int32") for array in arrays))
        cost = session.run(Plan((Call(program, names, ("near", "low"), "entry"),) * calls))
        near = np.round(session.reveal("near").astype(np.float64) * 2.0**ENGINE_FRACTION_BITS).astype(np.int64)
        low = session.reveal("low").astype(np.int64)
        return near + (low - near + 2**31) % 2**32 - 2**31, cost

    return call


def words(bits, *shape, seed=0):
    """Random words below 2^bits."""
    return np.random.default_rng(seed).integers(-(2**bits) + 1, 2**bits, shape)


def test_more_bits_on_the_ring(run):
    x = words(10, 20)
    for more in (0, 7, 31, 33, 44):
        result, _ = run(lambda x, more=more: x.raised(more), x)
        assert result.tolist() == [int(word) << more for word in x]
    # By more than 32 bits at once, with what is below kept: only a shift in pieces keeps both.
    result, _ = run(lambda x, y: x.raised(40) + y.times_power_of_two(-40), x, words(38, 20))
    assert result.tolist() == [(int(a) << 40) + int(b) for a, b in zip(x, words(38, 20), strict=True)]


def test_powers_of_two_and_sums_of_different_bits_on_the_ring(run):
    x, y = words(30, 20), words(20, 20, seed=1)
    assert run(lambda x: x.times_power_of_two(5), x)[0].tolist() == x.tolist()
    result, _ = run(lambda x, y: x.times_power_of_two(-12) + y - x, x, y)  # 12 bits, 0 bits, 0 bits
    assert result.tolist() == [int(a) + 4096 * (int(b) - int(a)) for a, b in zip(x, y, strict=True)]
    joined, _ = run(lambda x, y: concatenate([x.times_power_of_two(-12), y]), x, y)
    assert joined.tolist() == [*x.tolist(), *(4096 * int(b) for b in y)]


def test_products_on_the_ring(run):
    x, y = words(26, 6, 8), words(26, 8, 5, seed=1)
    exact = x.astype(object) @ y.astype(object)
    assert run(matmul, x, y)[0].tolist() == exact.tolist()
    assert run(lambda x, y: x * y, x, x[::-1])[0].tolist() == (x * x[::-1]).tolist()
    assert run(lambda x: sums(x, -1), x)[0].tolist() == x.sum(1).tolist()
    batched, _ = run(
        lambda x, y: dot_general(x, y, (((2,), (1,)), ((0,), (0,)))), x.reshape(2, 3, 8), words(9, 2, 8, 1)
    )
    assert batched.tolist() == (x.reshape(2, 3, 8) @ words(9, 2, 8, 1)).tolist()


def test_sums_and_products_of_different_shapes_on_the_ring(run):
    """One operand is written out in memory; words beyond 32 bits show that it is the ring's and not JAX's."""
    x, y = words(40, 4, 8, 9, 9), words(12, 8, 1, 1, seed=1)
    total, cost = run(lambda x, y: y + x, x, y)
    assert cost.bytes == 0 and total.tolist() == (x + y).tolist()
    product, cost = run(lambda x, y: x * y, x, y)
    assert cost.bytes == 24 * x.size and product.tolist() == (x * y).tolist()
    rows, cost = run(lambda y: broadcast_to(y, (4, 8, 9, 9)), words(50, 4, 8, 9, 1))
    assert cost.bytes == 0 and rows.tolist() == np.broadcast_to(words(50, 4, 8, 9, 1), rows.shape).tolist()
    turned, cost = run(lambda x: written_out(swapaxes(x, 0, 1)), x)
    assert cost.bytes == 0 and turned.tolist() == x.swapaxes(0, 1).tolist()


@pytest.mark.parametrize(
    "shift",
    [
        5,
        20,
        40,
        42,
    ],
)
def test_truncation_on_the_ring_is_within_a_unit(run, shift):
    x = words(min(18 + shift, 60), 2000)
    result, _ = run(lambda x: x.truncated(-shift), x)
    errors = [
        abs(Fraction(int(after)) - Fraction(int(before), 2**shift)) for before, after in zip(x, result, strict=True)
    ]
    assert max(errors) <= 1


@pytest.mark.parametrize("shift", [5, 42])
def test_truncation_beyond_the_range_is_wrong_on_the_ring(run, shift):
    """Where the plaintext reading says "not a number"."""
    x = np.full(500, 1.5 * 2.0 ** (18 + shift)).astype(np.int64)
    result, _ = run(lambda x: x.truncated(-shift), x)
    assert (np.abs(result - (x >> shift)) > 2**19).any()


@pytest.mark.parametrize("number", [0, 196])
def test_a_public_number_as_shares(run, number):
    result, cost = run(lambda x: public_like(x, number), words(40, 3, 5))
    assert result.tolist() == [[number] * 5] * 3
    assert cost.sends == 0


def test_what_operations_cost(run):
    """Messages and bytes of all parties. Several calls, because a counter may be off by a message."""
    x, square, calls = words(20, 1000), words(15, 20, 20), 4
    costs = {
        "product": run(lambda x: x * x, x, calls=calls)[1],
        "matmul": run(lambda x: matmul(x, x), square, calls=calls)[1],
        "truncation": run(lambda x: x.truncated(-10), x, calls=calls)[1],
    }
    sends = {name: cost.sends for name, cost in costs.items()}
    assert sends == {
        name: pytest.approx(calls * per_call, abs=1) for name, per_call in zip(costs, (3, 3, 5), strict=True)
    }
    for name, numbers in {"product": x.size, "matmul": square.size}.items():
        assert costs[name].bytes == pytest.approx(calls * 3 * 8 * numbers, rel=0.02)
    free = {
        "sum": lambda x: x + x.times_power_of_two(-3) - x,
        "sums": lambda x: sums(x.reshape(10, 100), -1),
        "raised": lambda x: x.raised(33),
        "public factor": lambda x: x.with_array(x.array * jnp.int32(3)),
        "concatenate": lambda x: concatenate([x, x.times_power_of_two(2)]),
    }
    assert {name: run(function, x, calls=calls)[1].sends for name, function in free.items()} == dict.fromkeys(free, 0)
