"""Zero shares: their sum, where their words come from, and that none is drawn twice."""

import threading

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from cipherdm import CipherDMError
from cipherdm.kernels.zero import CHUNK, AgreedKeys, ZeroShares, agree, fresh_key

KEYS = [bytes([number]) * 32 for number in (1, 2, 3)]


def three(run=b"run"):
    """The zero shares of three parties."""
    return [AgreedKeys(KEYS[rank], KEYS[(rank + 1) % 3]).zero_shares(run) for rank in range(3)]


@given(
    draws=st.lists(
        st.tuples(st.sampled_from((np.uint64, np.uint32)), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_the_three_shares_sum_to_zero(draws):
    parties = three()
    for word, shape in draws:
        shares = [party.draw(tuple(shape), word) for party in parties]
        assert shares[0].dtype == word and shares[0].shape == tuple(shape)
        assert not (shares[0] + shares[1] + shares[2]).any()
    assert len({party.position for party in parties}) == 1


@pytest.mark.parametrize("size", (1, CHUNK // 8 - 1, CHUNK // 8, 3 * CHUNK // 8 + 5))
def test_words_are_aes_of_a_counter(size):
    """The same words by encrypting the numbers 0, 1, 2, ... one block at a time, whatever the sizes of the draws."""
    own, following = bytes(range(32)), bytes(range(32, 64))
    shares = ZeroShares(own, following)
    drawn = np.concatenate([shares.draw((size,)), shares.draw((3,)), shares.draw((4,))])
    counters = b"".join(block.to_bytes(16, "big") for block in range(drawn.size // 2 + 1))
    streams = [
        np.frombuffer(Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(counters), np.uint64)[: drawn.size]
        for key in (own, following)
    ]
    np.testing.assert_array_equal(drawn, streams[0] - streams[1])
    assert shares.position == drawn.nbytes


def test_no_word_appears_twice_in_a_run_or_in_two():
    keys = AgreedKeys(*KEYS[:2])
    first, second = keys.zero_shares(b"one"), keys.zero_shares(b"two")
    words = np.concatenate([first.draw((5000,)), first.draw((5000,)), second.draw((5000,)), second.draw((5000,))])
    assert np.unique(words).size == words.size


def test_a_run_gets_its_shares_once():
    keys = AgreedKeys(*KEYS[:2])
    keys.zero_shares(b"run")
    with pytest.raises(CipherDMError, match="name each run anew"):
        keys.zero_shares(b"run")


def test_shares_are_added_in_place():
    one, other = three()[0], three()[0]
    words = np.arange(12, dtype=np.uint64).reshape(3, 4)
    before = words.copy()
    assert one.add_to(words) is words
    np.testing.assert_array_equal(words - before, other.draw((3, 4)))


def test_bytes_are_uniform():
    counts = np.bincount(three()[0].draw((1 << 15,)).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()  # mean 255, standard deviation 22.6
    assert 255 - 6 * 22.6 < chi_squared < 255 + 6 * 22.6


def test_bad_keys_and_arrays_are_refused():
    with pytest.raises(CipherDMError, match="16 bytes"):
        AgreedKeys(bytes(16), KEYS[0])
    with pytest.raises(CipherDMError, match="same key"):
        AgreedKeys(KEYS[0], KEYS[0])
    shares = three()[0]
    for words in (np.zeros(3), np.zeros((4, 4), np.uint64).T[1:]):
        with pytest.raises(CipherDMError, match="contiguous"):
            shares.add_to(words)


def test_fresh_keys_differ():
    assert len({fresh_key() for _ in range(10)}) == 10


@pytest.mark.parametrize("replaced", [None, 0, 1, 2])
def test_a_key_that_was_replaced_on_its_way_is_an_error_at_all_parties(replaced):
    """Somebody posts a public constant in the place of the key that one party gets."""
    sent, told, everybody, found = [None] * 3, [None] * 3, threading.Barrier(3), [None] * 3

    def party(rank):
        def exchange(key):
            sent[rank] = key
            everybody.wait(timeout=30)
            return bytes(32) if rank == replaced else sent[(rank + 1) % 3]

        def gather(text):
            told[rank] = text
            everybody.wait(timeout=30)
            return list(told)

        try:
            agree(exchange, gather, b"run")
        except CipherDMError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if replaced is None:
        assert found == [None] * 3
    else:
        assert all(f"party {(replaced + 1) % 3} and the one before it have different keys" in words for words in found)


def test_hashes_of_keys_are_of_their_run():
    keys = AgreedKeys(*KEYS[:2])
    assert keys.hashes(b"one") != keys.hashes(b"two") and len(keys.hashes(b"one").split()) == 2
