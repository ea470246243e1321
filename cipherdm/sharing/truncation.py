"""Drop the lowest bits of a secret number. Products need this, because they have the fraction bits of both factors.

Parties cannot just shift what they hold, because carries between components would be lost. There are two ways around this.
`truncate_local` ignores the carry out of the top, so with a small probability the result is very wrong. `truncate` computes
this carry.
"""

import numpy as np

from ..errors import CipherDMError
from .parties import ThreeParties
from .ring import Ring
from .shares import Shared


@np.errstate(over="ignore")  # words are meant to wrap around
def truncate_local(parties: ThreeParties, x: Shared, bits: int | None = None) -> Shared:
    """Return x with `bits` fraction bits fewer, by ABY3's first method. One message.

    In a ring of l bits, the result is off by 2^(l - bits) words with probability |word| / 2^l. Otherwise it is one of the two
    nearest words, the nearer one more often, so its mean is right.

    The three components are grouped into two summands, a = x_0 (parties 0 and 2) and b = x_1 + x_2 (party 1). Shifting each
    loses at most one carry from below. It also loses the carry at the top if a + b wraps around differently than x does.
    Source: Mohassel, Zhang, "SecureML", S&P 2017, theorem 1; Mohassel, Rindal, "ABY3", CCS 2018, section 5.1.

    Args:
        bits: number of bits to drop; by default the fraction bits of the parties' numbers.

    Raises:
        CipherDMError: `bits` exceeds the fraction bits.
    """
    bits, ring = _checked(parties, x, bits)
    shift = ring.dtype(bits)
    (first, _), (b1, b2) = x.of(0), x.of(1)
    a = first >> shift
    # b is read as a negative number, so a + b comes out near x / 2^bits instead of a whole turn of the ring above it.
    b = _negative(_negative(b1 + b2, ring) >> shift, ring)
    # Component 2 comes from the key of parties 1 and 2; party 1 sends party 0 the rest as component 1.
    mask = parties.random(ring, x.shape)
    with parties.transcript.operation("truncate locally"), parties.transcript.round():
        rest = parties.transcript.send(1, 0, ring.reduce(b - mask.held[1, 1]), ring)
    held = [[a, rest], [rest, mask.held[1, 1]], [mask.held[2, 0], x.of(2)[1] >> shift]]
    return Shared(np.array(held, ring.dtype), ring, x.fraction_bits - bits)


@np.errstate(over="ignore")
def truncate(parties: ThreeParties, x: Shared, bits: int | None = None) -> Shared:
    """Return x with `bits` fraction bits fewer. Three rounds, five messages with six words in total.

    The result is one of the two nearest words, the nearer one more often. It is always right if the words of x are in
    [-2^(l-2), 2^(l-2)), half of the ring's numbers. Beyond this range the result is off by 2^(l - bits) words with probability
    (|word| - 2^(l-2)) / 2^(l-1), and no party notices. It is secret if no two parties share what they saw.

    Party 2 knows a random r; parties 0 and 1 see c = x + r. The offset 2^(l-2) makes x positive with a top bit of zero. So the
    top bits of c and r tell whether the sum of the lower bits carried into the top bit.
    Source: Dalskov, Escudero, Keller, "Secure Evaluation of Quantized Neural Networks", PoPETs 2020.

    Args:
        bits: number of bits to drop; by default the fraction bits of the parties' numbers.

    Raises:
        CipherDMError: `bits` exceeds the fraction bits, or l - 2, the number of zeros at the end of the offset.
    """
    bits, ring = _checked(parties, x, bits)
    if bits > ring.bits - 2:
        raise CipherDMError(
            f"at most {ring.bits - 2} bits can be dropped from {ring.bits}-bit words; use a larger ring"
        )
    transcript, top = parties.transcript, ring.bits - 1
    offset, carry = ring.dtype(1 << (top - 1)), ring.dtype(1 << (top - bits))
    r, own, fresh = (parties.random(ring, (n, *x.shape)).held for n in (1, 2, 1))
    with transcript.operation("truncate"):
        # Party 2 shares pieces of r = r_0 + r_2: party 0 draws its part from their common key, party 1 gets a message.
        known = _pieces(r[2, 1, 0] + r[2, 0, 0], bits, ring)
        with transcript.round():
            middle_1, top_1 = transcript.send(2, 1, ring.reduce(known - own[2, 1]), ring)
        middle_0, top_0 = own[0, 0]
        # Parties 0 and 1 exchange masked addends of x; r_0 is known to parties 0 and 2, and r_2 to parties 1 and 2.
        with transcript.round():
            from_1 = transcript.send(1, 0, ring.reduce(x.of(1)[1] + r[1, 1, 0]), ring)
            from_0 = transcript.send(0, 1, ring.reduce(x.of(0)[0] + x.of(0)[1] + offset + r[0, 0, 0]), ring)
        c_middle, c_top = _pieces(from_0 + from_1, bits, ring)
        # The carry is c_top XOR r_top, which is linear in r_top once c_top is known.
        sign = ring.dtype(1) - ring.dtype(2) * c_top
        y_0 = c_middle + carry * (c_top + sign * top_0) - middle_0 - (offset >> ring.dtype(bits))
        y_1 = carry * sign * top_1 - middle_1
        # Replicate y_0 + y_1: components 0 and 2 are drawn from keys that party 2 knows, component 1 is the rest.
        with transcript.round():
            rest_1 = transcript.send(1, 0, ring.reduce(y_1 - fresh[1, 1, 0]), ring)
            rest_0 = transcript.send(0, 1, ring.reduce(y_0 - fresh[0, 0, 0]), ring)
        rest = ring.reduce(rest_0 + rest_1)
    held = [[fresh[0, 0, 0], rest], [rest, fresh[1, 1, 0]], [fresh[2, 0, 0], fresh[2, 1, 0]]]
    return Shared(np.array(held, ring.dtype), ring, x.fraction_bits - bits)


def _pieces(words: np.ndarray, bits: int, ring: Ring) -> np.ndarray:
    """Return [2, *shape]: the bits between the `bits` lowest and the top bit, and the top bit."""
    words = ring.reduce(words)
    top = words >> ring.dtype(ring.bits - 1)
    below_top = words & ring.dtype(ring.modulus // 2 - 1)
    return np.stack([below_top >> ring.dtype(bits), top])


def _negative(words: np.ndarray, ring: Ring) -> np.ndarray:
    return ring.reduce(ring.dtype(0) - ring.reduce(words))


def _checked(parties: ThreeParties, x: Shared, bits: int | None) -> tuple[int, Ring]:
    bits = parties.encoding.fraction_bits if bits is None else bits
    if not 0 <= bits <= x.fraction_bits:
        raise CipherDMError(f"{bits} bits cannot be dropped from {x.fraction_bits} fraction bits; drop fewer")
    return bits, x.ring
