"""Rounds of messages between parties, numbers as their bytes, and re-sharing, the simplest protocol of such rounds."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .shares import PARTIES
from .streams import STRIP, Address, Purpose, Streams


@dataclass(frozen=True)
class Round:
    """Messages of one party in one round: bytes that it sends by rank, and how many it gets by rank."""

    sends: Mapping[int, np.ndarray]
    receives: Mapping[int, int]


Steps = Generator[Round, Mapping[int, np.ndarray], np.ndarray]
"""A protocol at one party: yields its rounds, is sent the bytes that came, by rank, and returns this party's pair [2, N]."""


def whole_bytes(bits: int) -> int:
    """Return the bytes that a field of so many bits takes."""
    return -(-bits // 8)


def reshare(streams: Streams, rank: int, z: np.ndarray, bits: int, address: Address) -> Steps:
    """Turn additive parts z_i [N] into pairs, in a ring of so many bits: one message to the previous party.

    A share of zero, drawn here, makes the message uniform to its receiver. Bits above the ring are ignored.
    """
    pair = np.empty((2, z.size), np.uint64)
    message = np.empty(z.size * whole_bytes(bits), np.uint8)
    for part in strips(z.size):
        pair[0, part] = hidden(streams, z[part], address, part)
        message[field(bits, part)] = packed(pair[0, part], bits)
    following = (rank + 1) % PARTIES
    got = yield Round({(rank - 1) % PARTIES: message}, {following: message.size})
    for part in strips(z.size):
        pair[1, part] = unpacked(got[following][field(bits, part)], bits)
    return pair


def strips(count: int) -> Iterator[slice]:
    """Yield slices of so many numbers, each of at most STRIP."""
    for start in range(0, count, STRIP):
        yield slice(start, min(start + STRIP, count))


def mask(bits: int) -> np.uint64:
    """Return the word whose lower bits are 1."""
    return np.uint64((1 << bits) - 1)


def packed(words: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers modulo 2^bits as bytes, each in whole bytes."""
    size = whole_bytes(bits)
    return (words & mask(bits)).view(np.uint8).reshape(-1, 8)[:, :size].reshape(-1)


def unpacked(content: np.ndarray, bits: int) -> np.ndarray:
    """Invert `packed`."""
    words = np.zeros((content.size // whole_bytes(bits), 8), np.uint8)
    words[:, : whole_bytes(bits)] = content.reshape(-1, whole_bytes(bits))
    return words.view(np.uint64).reshape(-1)


def hidden(streams: Streams, z: np.ndarray, address: Address, part: slice) -> np.ndarray:
    """Return z plus the share of zero of an address."""
    masked = z + streams.own.words(address, Purpose.ZERO, part.start, z.size)
    masked -= streams.following.words(address, Purpose.ZERO, part.start, z.size)
    return masked


def field(bits: int, part: slice) -> slice:
    """Return the place of a strip's numbers among packed ones."""
    return slice(part.start * whole_bytes(bits), part.stop * whole_bytes(bits))
