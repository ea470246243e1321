"""Rings, fixed point, shares and products in `cipherdm.sharing`, against Python's integers; and what the transcript says."""

import ast
import warnings
from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from cipherdm import CipherDMError, sharing
from cipherdm.sharing import BIT, FixedPoint, Ring, Shared, ThreeParties, additive_shares, concatenate, replicate, stack

SIZES = (1, 2, 5, 8, 13, 16, 31, 32, 33, 63, 64)
RINGS = st.sampled_from([Ring(bits) for bits in SIZES])
quick = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def no_warnings():
    """Wrap-around is meant everywhere, so that a warning of NumPy's is a mistake of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@st.composite
def ring_and_words(draw, arrays=2, size=6, rings=RINGS):
    """A ring, and lists of its numbers as Python's integers with their sign, extremes among them."""
    ring = draw(rings)
    number = st.sampled_from([ring.lowest, ring.highest, 0]) | st.integers(ring.lowest, ring.highest)
    return ring, *(draw(st.lists(number, min_size=size, max_size=size)) for _ in range(arrays))


def wrapped(ring, value):
    """A whole number as the ring shows it, with its sign."""
    value = int(value) % ring.modulus
    return value - ring.modulus if value > ring.highest else value


def shared(parties, ring, numbers, fraction_bits=0):
    """Whole numbers of a ring, shared by the client."""
    return parties.share(np.array(numbers, np.int64), fraction_bits, ring)


@quick
@given(ring_and_words(arrays=1))
def test_words_signs_and_bits(drawn):
    ring, numbers = drawn
    words = ring.reduce(np.array(numbers, np.int64))
    assert words.dtype == ring.dtype
    assert words.tolist() == [number % ring.modulus for number in numbers]
    assert ring.signed(words).tolist() == numbers
    bits = ring.to_bits(words)
    assert bits.shape == (6, ring.bits) and bits.dtype == BIT.dtype
    assert bits.tolist() == [[word >> place & 1 for place in range(ring.bits)] for word in words.tolist()]
    assert ring.from_bits(bits).tolist() == words.tolist()


@pytest.mark.parametrize("bits", [0, 65, -1])
def test_rings_that_do_not_exist(bits):
    with pytest.raises(CipherDMError, match=f"{bits} bits.*choose 1 to 64"):
        Ring(bits)


@quick
@given(st.integers(2, 64), st.data())
def test_encoding_rounds_to_the_nearest_unit(bits, data):
    encoding = FixedPoint(Ring(bits), data.draw(st.integers(0, bits - 1)))
    assert Fraction(encoding.unit) == Fraction(1, 2**encoding.fraction_bits)
    assert Fraction(encoding.lowest) == encoding.ring.lowest * Fraction(encoding.unit)
    value = data.draw(st.floats(encoding.lowest, encoding.highest * (1 - 2.0**-52)))
    if Fraction(value) > (encoding.ring.highest + Fraction(1, 2)) * Fraction(encoding.unit):
        return  # the nearest unit is out of range, and the next test's business
    back = encoding.decode(encoding.encode([value]))[0]
    # float64 has 53 bits of its own, which matter where words have more.
    allowed = Fraction(encoding.unit) / 2 + abs(Fraction(value)) * Fraction(1, 2**52)
    assert abs(Fraction(float(back)) - Fraction(value)) <= allowed


@pytest.mark.parametrize("bits, fraction_bits", [(64, 18), (64, 0), (16, 8), (8, 7), (2, 0), (1, 0)])
def test_values_beyond_the_ends_are_refused(bits, fraction_bits):
    encoding = FixedPoint(Ring(bits), fraction_bits)
    end = 2.0 ** (max(bits - 1, 1) - fraction_bits)
    lowest = 0.0 if bits == 1 else -end
    assert encoding.decode(encoding.encode(lowest)) == lowest == encoding.lowest
    for value in (end, lowest - max(encoding.unit, end * 2**-52), 1e300, -1e300):
        with pytest.raises(CipherDMError, match="outside .*scale the values down"):
            encoding.encode([0.0, value])
    # Whole numbers are compared as such; of 64 bits, the first one that is out of range has a type of its own.
    beyond = [np.array([0, int(end)], np.uint64)]
    beyond += [np.array([0, int(lowest) - 1], np.int64)] if bits < 64 else []
    for values in beyond:
        with pytest.raises(CipherDMError, match="outside .*scale the values down"):
            encoding.encode(values)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(CipherDMError, match="not finite"):
            encoding.encode([0.0, value])
    for value in (1j, "one"):
        with pytest.raises(CipherDMError, match="cannot be shared"):
            encoding.encode([value])


@pytest.mark.parametrize("fraction_bits", [-1, 16, 100])
def test_fraction_bits_that_do_not_fit(fraction_bits):
    with pytest.raises(CipherDMError, match=f"{fraction_bits} fraction bits do not fit into 16-bit words"):
        FixedPoint(Ring(16), fraction_bits)


