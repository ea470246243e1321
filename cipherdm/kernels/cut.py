"""Product, truncation and re-sharing of shares in one protocol, as one party computes it.

Notation: a ring of k bits; parties P0, P1, P2, which are the ranks turned by `Cut.first`. Component i of a replicated value is
held by Pi and P(i-1).

**What the cut computes.** Given z = z_0 + z_1 + z_2 modulo 2^k, where Pi holds z_i, a product of its components or a sum of
such products: components of floor(z / 2^s), plus 1 with probability (z mod 2^s) / 2^s, modulo 2^k', where k' may be smaller
or larger than k. Right for |z| <= 2^(k-2) if k' > k - s, and for any z otherwise; the result has to fit k' bits.

1. P2 sends z_2 to P0, hidden by a share of zero. Now z - 1 = x_0 + x_1 with x_0 = z_0 + z_2 at P0 and x_1 = z_1 - 1 at P1. A
   replicated value starts here: x_0 is the sum of components 0 and 1, x_1 is component 2 less 1. The 1 returns in step 3;
   it makes the rounding unbiased, and exact for s = 0.
2. With u = [x_0 - 2^(k-2) mod 2^k >= 2^(k-1)] and v = [x_1 >= 2^(k-1)] the sum wraps m = u v + [x_0 >= 2^(k-2)] times
   (eprint 2025/200, algorithm 2). Its product is shared modulo 2^n, n = k' - (k - s) (for n <= 0 all this is left out): P2
   draws bits a with P0 and b with P1, and c_0 uniform modulo 2^n with P0, and sends c_1 = a b - c_0 to P1. P0 sends
   e = u xor a, P1 sends f = v xor b. Then m = m_0 + m_1, where m_0 = f u + g c_0 + [x_0 >= 2^(k-2)], m_1 = e (1 - 2f) b + g c_1
   and g = (1 - 2e)(1 - 2f).
3. t_0 = (x_0 >> s) - 2^(k-s) m_0 + 1 and t_1 = (x_1 >> s) - 2^(k-s) m_1 are additive shares of the result. Components y_0 and
   y_2 are drawn, P0 with P2 and P1 with P2; P0 sends t_0 - y_0, P1 sends t_1 - y_2, and y_1 is their sum.

**What it reveals.** Against one semi-honest party, with masks that are used once, the cut realises this and no more: it splits
z - 1 into x_0 + x_1 uniformly (a replicated value keeps its split), gives x_0 to P0 and x_1 to P1 (and to P2 if z was
replicated), and shares floor((z - 1 - r) / 2^s) + 1 afresh, where r = x_1 mod 2^s. Each message is uniform given what its
receiver holds: z_2 has a share of zero that P0 does not know; e and f are hidden by a and b, of which their
receiver knows neither; c_1 by c_0, t_0 - y_0 by y_0, t_1 - y_2 by y_2. P2 receives nothing. This is *not* truncation with
independent error. A result that is opened, together with the view of P0 or P1 (or of P2, if z was replicated), shows z to an
interval of 2^s whose place that party knows. Repeated openings of fresh cuts of one z show the bits that were cut off, even to
a client without any party's view. Who draws masks for another plan than the others may learn more, so streams are of one plan.

**Bytes** of all parties for each number, in whole bytes a field: k (k' + s if n <= 0, none if z was replicated), n, twice a
bit, twice k'. **Rounds**: 3, one less if n <= 0, and one less if z was replicated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import CipherDMError
from .rounds import Round, Steps, field, hidden, mask, packed, strips, unpacked, whole_bytes
from .shares import PARTIES
from .streams import Address, Purpose, Stream, Streams


@dataclass(frozen=True)
class Message:
    """A message of a cut: its name in the text above, its sender and receiver among P0, P1, P2, its round, and its bytes."""

    name: str
    sender: int
    receiver: int
    round: int
    bytes: int


@dataclass(frozen=True)
class Cut:
    """Public parameters of a cut.

    Attributes:
        bits: bits k of the ring of its input, from 2 to 64.
        shift: bits s to cut off, fewer than k.
        result: bits k' of the ring of its result, at most 64.
        first: rank that takes the part of P0. Parts differ in work and bytes, so they are passed around from cut to cut.

    Raises:
        CipherDMError: there is no such cut.
    """

    bits: int
    shift: int
    result: int
    first: int = 0

    def __post_init__(self):
        if not (2 <= self.bits <= 64 and 0 <= self.shift < self.bits and 1 <= self.result <= 64):
            raise CipherDMError(f"{self} cannot be: a ring has 2 to 64 bits, and a cut leaves at least one of them")

    @property
    def wrap(self) -> int:
        """Bits n of the number of wraps that the result needs; 0 if it needs none."""
        return max(0, self.result - (self.bits - self.shift))

    @property
    def sent(self) -> int:
        """Bits of z_2 that P0 needs."""
        return self.bits if self.wrap else self.result + self.shift

    def messages(self, numbers: int, *, replicated: bool) -> tuple[Message, ...]:
        """Return the messages for so many numbers, of an additive or a replicated value."""
        size, flags = numbers * whole_bytes(self.result), whole_bytes(numbers)
        # P0 needs z_2 first, and f before t_0; P1 needs e before t_1.
        first, second = (0, 1) if replicated else (1, 2)
        share = () if replicated else (Message("z", 2, 0, 0, numbers * whole_bytes(self.sent)),)
        if not self.wrap:
            return (*share, Message("t0", 0, 1, first, size), Message("t1", 1, 0, 0, size))
        return (
            *share,
            Message("c", 2, 1, 0, numbers * whole_bytes(self.wrap)),
            Message("f", 1, 0, 0, flags),
            Message("e", 0, 1, first, flags),
            Message("t0", 0, 1, 1, size),
            Message("t1", 1, 0, second, size),
        )


def cut(streams: Streams, rank: int, x: np.ndarray, of: Cut, address: Address) -> Steps:
    """Cut numbers, see the text above, as the party of this rank.

    Args:
        streams: words that this party shares with each of the others.
        x: this party's part z_i [1, N] of an additive value, without a share of zero, or its pair [2, N] of a replicated one.
            Bits above the ring are ignored.
        of: public parameters.
        address: address of this operation, and of no other.
    """
    party = (_P0, _P1, _P2)[(rank - of.first) % PARTIES](streams, x, of, address)
    for sends, receives in _rounds(of, x.shape[1], x.shape[0] == 2, rank):
        got = yield Round(
            {to: np.concatenate([party.make(message) for message in messages]) for to, messages in sends},
            {by: sum(message.bytes for message in messages) for by, messages in receives},
        )
        for by, messages in receives:
            stop = 0
            for message in messages:
                start, stop = stop, stop + message.bytes
                party.bytes[message.name] = got[by][start:stop]
    pair = np.empty((2, x.shape[1]), np.uint64)
    for part in strips(x.shape[1]):
        pair[:, part] = party.pair(part)
    return pair


_ByRank = tuple[tuple[int, tuple[Message, ...]], ...]


@lru_cache(maxsize=1 << 12)
def _rounds(of: Cut, numbers: int, replicated: bool, rank: int) -> tuple[tuple[_ByRank, _ByRank], ...]:
    """Return for each round the messages that a party sends and those that it gets, by the other's rank."""
    messages = of.messages(numbers, replicated=replicated)
    me = (rank - of.first) % PARTIES
    others = [(other, (other + of.first) % PARTIES) for other in range(PARTIES) if other != me]

    def between(sides: Callable[[Message], tuple[int, int]], number: int) -> _ByRank:
        found = (
            (by, tuple(m for m in messages if m.round == number and sides(m) == (me, other))) for other, by in others
        )
        return tuple((by, some) for by, some in found if some)

    return tuple(
        (between(lambda m: (m.sender, m.receiver), number), between(lambda m: (m.receiver, m.sender), number))
        for number in range(1 + max(message.round for message in messages))
    )


