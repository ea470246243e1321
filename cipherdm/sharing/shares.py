"""Additive and replicated shares: a secret is a sum of three random components, and each party holds two of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import CipherDMError
from .fixed_point import FixedPoint
from .ring import Ring

PARTIES = 3


def additive_shares(words: np.ndarray, ring: Ring, generator: np.random.Generator, count: int = PARTIES) -> np.ndarray:
    """Split words into `count` arrays that look random and add up to `words` in the ring.

    All but the last are drawn at random; the last is the rest. Any `count` - 1 of them are uniform, whatever the secret.

    Returns:
        [count, *shape] words.
    """
    words = ring.reduce(words)[None]
    drawn = ring.random(generator, (count - 1, *words.shape[1:]))
    return np.concatenate([drawn, ring.reduce(words - drawn.sum(0, ring.dtype, keepdims=True))])


def replicate(components: np.ndarray) -> np.ndarray:
    """Give each party its two of three components: party i gets components i and i + 1, and party 2 gets 2 and 0.

    Args:
        components: [3, *shape] words.

    Returns:
        [3, 2, *shape] words: party, first or second, and the secret's shape.
    """
    return np.stack([components, np.roll(components, -1, axis=0)], axis=1)


@dataclass(frozen=True, eq=False)
class Shared:
    """Secret array. One object here stands for data on three machines.

    Its operators need no message, since each party computes on what it holds: sums and differences of secrets, and sums and
    products with public numbers. `ThreeParties` has the operations that take messages.

    Attributes:
        held: [3, 2, *shape] words, as `replicate` returns them; row i is all that party i holds.
        ring: ring of the words.
        fraction_bits: number of fraction bits of the fixed-point numbers.
    """

    held: np.ndarray
    ring: Ring
    fraction_bits: int

    __array_ufunc__ = None  # `array + shared` is computed here instead of by NumPy

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the secret."""
        return self.held.shape[2:]

    @property
    def components(self) -> np.ndarray:
        """All three components, [3, *shape]. Only someone who sees two parties has them all."""
        return self.held[:, 0]

    @property
    def encoding(self) -> FixedPoint:
        """Encoding of the numbers as words."""
        return FixedPoint(self.ring, self.fraction_bits)

    def of(self, party: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what one party holds: component `party` and component `party` + 1."""
        return self.held[party, 0], self.held[party, 1]

    def _with(self, held: np.ndarray) -> "Shared":
        return replace(self, held=self.ring.reduce(held))

    def _check(self, other: "Shared") -> None:
        check_same_ring(self, other)
        if self.shape != other.shape:
            raise CipherDMError(f"shapes {self.shape} and {other.shape} differ; use broadcast_to first")
        if self.fraction_bits != other.fraction_bits:
            raise CipherDMError(
                f"numbers with {self.fraction_bits} and {other.fraction_bits} fraction bits cannot be added; "
                "truncate the one that has more"
            )

    def __add__(self, other) -> "Shared":
        if isinstance(other, Shared):
            self._check(other)
            return self._with(self.held + other.held)
        # A public number goes to component 0, which party 0 holds first and party 2 holds second.
        public = np.zeros_like(self.held)
        public[0, 0] = public[2, 1] = self.encoding.encode(other)
        return self._with(self.held + public)

    __radd__ = __add__

    def __neg__(self) -> "Shared":
        return self._with(self.ring.dtype(0) - self.held)

    def __sub__(self, other) -> "Shared":
        return -(-self + other)

    def __rsub__(self, other) -> "Shared":
        return -self + other

    def __mul__(self, other) -> "Shared":
        """Multiply by public numbers. Integers add no fraction bits; other numbers add as many as the secret has.

        Raises CipherDMError if the other factor is a secret, which takes messages.
        """
        if isinstance(other, Shared):
            raise CipherDMError("a product of two secrets takes messages; use ThreeParties.multiply")
        bits = 0 if np.asarray(other).dtype.kind in "iub" else self.fraction_bits
        words = np.broadcast_to(FixedPoint(self.ring, bits).encode(other), self.shape)
        return replace(self._with(self.held * words), fraction_bits=self.fraction_bits + bits)

    __rmul__ = __mul__

    def __getitem__(self, index) -> "Shared":
        index = index if isinstance(index, tuple) else (index,)
        return self._with(self.held[(slice(None), slice(None), *index)])

    def reshape(self, *shape: int) -> "Shared":
        """Reshape like an array, without a message."""
        return self._with(self.held.reshape(PARTIES, 2, *shape))

    def broadcast_to(self, shape: Sequence[int]) -> "Shared":
        """Broadcast like `np.broadcast_to`, without a message."""
        missing = (1,) * (len(shape) - len(self.shape))
        expanded = self.held.reshape(PARTIES, 2, *missing, *self.shape)
        return self._with(np.broadcast_to(expanded, (PARTIES, 2, *shape)))


def check_same_ring(x: Shared, y: Shared) -> None:
    """Raise CipherDMError if the words of x and y are in different rings."""
    if x.ring != y.ring:
        raise CipherDMError(
            f"words of {x.ring.bits} and {y.ring.bits} bits do not mix; convert bits with bit_to_number"
        )


def stack(parts: Sequence[Shared]) -> Shared:
    """Stack secrets of one shape, ring and encoding along a new first axis, which lets them share a round."""
    for part in parts:
        parts[0]._check(part)
    return parts[0]._with(np.stack([part.held for part in parts], axis=2))


def concatenate(parts: Sequence[Shared]) -> Shared:
    """Join secrets along their last axis; their other axes, rings and encodings must be equal."""
    return parts[0]._with(np.concatenate([part.held for part in parts], axis=-1))
