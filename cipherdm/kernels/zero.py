"""Shares of zero that three parties draw without a message: three numbers whose sum is 0, uniform to each other party.

Each party picks a key and sends it, once, to the previous party over the authenticated link. Rank i then knows its own key
and that of rank i + 1, and draws F(own) - F(next), F a stream of pseudorandom words. Over the three parties every stream
appears once with each sign, so the sum is zero. Rank i - 1, which gets the message that such a share hides, does not know
the key of rank i + 1 and sees noise.

Before a key is used, each party sends a hash of both keys that it knows to both others. They have to agree on all three, so
a key that somebody has replaced on its way is an error.

The stream is AES-256 in counter mode, from the `cryptography` package, under a key that HKDF derives from the agreed one
for each run: words never repeat within a run, since its counter only advances, nor between runs, since their keys differ.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import CipherDMError
from .streams import Stream, Streams

KEY_BYTES = 32
CONFIRMATION = b"cipherdm confirmation of keys, version 1: "
PURPOSE = b"cipherdm zero shares of linear layers, version 1: "
BY_ADDRESS = b"cipherdm words by address, version 1: "
LIMIT = 1 << 56  # bytes of one stream; AES's blocks can be told from random words only after some 2^68
CHUNK = 1 << 16  # bytes drawn at a time; few, so they stay in the processor's cache
AES_BLOCK = 16


def fresh_key() -> bytes:
    """Return a key of 32 bytes from the operating system's generator, to be sent to the previous party."""
    return secrets.token_bytes(KEY_BYTES)


def agree(exchange: Callable[[bytes], bytes], gather: Callable[[str], Sequence[str]], run: bytes) -> "AgreedKeys":
    """Send a fresh key to the previous party, receive the next one's, and confirm all three keys.

    Args:
        exchange: function that sends bytes to the previous party and returns those of the next, over a link that nobody else
            reaches.
        gather: function that sends a text to both other parties and returns those of all three, by rank.
        run: name that all parties use for this agreement, and for no other.

    Raises:
        CipherDMError: two parties do not have the same key.
    """
    own = fresh_key()
    keys = AgreedKeys(own, exchange(own))
    told = [hashes.split() for hashes in gather(keys.hashes(run))]
    for rank, hashes in enumerate(told):
        # A party's own key is also known to the one before it.
        if told[rank - 1][1:] != hashes[:1] or len(hashes) != 2:
            raise CipherDMError(
                f"party {rank} and the one before it have different keys for shares of zero, and nothing was computed with "
                "them: somebody has changed a message between parties; see who can reach their links"
            )
    return keys


class AgreedKeys:
    """Two keys of a party, which hand out each run's zero shares once.

    Raises CipherDMError if a key does not have 32 bytes, or both are equal.
    """

    def __init__(self, own: bytes, next_party: bytes):
        for name, key in (("own", own), ("next party's", next_party)):
            if len(key) != KEY_BYTES:
                raise CipherDMError(
                    f"the {name} key has {len(key)} bytes instead of {KEY_BYTES}; make keys with fresh_key()"
                )
        if own == next_party:
            raise CipherDMError("two parties have the same key, which would hide nothing; each must make its own")
        self._own, self._next = own, next_party
        self._runs: set[bytes] = set()

    def hashes(self, run: bytes) -> str:
        """Return hashes of the own and of the next party's key in hexadecimal, which tell nothing about them."""
        keys = (self._own, self._next)
        return " ".join(hashlib.sha256(CONFIRMATION + run + key).hexdigest() for key in keys)

    def zero_shares(self, run: bytes) -> "ZeroShares":
        """Return the zero shares of one run.

        Args:
            run: name that all parties use for this run, and for no other.

        Raises:
            CipherDMError: there was such a run already. The same shares drawn again would reveal differences of secrets.
        """
        self._begin(run)
        return ZeroShares(*(_derived(key, run) for key in (self._own, self._next)))

    def streams(self, run: bytes, plan: bytes) -> Streams:
        """Return the streams of one run for one plan, whose words have addresses; `run` as for `zero_shares`.

        Parties with different plans share no word: what they then compute is nonsense, and tells nothing.
        """
        self._begin(run + plan)
        return Streams(*(Stream(_derived(key, plan + run, BY_ADDRESS)) for key in (self._own, self._next)))

    def _begin(self, run: bytes) -> None:
        if run in self._runs:
            raise CipherDMError(f"zero shares of run {run!r} were handed out already; name each run anew")
        self._runs.add(run)


def _derived(key: bytes, run: bytes, purpose: bytes = PURPOSE) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose + run).derive(key)


class ZeroShares:
    """Sequence of zero shares at one party. All parties must draw the same shapes and types in the same order.

    Args:
        own: key shared with the previous party, for this sequence alone.
        next_party: key shared with the next party.
    """

    def __init__(self, own: bytes, next_party: bytes):
        self._streams = tuple(
            Cipher(algorithms.AES256(key), modes.CTR(bytes(AES_BLOCK))).encryptor() for key in (own, next_party)
        )
        self._position = 0
        self._plain = memoryview(bytes(CHUNK))
        self._scratch = np.empty(CHUNK + AES_BLOCK, np.uint8)

    @property
    def position(self) -> int:
        """Number of bytes used of either stream. It only grows."""
        return self._position

    def add_to(self, words: np.ndarray) -> np.ndarray:
        """Add the next zero share to a contiguous array of ring words, in place, and return the array.

        Raises CipherDMError if the array is of another kind, or the stream is used up.
        """
        if words.dtype not in (np.uint64, np.uint32) or not words.flags.c_contiguous:
            raise CipherDMError("zero shares are added to contiguous arrays of uint64 or uint32; convert the array")
        if self._position + words.nbytes > LIMIT:
            raise CipherDMError("the stream of zero shares is used up; begin a new run")
        flat = words.reshape(-1)
        step = CHUNK // words.itemsize
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            for stream, combine in zip(self._streams, (np.add, np.subtract), strict=True):
                stream.update_into(self._plain[: part.nbytes], self._scratch)
                combine(part, self._scratch[: part.nbytes].view(words.dtype), out=part)
        self._position += words.nbytes
        return words

    def draw(self, shape: tuple[int, ...], word: type[np.unsignedinteger] = np.uint64) -> np.ndarray:
        """Return the next zero share by itself."""
        return self.add_to(np.zeros(shape, word))
