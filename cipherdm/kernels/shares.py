"""Pairs of components that each party holds of a secret, as they are computed with and as SPU stores them.

A secret x is x_0 + x_1 + x_2 in the ring, and rank i holds components i and i + 1: its pair, an array [2, ...] of words.
The product of two secrets is the sum of nine products of components. Rank i computes three of them,

    z_i = x_i y_i + x_i y_(i+1) + x_(i+1) y_i + a share of zero,

and z_0 + z_1 + z_2 = x y. To hold a pair of z again it needs z_(i+1), so each party sends its z_i to the previous one. The
share of zero makes the message uniform: without it, z_i would reveal something of components that the receiver lacks.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import CipherDMError

PARTIES = 3


def pair_from_bytes(content: bytes, shape: Sequence[int], bits: int = 64) -> np.ndarray:
    """Read a party's pair [2, *shape] from a share as SPU stores it: little-endian words [elements][2], own component first.

    Returns:
        A read-only view of `content`, whose words have so many bits.

    Raises:
        CipherDMError: the number of bytes does not fit the shape.
    """
    words = np.frombuffer(content, f"<u{bits // 8}")
    if words.size != 2 * int(np.prod(shape, dtype=np.int64)):
        raise CipherDMError(f"a share of {len(content)} bytes is not one of shape {tuple(shape)}")
    return words.reshape(-1, 2).T.reshape(2, *shape)


def bytes_from_pair(pair: np.ndarray, bits: int = 64) -> bytes:
    """Invert `pair_from_bytes`; bits above the ring are left out."""
    return pair.reshape(2, -1).T.astype(f"<u{bits // 8}", order="C").tobytes()


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
