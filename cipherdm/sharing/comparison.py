"""Comparing, and choosing by the outcome. A number is negative if its top bit is set; the rest is finding that bit."""

from .bits import addends, bit_to_number
from .parties import ThreeParties
from .ring import BIT
from .shares import Shared, concatenate, stack


def less_than_zero(parties: ThreeParties, x: Shared) -> Shared:
    """The bit that says whether x < 0, in the ring of one bit. 2 + log2(l) rounds, in a ring of l bits.

    The top bit of a sum is the XOR of the addends' top bits and the carry into the top. The carry comes from a tree: two
    neighbouring blocks of positions become one, half as many in each round, so that all rounds together
    send about as much as the first two (`bit_decomposition` sends whole words in each).
    """
    with parties.transcript.operation("less than zero"):
        one, other = addends(parties, x)
        propagate = one + other
        generate = parties.multiply(one[..., :-1], other[..., :-1])
        return propagate[..., -1] + _carry_out(parties, generate, propagate[..., :-1])


def _carry_out(parties: ThreeParties, generate: Shared, propagate: Shared) -> Shared:
    """Whether the highest position hands on a carry, from what single positions (last axis) make and pass on."""
    while (width := generate.shape[-1]) > 1:
        paired = width - width % 2
        low = stack([generate[..., 0:paired:2], propagate[..., 0:paired:2]])
        high = propagate[..., 1:paired:2]
        passed = parties.multiply(stack([high, high]), low)
        # The topmost block has no partner if their number is odd; it waits for the next round.
        generate = concatenate([generate[..., 1:paired:2] + passed[0], generate[..., paired:]])
        propagate = concatenate([passed[1], propagate[..., paired:]])
    return generate[..., 0]


def less_than(parties: ThreeParties, x: Shared, y: Shared) -> Shared:
    """The bit that says whether x < y. As `less_than_zero` of the difference, which must not leave the ring's range."""
    return less_than_zero(parties, x - y)


def select(parties: ThreeParties, bit: Shared, x: Shared, y: Shared) -> Shared:
    """x where the bit is set, y elsewhere: y + bit (x - y). Three rounds; no truncation, since a bit has no fraction."""
    with parties.transcript.operation("select"):
        number = bit_to_number(parties, bit, x.ring) if bit.ring == BIT else bit
        return y + parties.multiply(number, x - y)


def maximum(parties: ThreeParties, x: Shared, y: Shared) -> Shared:
    """The larger of two numbers. A comparison and a selection."""
    with parties.transcript.operation("maximum"):
        return select(parties, less_than(parties, x, y), y, x)


def relu(parties: ThreeParties, x: Shared) -> Shared:
    """x where it is positive, else zero. As `maximum`, with a public zero."""
    with parties.transcript.operation("relu"):
        return select(parties, less_than_zero(parties, x), x * 0, x)