class _Part:
    """Common part of P0, P1 and P2. Methods compute one strip; those with a message's name return its bytes."""

    def __init__(self, streams: Streams, x: np.ndarray, of: Cut, address: Address):
        self._streams, self._x, self._of, self._address = streams, x, of, address
        self._additive = x.shape[0] == 1
        self.bytes: dict[str, np.ndarray] = {}  # by name: messages that came, and those that were sent

    def make(self, message: Message) -> np.ndarray:
        """Return the bytes of a message."""
        made = np.empty(message.bytes, np.uint8)
        stop = 0
        for part in strips(self._x.shape[1]):
            content = getattr(self, message.name)(part)
            start, stop = stop, stop + content.size
            made[start:stop] = content
        self.bytes[message.name] = made
        return made

    def _hidden(self, part: slice) -> np.ndarray:
        return hidden(self._streams, self._x[0, part], self._address, part)

    def _words(self, name: str, bits: int, part: slice) -> np.ndarray:
        return unpacked(self.bytes[name][field(bits, part)], bits)

    def _flags(self, name: str, part: slice) -> np.ndarray:
        return _unpacked_flags(self.bytes[name][_flag_bytes(part)], part)

    def _drawn(self, stream: Stream, purpose: Purpose, bits: int, part: slice) -> np.ndarray:
        """Return words of at least so many bits; those above are to be ignored."""
        word = (np.uint8, np.uint16, np.uint32, np.uint64)[(whole_bytes(bits) - 1).bit_length()]
        words = stream.words(self._address, purpose, part.start, part.stop - part.start, word)
        return words.astype(np.uint64)

    def _drawn_flags(self, stream: Stream, purpose: Purpose, part: slice) -> np.ndarray:
        some = _flag_bytes(part)
        words = stream.words(self._address, purpose, some.start, some.stop - some.start, np.uint8)
        return _unpacked_flags(words, part)


