"""Random numbers that parties share without messages: two parties know each key, and a cipher stretches it.

Keys are held like shares: party i knows keys i and i + 1. The cipher (ChaCha20, RFC 8439) turns key i into component i of a
random number that no party knows. Differences of neighbouring components are random numbers that add up to zero.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from .ring import Ring
from .shares import PARTIES

KEY_BYTES = 32


class KeyStream:
    """Endless pseudo-random words from a key. Two holders of the key who have drawn equally much draw equal words next."""

    def __init__(self, key: bytes):
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, ring: Ring, shape: tuple[int, ...]) -> np.ndarray:
        """Draw the next words, of `shape`. They are the cipher's stream itself, since it encrypts zeros."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(ring.dtype).itemsize
        return ring.reduce(np.frombuffer(self._cipher.update(bytes(size)), ring.dtype).reshape(shape))


class PairwiseRandomness:
    """Streams of all three parties, two per party."""

    def __init__(self, keys: list[bytes]):
        self._streams = [(KeyStream(keys[i]), KeyStream(keys[(i + 1) % PARTIES])) for i in range(PARTIES)]

    def draw(self, ring: Ring, shape: tuple[int, ...]) -> np.ndarray:
        """Draw a random number of which each party knows two components: [3, 2, *shape] words, like `Shared.held`."""
        return np.stack([np.stack([stream.words(ring, shape) for stream in streams]) for streams in self._streams])

    def zero(self, ring: Ring, shape: tuple[int, ...]) -> np.ndarray:
        """Draw a number for each party, [3, *shape]. Each is uniform to the other parties, and their sum is zero."""
        held = self.draw(ring, shape)
        return ring.reduce(held[:, 0] - held[:, 1])
