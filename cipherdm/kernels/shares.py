"""Pairs of components that each party holds of a secret, and the one message that a product of shares takes.

A secret x is x_0 + x_1 + x_2 in the ring, and rank i holds components i and i + 1: its pair, an array [2, ...] of words.
The product of two secrets is the sum of nine products of components. Rank i computes three of them,

    z_i = x_i y_i + x_i y_(i+1) + x_(i+1) y_i + a share of zero,

and z_0 + z_1 + z_2 = x y. To hold a pair of z again it needs z_(i+1), so each party sends its z_i to the previous one. The
share of zero makes the message uniform: without it, z_i would reveal something of components that the receiver lacks.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import CipherDMError

PARTIES = 3
Exchange = Callable[[bytes], bytes]
"""Function that sends a message to the previous party and returns the one that the next party sent."""


def pair_from_bytes(content: bytes, shape: Sequence[int], word: type[np.unsignedinteger] = np.uint64) -> np.ndarray:
    """Read a party's pair [2, *shape] from a share as SPU stores it: little-endian words [elements][2], own component first.

    Returns:
        A read-only view of `content`.

    Raises:
        CipherDMError: the number of bytes does not fit the shape.
    """
    words = np.frombuffer(content, np.dtype(word).newbyteorder("<"))
    if words.size != 2 * int(np.prod(shape, dtype=np.int64)):
        raise CipherDMError(
            f"a share of {len(content)} bytes is not one of shape {tuple(shape)} in words of {np.dtype(word)}"
        )
    return words.reshape(-1, 2).T.reshape(2, *shape)


def bytes_from_pair(pair: np.ndarray) -> bytes:
    """Invert `pair_from_bytes`."""
    words = np.ascontiguousarray(pair.reshape(2, -1).T)
    return words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()


def finish(z: np.ndarray, exchange: Exchange) -> np.ndarray:
    """Return the pair [2, ...] of a product, after sending z to the previous party in one message.

    Args:
        z: this party's z_i, with its share of zero.
        exchange: sends the message and returns the next party's.

    Raises:
        CipherDMError: the next party's message has another length.
    """
    little = z.dtype.newbyteorder("<")
    message = exchange(z.astype(little, copy=False).tobytes())
    if len(message) != z.nbytes:
        raise CipherDMError(
            f"the next party sent {len(message)} bytes of a product of {z.nbytes}; run the same program on all parties"
        )
    pair = np.empty((2, *z.shape), z.dtype)
    pair[0] = z
    pair[1] = np.frombuffer(message, little).reshape(z.shape)
    return pair


def replicate(components: np.ndarray) -> list[np.ndarray]:
    """Return the three parties' pairs of a secret from its components [3, ...]. For tests and explanations."""
    return [components[[rank, (rank + 1) % PARTIES]] for rank in range(PARTIES)]


def joined(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the secret's words from the three parties' pairs. For tests and explanations.

    Raises CipherDMError if two parties hold different words of the component that both have.
    """
    for rank in range(PARTIES):
        if not np.array_equal(pairs[rank][1], pairs[(rank + 1) % PARTIES][0]):
            raise CipherDMError(f"ranks {rank} and {(rank + 1) % PARTIES} differ in the component that both hold")
    return pairs[0][0] + pairs[1][0] + pairs[2][0]
