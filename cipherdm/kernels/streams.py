"""Pseudorandom words that two parties know and the third does not, each at an address of its own.

Rank i holds two keys, its own and that of rank i + 1 (see `zero`). A word of a key's stream is found by its address: run, call,
operation, purpose, element. Never by "the next one", since parties come to the same operation in different orders, and a mask
that is drawn twice shows a difference of secrets.

A stream is AES-256 of numbered blocks. The key is derived for each run; a block's number has the call, the operation and
the purpose in its upper half, and the place within the stream in its lower half. So words of two addresses come from two
different blocks, or from two places of one.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import CipherDMError

STRIP = 1 << 14  # numbers at a time, so that a protocol's intermediate results stay in the processor's cache
_BLOCK = 16  # bytes of a block of AES


class Purpose(IntEnum):
    """Use of a word in a protocol. Two uses of one word would tell something, so each has words of its own."""

    ZERO = 0  # hides an additive part that is sent
    A = 1  # hides P0's bit of a cut
    B = 2  # hides P1's bit of a cut
    C = 3  # first share of the product of these bits
    Y0 = 4  # result's component of P0 and P2
    Y2 = 5  # result's component of P1 and P2


@dataclass(frozen=True)
class Address:
    """Address of the words of one operation in one call; no two operations of a run have the same.

    Raises:
        CipherDMError: a number does not fit its place in a block's number.
    """

    call: int
    operation: int

    def __post_init__(self):
        if not (0 <= self.call < 1 << 24 and 0 <= self.operation < 1 << 32):
            raise CipherDMError(
                f"call {self.call}, operation {self.operation}: a run has 2^24 calls of 2^32 operations; begin another run"
            )

    def block(self, purpose: Purpose) -> int:
        """Return the upper half of the numbers of blocks, 64 bits."""
        return self.call << 40 | self.operation << 8 | purpose


class Stream:
    """Words of one key.

    Args:
        key: 32 bytes that two parties know, for one run.
    """

    def __init__(self, key: bytes):
        self._cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
        most = STRIP * 8 // _BLOCK
        self._numbers = np.empty((most, 2), np.uint64)
        self._places = np.arange(most, dtype=np.uint64)
        self._out = np.empty(most * _BLOCK + _BLOCK, np.uint8)

    def words(
        self, address: Address, purpose: Purpose, start: int, count: int, word: type[np.unsignedinteger] = np.uint64
    ) -> np.ndarray:
        """Return words `start` to `start + count - 1` of an address: an array that the next call overwrites.

        Args:
            start: index of the first word, where a block begins.
            count: number of words, at most STRIP.
            word: unsigned type; all words of an address and purpose must have the same.
        """
        size = np.dtype(word).itemsize
        if count > STRIP or start * size % _BLOCK:
            raise ValueError(f"{count} words from {start} are no strip that begins with a block")
        blocks = -(-count * size // _BLOCK)
        numbers = self._numbers[:blocks]
        numbers[:, 0] = address.block(purpose)
        np.add(self._places[:blocks], np.uint64(start * size // _BLOCK), out=numbers[:, 1])
        self._cipher.update_into(numbers.view(np.uint8).reshape(-1).data, self._out)
        return self._out[: count * size].view(word)


@dataclass(frozen=True)
class Streams:
    """Both streams of one party: `own`, which the previous party knows as well, and `following`, that of the next party."""

    own: Stream
    following: Stream