@quick
@given(ring_and_words(arrays=1), st.integers(2, 5), st.integers(0, 2**32))
def test_additive_shares_add_up(drawn, count, seed):
    ring, numbers = drawn
    shares = additive_shares(np.array(numbers, np.int64), ring, np.random.default_rng(seed), count)
    assert shares.shape == (count, 6) and shares.dtype == ring.dtype
    sums = [wrapped(ring, sum(int(share) for share in column)) for column in shares.T]
    assert sums == numbers


def test_each_party_holds_two_of_three_components():
    held = replicate(np.array([[10], [11], [12]]))
    assert held[:, :, 0].tolist() == [[10, 11], [11, 12], [12, 10]]
    x = ThreeParties().share([1.5])
    for party in range(3):
        first, second = x.of(party)
        assert first == x.components[party] and second == x.components[(party + 1) % 3]


@quick
@given(ring_and_words(), st.integers(0, 2**32))
def test_linear_operations_take_no_message(drawn, seed):
    ring, one, other = drawn
    parties = ThreeParties(0, ring, seed)
    x, y, public = shared(parties, ring, one), shared(parties, ring, other), np.array(other, np.int64)
    sent = len(parties.transcript.messages)
    results = {
        (lambda a, b: a + b): (x + y, x + public, public + x),
        (lambda a, b: a - b): (x - y, x - public),
        (lambda a, b: b - a): (y - x, public - x),
        (lambda a, b: -a): (-x,),
        (lambda a, b: a * b): (x * public, public * x),
    }
    assert len(parties.transcript.messages) == sent
    for function, values in results.items():
        exact = [wrapped(ring, function(a, b)) for a, b in zip(one, other, strict=True)]
        for value in values:
            assert parties.open(value).tolist() == exact
            assert consistent(value)


@quick
@given(ring_and_words(), st.integers(0, 2**32))
def test_products_of_secrets(drawn, seed):
    ring, one, other = drawn
    parties = ThreeParties(0, ring, seed)
    x, y = shared(parties, ring, one), shared(parties, ring, other)
    product = parties.multiply(x, y)
    assert parties.open(product).tolist() == [wrapped(ring, a * b) for a, b in zip(one, other, strict=True)]
    matrix = parties.matmul(x.reshape(2, 3), y.reshape(3, 2))
    exact = np.array(one, object).reshape(2, 3) @ np.array(other, object).reshape(3, 2)
    assert parties.open(matrix).tolist() == [[wrapped(ring, entry) for entry in row] for row in exact]
    assert parties.open_to_parties(matrix).tolist() == parties.open(matrix).tolist()
    assert consistent(product) and consistent(matrix)


def consistent(x: Shared) -> bool:
    """Whether what a party holds second is what the next party holds first, and all words are of the ring."""
    words_fit = x.held.dtype == x.ring.dtype and int(x.held.max(initial=0)) < x.ring.modulus
    return words_fit and np.array_equal(x.held[:, 1], np.roll(x.held[:, 0], -1, axis=0))


def test_fixed_point_products_have_the_fraction_bits_of_both():
    parties = ThreeParties(18)
    x, y = parties.share([1.5, -2.25]), parties.share([3.0, 0.5])
    product = parties.multiply(x, y)
    assert product.fraction_bits == 36
    assert parties.open(product).tolist() == [4.5, -1.125]
    assert (x * 2).fraction_bits == 18 and (x * 0.5).fraction_bits == 36
    assert parties.open(x * 0.5).tolist() == [0.75, -1.125]
    assert parties.open(0.25 - x).tolist() == [-1.25, 2.5]
    assert parties.open(x - np.array([True, False])).tolist() == [0.5, -2.25]
    assert parties.open(x - np.array([3, 1], np.uint8)).tolist() == [-1.5, -3.25]
    with pytest.raises(CipherDMError, match="72 fraction bits do not fit.*truncate"):
        parties.multiply(product, product)


