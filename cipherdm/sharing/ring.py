"""Whole numbers modulo a power of two, as arrays of unsigned words.

A computer's unsigned 64-bit integers already form such a ring: bits that do not fit are dropped at the top. Smaller rings make
the wrap-around visible. The ring of one bit is Boolean logic: its addition is XOR and its product is AND.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import CipherDMError


@dataclass(frozen=True)
class Ring:
    """Z_{2^bits}: the whole numbers from 0 to 2^bits - 1, with addition and multiplication modulo 2^bits.

    Attributes:
        bits: number of bits of a word, from 1 to 64.

    Raises:
        CipherDMError: `bits` is out of this range.
    """

    bits: int = 64

    def __post_init__(self):
        if not 1 <= self.bits <= 64:
            raise CipherDMError(f"a ring of {self.bits} bits has no words here; choose 1 to 64 bits")

    @property
    def modulus(self) -> int:
        """Number of elements, 2^bits."""
        return 1 << self.bits

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """NumPy's smallest unsigned integer type that holds a word."""
        return next(
            kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if np.iinfo(kind).max >= self.modulus - 1
        )

    @property
    def lowest(self) -> int:
        """Smallest number that `signed` returns: -2^(bits - 1), or 0 in the ring of one bit."""
        return 0 if self.bits == 1 else -(self.modulus // 2)

    @property
    def highest(self) -> int:
        """Largest number that `signed` returns: 2^(bits - 1) - 1, or 1 in the ring of one bit."""
        return 1 if self.bits == 1 else self.modulus // 2 - 1

    def reduce(self, words: np.ndarray) -> np.ndarray:
        """Return NumPy integers modulo 2^bits as words of this ring; negative int64 numbers are fine."""
        return np.bitwise_and(np.asarray(words).astype(self.dtype), self.dtype(self.modulus - 1))

    def signed(self, words: np.ndarray) -> np.ndarray:
        """Return words as int64 numbers; the upper half of the ring counts as negative (two's complement).

        In the ring of one bit there is no sign: 0 and 1 stay 0 and 1.
        """
        words = np.asarray(words).astype(np.uint64)
        unused = np.uint64(64 - self.bits)
        if self.bits == 1:
            return words.astype(np.int64)
        return (words << unused).astype(np.int64) >> unused.astype(np.int64)  # a signed shift repeats the sign bit

    def random(self, generator: np.random.Generator, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Draw uniform words. NumPy's generators are repeatable and not unpredictable, so not fit for real secrets."""
        words = generator.integers(0, self.modulus - 1, shape, dtype=np.uint64, endpoint=True)
        return np.asarray(words).astype(self.dtype)

    def to_bits(self, words: np.ndarray) -> np.ndarray:
        """Return the bits of each word as words of the ring of one bit: uint8 [..., bits], the lowest first."""
        positions = np.arange(self.bits, dtype=self.dtype)
        return ((np.asarray(words)[..., None] >> positions) & self.dtype(1)).astype(np.uint8)

    def from_bits(self, bits: np.ndarray) -> np.ndarray:
        """Invert `to_bits`."""
        positions = np.arange(self.bits, dtype=self.dtype)
        return np.bitwise_or.reduce(np.asarray(bits).astype(self.dtype) << positions, axis=-1)


BIT = Ring(1)
WORD = Ring(64)