class _P0(_Part):
    def __init__(self, streams: Streams, x: np.ndarray, of: Cut, address: Address):
        super().__init__(streams, x, of, address)
        self._own = np.empty(x.shape[1], np.uint64)
        for part in strips(x.shape[1]):
            self._own[part] = self._hidden(part) if self._additive else x[0, part] + x[1, part]

    def _word(self, part: slice) -> np.ndarray:
        word = self._own[part]
        if self._additive:
            word = word + self._words("z", self._of.sent, part)
        return word & mask(self._of.bits)

    def e(self, part: slice) -> np.ndarray:
        moved = (self._word(part) - _quarter(self._of.bits)) & mask(self._of.bits)
        return np.packbits(
            _top(moved, self._of.bits) ^ self._drawn_flags(self._streams.own, Purpose.A, part), bitorder="little"
        )

    def t0(self, part: slice) -> np.ndarray:
        word, own, of = self._word(part), self._streams.own, self._of
        t = word >> np.uint64(of.shift)
        if of.wrap:
            e, f = self._flags("e", part), self._flags("f", part)
            wraps = _signed(self._drawn(own, Purpose.C, of.wrap, part), e ^ f)
            wraps += f & (e ^ self._drawn_flags(own, Purpose.A, part))
            wraps += word >= _quarter(of.bits)
            t -= wraps << np.uint64(of.bits - of.shift)
        t += np.uint64(1)
        t -= self._drawn(own, Purpose.Y0, of.result, part)
        return packed(t, of.result)

    def pair(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        bits = self._of.result
        y1 = self._words("t0", bits, part) + self._words("t1", bits, part)
        return self._drawn(self._streams.own, Purpose.Y0, bits, part), y1


class _P1(_Part):
    def __init__(self, streams: Streams, x: np.ndarray, of: Cut, address: Address):
        super().__init__(streams, x, of, address)
        self._own = np.empty(x.shape[1], np.uint64)
        for part in strips(x.shape[1]):
            self._own[part] = (self._hidden(part) if self._additive else x[1, part]) - np.uint64(1)
        self._own &= mask(of.bits)

    def f(self, part: slice) -> np.ndarray:
        top = _top(self._own[part], self._of.bits)
        return np.packbits(top ^ self._drawn_flags(self._streams.following, Purpose.B, part), bitorder="little")

    def t1(self, part: slice) -> np.ndarray:
        of, following = self._of, self._streams.following
        t = self._own[part] >> np.uint64(of.shift)
        if of.wrap:
            e, f = self._flags("e", part), self._flags("f", part)
            wraps = _signed(self._words("c", of.wrap, part), e ^ f)
            wraps += _signed((e & self._drawn_flags(following, Purpose.B, part)).astype(np.uint64), f)
            t -= wraps << np.uint64(of.bits - of.shift)
        t -= self._drawn(following, Purpose.Y2, of.result, part)
        return packed(t, of.result)

    def pair(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        bits = self._of.result
        y1 = self._words("t0", bits, part) + self._words("t1", bits, part)
        return y1, self._drawn(self._streams.following, Purpose.Y2, bits, part)


class _P2(_Part):
    def z(self, part: slice) -> np.ndarray:
        return packed(self._hidden(part), self._of.sent)

    def c(self, part: slice) -> np.ndarray:
        a = self._drawn_flags(self._streams.following, Purpose.A, part)
        b = self._drawn_flags(self._streams.own, Purpose.B, part)
        c0 = self._drawn(self._streams.following, Purpose.C, self._of.wrap, part)
        return packed((a & b).astype(np.uint64) - c0, self._of.wrap)

    def pair(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        bits = self._of.result
        y2 = self._drawn(self._streams.own, Purpose.Y2, bits, part)
        return y2, self._drawn(self._streams.following, Purpose.Y0, bits, part)


def _quarter(bits: int) -> np.uint64:
    return np.uint64(1 << bits - 2)


def _top(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the uppermost bit of words below 2^bits."""
    return (words >> np.uint64(bits - 1)).astype(np.uint8)


def _signed(words: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return words, negated where a bit is 1."""
    minus = negative.astype(np.uint64)
    return (words ^ (np.uint64(0) - minus)) + minus


def _flag_bytes(part: slice) -> slice:
    return slice(part.start // 8, whole_bytes(part.stop))


def _unpacked_flags(content: np.ndarray, part: slice) -> np.ndarray:
    return np.unpackbits(content, count=part.stop - part.start, bitorder="little")
