"""Convert shared numbers to bits and back. A bit is a word of the ring of one bit: addition is XOR, the product is AND."""

import numpy as np

from ..errors import CipherDMError
from .parties import ThreeParties
from .ring import BIT, Ring
from .shares import Shared, concatenate, stack


@np.errstate(over="ignore")  # words are meant to wrap around
def addends(parties: ThreeParties, x: Shared) -> tuple[Shared, Shared]:
    """Share the bits of two numbers whose sum is x. One message.

    Party 0 knows x_0 + x_1 and shares its bits. Parties 1 and 2 know x_2; its bits, with zeros as the other components, are
    shares already.

    Returns:
        Two secrets [*shape, l] of bits, the lowest first, where l is the number of bits of the ring.
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
    """Return all bits of x, [*shape, l] in the ring of one bit, the lowest first. 2 + log2(l) rounds.

    The addends are added with look-ahead for carries, as in a fast processor. Each position has g, "a carry arises here", and
    p, "a carry from below is passed on". Each round doubles the number of positions that g and p cover.
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
            # Either g is set or a carry is passed to it, never both, so XOR serves as OR.
            generate, propagate = generate + passed[0], passed[1]
            distance *= 2
    return sums + _moved_up(generate, 1)


def bit_to_number(parties: ThreeParties, bit: Shared, ring: Ring) -> Shared:
    """Convert bits to the numbers 0 and 1 of another ring, without fraction bits. Two rounds, four messages.

    The bit is u XOR v. Party 0 knows u = b_0 XOR b_1; parties 1 and 2 know v = b_2. In numbers, u XOR v = u + v - 2 u v. Raises
    CipherDMError if `bit` is not in the ring of one bit.
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
    """Move bit i to position i + places, with zeros below; bits that leave at the top are dropped."""
    zeros = Shared(np.zeros((*bits.held.shape[:-1], places), np.uint8), BIT, 0)
    return concatenate([zeros, bits[..., :-places]])
