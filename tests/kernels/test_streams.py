"""Words by address: where they come from, that both holders have the same, and that no two addresses share any."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from cipherdm import CipherDMError
from cipherdm.kernels.keys import AgreedKeys
from cipherdm.kernels.streams import STRIP, Address, Purpose, Stream

KEY = bytes(range(32))
WORDS = (np.uint8, np.uint16, np.uint32, np.uint64)


@pytest.mark.parametrize("word", WORDS)
def test_words_are_aes_of_the_address(word):
    at = Address(3, 7)
    drawn = Stream(KEY).words(at, Purpose.Y0, STRIP, 100, word).copy()
    size = np.dtype(word).itemsize
    first = STRIP * size // 16
    upper = 3 << 40 | 7 << 8 | Purpose.Y0
    numbers = b"".join(
        upper.to_bytes(8, "little") + (first + place).to_bytes(8, "little") for place in range(100 * size // 16 + 1)
    )
    expected = np.frombuffer(Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor().update(numbers), word)[:100]
    np.testing.assert_array_equal(drawn, expected)


@given(order=st.permutations(range(4)), word=st.sampled_from(WORDS))
def test_order_does_not_matter(order, word):
    """Parts of one address drawn in any order, with others between, are the same words."""
    one, other = Stream(KEY), Stream(KEY)
    whole = np.concatenate([one.words(Address(0, 1), Purpose.A, 64 * part, 64, word).copy() for part in range(4)])
    for part in order:
        other.words(Address(0, 2), Purpose.A, 0, 64, word)
        drawn = other.words(Address(0, 1), Purpose.A, 64 * part, 64, word)
        np.testing.assert_array_equal(drawn, whole[64 * part : 64 * (part + 1)])


def test_no_word_is_at_two_addresses():
    stream = Stream(KEY)
    addresses = [Address(call, operation) for call in (0, 1, (1 << 24) - 1) for operation in (0, 1, 256, (1 << 32) - 1)]
    drawn = [stream.words(at, purpose, 0, 1000).copy() for at in addresses for purpose in Purpose]
    words = np.concatenate(drawn)
    assert np.unique(words).size == words.size
    assert len({at.block(purpose) for at in addresses for purpose in Purpose}) == len(drawn)


@pytest.mark.parametrize(("call", "operation"), [(1 << 24, 0), (0, 1 << 32), (-1, 0), (0, -1)])
def test_addresses_have_limits(call, operation):
    with pytest.raises(CipherDMError, match="begin another run"):
        Address(call, operation)


@pytest.mark.parametrize(("start", "count"), [(0, STRIP + 1), (1, 4)])
def test_only_strips_are_drawn(start, count):
    with pytest.raises(ValueError, match="no strip"):
        Stream(KEY).words(Address(0, 0), Purpose.A, start, count)


def test_each_plan_has_its_own_words_and_each_run_draws_them_once():
    keys = AgreedKeys(KEY, KEY[::-1])
    one, other = (
        keys.streams(b"run", plan).own.words(Address(0, 0), Purpose.A, 0, 1000).copy() for plan in (b"1", b"2")
    )
    again = keys.streams(b"another run", b"1").own.words(Address(0, 0), Purpose.A, 0, 1000)
    assert np.unique(np.concatenate([one, other, again])).size == 3000
    with pytest.raises(CipherDMError, match="handed out already"):
        keys.streams(b"run", b"1")
