"""From numbers to bits and back. A bit is a word of the ring of one bit, where addition is XOR and the product is AND."""

import numpy as np

from ..errors import CipherDMError
from .parties import ThreeParties
from .ring import BIT, Ring
from .shares import Shared, concatenate, stack


@np.errstate(over="ignore")  # words wrap around, and are meant to
def addends(parties: ThreeParties, x: Shared) -> tuple[Shared, Shared]:
    """The bits of two numbers whose sum is x, each shared bit by bit. One message.

    x_0 + x_1 is known to party 0, who shares its bits; x_2 is known to parties 1 and 2, for whom its bits are
    shares already, with zeros for the other components.

    Returns:
        Two secrets [*shape, l] of bits, the lowest first, l the bits of the ring.
    """
    first, second = x.of(0)
    known_to_zero = x.ring.to_bits(x.ring.reduce(first + second))
    with parties.transcript.operation("share bits"):
        one = parties.share_from_party_zero(known_to_zero, BIT)
    bits = x.ring.to_bits(x.of(1)[1])
    nothing = np.zeros_like(bits)
    other = np.array([[nothing, nothing], [nothing, bits], [x.ring.to_bits(x.of(2)[0]), nothing]])
    return one, Shared(other, BIT, 0)


def bit_decomposition(parties: ThreeParties, x: Shared) -> Shared:
    """All bits of x, [*shape, l] in the ring of one bit, the lowest first. 2 + log2(l) rounds.

    The two addends are added as a processor does it that does not wait for carries: from each position g, "a carry is made
    here", and p, "a carry from below is passed on"; and then for twice as many positions in each round.
    Source: Kogge, Stone, "A Parallel Algorithm for the Efficient Solution of a General Class of Recurrence Equations", 1973.
    """
    with parties.transcript.operation("bit decomposition"):
        one, other = addends(parties, x)
        propagate = sums = one + other
        generate = parties.multiply(one, other)
        distance = 1
        while distance < x.ring.bits:
            below = stack([_moved_up(generate, distance), _moved_up(propagate, distance)])
            passed = parties.multiply(stack([propagate, propagate]), below)
            # g is set or a carry is passed to it, never both; so XOR does for OR.
            generate, propagate = generate + passed[0], passed[1]
            distance *= 2
    return sums + _moved_up(generate, 1)


def bit_to_number(parties: ThreeParties, bit: Shared, ring: Ring) -> Shared:
    """Bits as numbers 0 or 1 of another ring, without fraction bits. Two rounds, four messages.

    The bit is b_0 XOR b_1, which party 0 knows, XOR b_2, which parties 1 and 2 know; and u XOR v = u + v - 2 u v.

    Raises:
        CipherDMError: if `bit` is not in the ring of one bit.
    """
    if bit.ring != BIT:
        raise CipherDMError(f"words of {bit.ring.bits} bits are not bits; use bit_decomposition first")
    with parties.transcript.operation("bit to number"):
        first, second = bit.of(0)
        u = parties.share_from_party_zero(ring.reduce(first ^ second), ring)
        known, same = ring.reduce(bit.of(1)[1]), ring.reduce(bit.of(2)[0])
        nothing = np.zeros_like(known)
        v = Shared(np.array([[nothing, nothing], [nothing, known], [same, nothing]], ring.dtype), ring, 0)
        both = parties.multiply(u, v)
        return u + v - both - both


def _moved_up(bits: Shared, places: int) -> Shared:
    """Bit i to position i + places, zeros below; what leaves at the top is gone."""
    zeros = Shared(np.zeros((*bits.held.shape[:-1], places), np.uint8), BIT, 0)
    return concatenate([zeros, bits[..., :-places]])
