"""Keys that two parties have and the third does not, from which they draw words without a message.

Each party picks a key and sends it, once, to the previous party over the authenticated link. Rank i then knows its own key
and that of rank i + 1, and F(own) - F(next), F a stream of pseudorandom words, is a share of zero: over the three parties
every stream appears once with each sign. Rank i - 1, which gets the message that such a share hides, does not know the key of
rank i + 1 and sees noise.

Before a key is used, each party sends a hash of both keys that it knows to both others. They have to agree on all three, so
a key that somebody has replaced on its way is an error.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import CipherDMError
from .streams import Stream, Streams

KEY_BYTES = 32
CONFIRMATION = b"cipherdm confirmation of keys, version 1: "
BY_ADDRESS = b"cipherdm words by address, version 1: "


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
    """Two keys of a party, which hand out each run's streams once.

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

    def streams(self, run: bytes, plan: bytes) -> Streams:
        """Return the streams of one run for one plan.

        Parties with different plans share no word: what they then compute is nonsense, and tells nothing.

        Args:
            run: name that all parties use for this run, and for no other.
            plan: digest of the plan, of always the same length.

        Raises:
            CipherDMError: they were handed out already. The same words drawn again would reveal differences of secrets.
        """
        if run + plan in self._runs:
            raise CipherDMError(f"the streams of run {run!r} were handed out already; name each run anew")
        self._runs.add(run + plan)
        info = BY_ADDRESS + plan + run
        return Streams(
            *(Stream(HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(key)) for key in (self._own, self._next))
        )
