"""Compare secrets and select by the result. A number is negative if its top bit is set, so comparing means finding that bit."""

from .bits import addends, bit_to_number
from .parties import ThreeParties
from .ring import BIT
from .shares import Shared, concatenate, stack


def less_than_zero(parties: ThreeParties, x: Shared) -> Shared:
    """Return the bit that is set if x < 0, in the ring of one bit. 2 + log2(l) rounds in a ring of l bits.

    The top bit of a sum is the XOR of the addends' top bits and the carry into the top. A tree finds this carry: in each
    round, pairs of neighbouring blocks of positions become one block. The number of blocks halves each time, so all rounds
    together send about as much as the first two. (`bit_decomposition` sends whole words in each round.)
    """
    with parties.transcript.operation("less than zero"):
        one, other = addends(parties, x)
        propagate = one + other
        generate = parties.multiply(one[..., :-1], other[..., :-1])
        return propagate[..., -1] + _carry_out(parties, generate, propagate[..., :-1])


def _carry_out(parties: ThreeParties, generate: Shared, propagate: Shared) -> Shared:
    """Return the carry out of the highest position, given which positions (last axis) generate and pass on carries."""
    while (width := generate.shape[-1]) > 1:
        paired = width - width % 2
        low = stack([generate[..., 0:paired:2], propagate[..., 0:paired:2]])
        high = propagate[..., 1:paired:2]
        passed = parties.multiply(stack([high, high]), low)
        # If the number of blocks is odd, the topmost has no partner and waits for the next round.
        generate = concatenate([generate[..., 1:paired:2] + passed[0], generate[..., paired:]])
        propagate = concatenate([passed[1], propagate[..., paired:]])
    return generate[..., 0]


def less_than(parties: ThreeParties, x: Shared, y: Shared) -> Shared:
    """Return the bit that is set if x < y: `less_than_zero` of x - y, which must not leave the ring's range."""
    return less_than_zero(parties, x - y)


def select(parties: ThreeParties, bit: Shared, x: Shared, y: Shared) -> Shared:
    """Return x where the bit is set, else y: y + bit (x - y). Three rounds; no truncation, since bits have no fraction."""
    with parties.transcript.operation("select"):
        number = bit_to_number(parties, bit, x.ring) if bit.ring == BIT else bit
        return y + parties.multiply(number, x - y)


def maximum(parties: ThreeParties, x: Shared, y: Shared) -> Shared:
    """Return the larger of two numbers, by a comparison and a selection."""
    with parties.transcript.operation("maximum"):
        return select(parties, less_than(parties, x, y), y, x)


def relu(parties: ThreeParties, x: Shared) -> Shared:
    """Return x where it is positive, else zero: `maximum` with a public zero."""
    with parties.transcript.operation("relu"):
        return select(parties, less_than_zero(parties, x), x * 0, x)
