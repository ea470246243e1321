"""Keys that the parties agree on: what is refused, and what they tell each other."""

import threading

import pytest

from cipherdm import CipherDMError
from cipherdm.kernels.keys import AgreedKeys, agree, fresh_key

KEYS = [bytes([number]) * 32 for number in (1, 2, 3)]


def test_bad_keys_are_refused():
    with pytest.raises(CipherDMError, match="16 bytes"):
        AgreedKeys(bytes(16), KEYS[0])
    with pytest.raises(CipherDMError, match="same key"):
        AgreedKeys(KEYS[0], KEYS[0])


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