def test_single_numbers_and_other_arrangements():
    parties = ThreeParties(18)
    one = parties.share(-3.5)
    assert one.shape == () and parties.open(one) == -3.5
    assert parties.open(parties.multiply(one, one)) == 12.25
    x = parties.share(np.arange(6.0).reshape(2, 3))
    assert parties.open(x[1, ::2]).tolist() == [3, 5] and parties.open(x[:, 1]).tolist() == [1, 4]
    assert parties.open(x.reshape(3, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert parties.open(x[0].broadcast_to((2, 3))).tolist() == [[0, 1, 2]] * 2
    assert parties.open(stack([x[0], x[1]])).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert parties.open(concatenate([x, x[:, :1]])).tolist() == [[0, 1, 2, 0], [3, 4, 5, 3]]
    empty = parties.share(np.zeros((0, 3)))
    assert parties.open(parties.multiply(empty, empty)).shape == (0, 3)


def test_mistakes_are_named():
    parties = ThreeParties(18)
    x, y = parties.share([1.0, 2.0]), parties.share([1.0, 2.0, 3.0])
    with pytest.raises(CipherDMError, match=r"shapes \(2,\) and \(3,\) differ; use broadcast_to"):
        parties.multiply(x, y)
    with pytest.raises(CipherDMError, match="differ; use broadcast_to"):
        x + y
    with pytest.raises(CipherDMError, match="use ThreeParties.multiply"):
        x * x
    with pytest.raises(CipherDMError, match="18 and 36 fraction bits cannot be added"):
        x + parties.multiply(x, x)
    with pytest.raises(CipherDMError, match="64 and 1 bits do not mix"):
        parties.multiply(x, parties.share([0, 1], 0, BIT))
    with pytest.raises(CipherDMError, match="have no product"):
        parties.matmul(x, y)
    with pytest.raises(CipherDMError, match="outside"):
        x + 1e15


def test_the_transcript_has_every_message():
    parties = ThreeParties(18)
    x, y = parties.share(np.ones((4, 5))), parties.share(np.ones((5, 6)))
    parties.open(parties.matmul(x, y))
    table = parties.transcript.table()
    assert table["round"].tolist() == sorted(table["round"]) and parties.transcript.rounds == 5
    assert table["bytes"].sum() == parties.transcript.bytes
    assert [len(message.payload) for message in parties.transcript.messages] == table["bytes"].tolist()
    summary = parties.transcript.summary()
    expected = {
        "keys": (1, 3, 3 * 32),  # one of 32 bytes from each party
        "share": (2, 6, 3 * 2 * 8 * (20 + 30)),  # two components to each party
        "matmul": (1, 3, 3 * 8 * 24),  # one word an entry of the result to each party
        "open": (1, 3, 3 * 8 * 24),
    }
    assert {name: tuple(row) for name, row in summary.iterrows()} == expected
    ways = table[table["operation"] == "matmul"][["sender", "receiver"]].values.tolist()
    assert ways == [["party 1", "party 0"], ["party 2", "party 1"], ["party 0", "party 2"]]


@pytest.mark.parametrize("bits, count, expected", [(1, 1, 1), (1, 8, 1), (1, 9, 2), (5, 3, 2), (8, 3, 3), (64, 3, 24)])
def test_small_words_are_packed(bits, count, expected):
    ring = Ring(bits)
    parties = ThreeParties(0, ring)
    x = shared(parties, ring, [0] * count)
    parties.multiply(x, x)
    for message in parties.view(1).of("multiply"):
        assert message.bytes == len(message.payload) == expected
        unpacked = np.unpackbits(np.frombuffer(message.payload, np.uint8), bitorder="little")[: bits * count]
        assert ring.from_bits(unpacked.reshape(count, bits)).tolist() == message.words.tolist()


def test_a_view_is_what_was_received():
    parties = ThreeParties(18)
    x = parties.share([1.0, 2.0])
    product = parties.multiply(x, x)
    for party in range(3):
        key, dealt, received = parties.view(party).messages
        assert key.sender == f"party {(party + 1) % 3}" and key.words.tobytes() == parties.view((party + 1) % 3).own_key
        assert dealt.sender == "client" and np.array_equal(dealt.words, x.held[party])
        assert received.sender == f"party {(party + 1) % 3}" and np.array_equal(received.words, product.of(party)[1])
        assert len(parties.view(party).payload) == 32 + 2 * 2 * 8 + 2 * 8
        table = parties.view(party).table()
        assert table["operation"].tolist() == ["keys", "share", "multiply"]
        assert table["first words"].iloc[-1] == " ".join(f"{int(word):016x}" for word in received.words)
    assert parties.view(0).of("open") == ()


def test_the_same_seed_gives_the_same_messages():
    def payloads(seed):
        parties = ThreeParties(seed=seed)
        x = parties.share([1.0])
        parties.open(parties.multiply(x, x))
        return [message.payload for message in parties.transcript.messages]

    assert payloads(3) == payloads(3)
    assert all(one != other for one, other in zip(payloads(3), payloads(4), strict=True))


@pytest.mark.parametrize("ring", [Ring(64), Ring(13), BIT], ids=str)
def test_zero_shares_add_up_to_zero_and_keys_are_shared_in_pairs(ring):
    parties = ThreeParties()
    first, second = (parties._randomness.zero(ring, (50,)) for _ in range(2))
    for zero in (first, second):
        assert np.all(ring.reduce(zero.sum(0, ring.dtype)) == 0)
    assert not np.array_equal(first, second) and all(row.any() for row in first)
    assert consistent(parties.random(ring, (2, 5)))
    words = np.arange(50) % ring.modulus
    of_party_zero = parties.share_from_party_zero(ring.reduce(words), ring)
    assert (
        consistent(of_party_zero)
        and ring.reduce(of_party_zero.components.sum(0, ring.dtype)).tolist() == words.tolist()
    )


def test_sharing_needs_nothing_of_the_package_but_its_errors():
    for path in Path(sharing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2 or (node.level, node.module) == (2, "errors"), path.name
                assert not (node.module or "").startswith("cipherdm"), path.name
