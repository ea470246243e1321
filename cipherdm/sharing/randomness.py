"""Randomness that parties share without talking: each key is known to two of them, and a cipher stretches it.

Keys are held as shares are: party i knows keys i and i + 1. What a cipher (ChaCha20, RFC 8439) makes of key i is component i of
a random number that no party knows, and the differences of neighbours are random numbers that add up to zero.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from .ring import Ring
from .shares import PARTIES

KEY_BYTES = 32


class KeyStream:
    """An endless row of pseudo-random words from a key. Whoever has the key, and has drawn as much so far, draws the same."""

    def __init__(self, key: bytes):
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, ring: Ring, shape: tuple[int, ...]) -> np.ndarray:
        """The next words, of `shape`. A stream cipher encrypting zeros gives the bare stream."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(ring.dtype).itemsize
        return ring.reduce(np.frombuffer(self._cipher.update(bytes(size)), ring.dtype).reshape(shape))


class PairwiseRandomness:
    """The streams of all three parties, each party with its own two."""

    def __init__(self, keys: list[bytes]):
        self._streams = [(KeyStream(keys[i]), KeyStream(keys[(i + 1) % PARTIES])) for i in range(PARTIES)]

    def draw(self, ring: Ring, shape: tuple[int, ...]) -> np.ndarray:
        """A random number of which each party knows two components: [3, 2, *shape] words, as `Shared.held`."""
        return np.stack([np.stack([stream.words(ring, shape) for stream in streams]) for streams in self._streams])

    def zero(self, ring: Ring, shape: tuple[int, ...]) -> np.ndarray:
        """A number for each party, [3, *shape], each uniform to the others and all together zero."""
        held = self.draw(ring, shape)
        return ring.reduce(held[:, 0] - held[:, 1])
