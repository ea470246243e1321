"""One cut at three parties in this process: all that they send, what each of them knows, and what messages tell.

The parties run `cipherdm.kernels.cut`, the library's own code. Here their messages are passed on, and kept. That protects
nothing, since all three are in one place, and their keys come from a seed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ..kernels.cut import Cut, Message, cut
from ..kernels.rounds import hidden, mask, strips, unpacked
from ..kernels.shares import PARTIES, joined
from ..kernels.streams import Address, Stream, Streams

NAMES = {"z": "z₂", "c": "c₁", "f": "f", "e": "e", "t0": "t₀", "t1": "t₁"}
"""Names of a cut's messages in figures, by those in `Cut.messages`. What hides them is left out."""

_INDEX = "₀₁₂"


@dataclass(frozen=True, eq=False)
class CutSeen:
    """A cut of numbers, and all that was sent.

    Attributes:
        of: public parameters of the cut.
        parts: party i's part z_i of each number, [3, N].
        streams: each party's words.
        address: address of these words.
        sent: contents of the messages, by name: a word of uint64 for each number.
        pairs: each party's components of the results, [2, N].
    """

    of: Cut
    parts: np.ndarray
    streams: tuple[Streams, ...]
    address: Address
    sent: Mapping[str, np.ndarray]
    pairs: tuple[np.ndarray, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages, in order of rounds."""
        return tuple(sorted(self.of.messages(self.parts.shape[1], replicated=False), key=lambda message: message.round))

    @property
    def numbers(self) -> np.ndarray:
        """Numbers that were cut, [N], with their sign."""
        return signed(self.parts.sum(axis=0), self.of.bits)

    @property
    def results(self) -> np.ndarray:
        """Results as somebody who gets all components finds them, [N], with their sign."""
        return signed(joined([pair & mask(self.of.result) for pair in self.pairs]), self.of.result)

    @property
    def known_to_party_1(self) -> np.ndarray:
        """Addend x_1 that party 1 makes of its part and its share of zero, [N]. That of party 0 is z - 1 - x_1."""
        parts = strips(self.parts.shape[1])
        masked = [hidden(self.streams[1], self.parts[1, part], self.address, part) for part in parts]
        return (np.concatenate(masked) - np.uint64(1)) & mask(self.of.bits)

    def table(self) -> pd.DataFrame:
        """Return a row per message: round, sender, receiver, what it is, its bytes, and the first number's word."""
        rows = [
            [message.round + 1, message.sender, message.receiver, NAMES[message.name], message.bytes]
            + [self.word(self.sent[message.name][0], message.name)]
            for message in self.messages
        ]
        return pd.DataFrame(rows, columns=["round", "sender", "receiver", "message", "bytes", "word"])

    def received(self, party: int) -> dict[str, np.ndarray]:
        """Return what a party received, by the message's name."""
        return {message.name: self.sent[message.name] for message in self.messages if message.receiver == party}

    def bits_of(self, name: str) -> int:
        """Return the bits of a message's words."""
        return {"z": self.of.sent, "c": self.of.wrap, "e": 1, "f": 1}.get(name, self.of.result)

    def word(self, word: np.ndarray, name: str) -> str:
        """Return a word as it is written for a reader, in hexadecimal digits."""
        return _hexadecimal(word, self.bits_of(name))


def _hexadecimal(word: int, bits: int) -> str:
    return f"{int(word) % (1 << bits):0{-(-bits // 4)}x}"


def signed(words: np.ndarray, bits: int) -> np.ndarray:
    """Return words of a ring as whole numbers: those of its upper half are negative."""
    low = (np.asarray(words, np.uint64) & mask(bits)).astype(np.uint64)
    return (low << np.uint64(64 - bits)).view(np.int64) >> np.int64(64 - bits)


def additive_parts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return each party's part z_i of products [3, N], from the components [3, N] of both factors."""
    after = [1, 2, 0]
    return first * (second + second[after]) + first[after] * second


def run_cut(parts: np.ndarray, of: Cut, operation: int, seed: int = 0) -> CutSeen:
    """Cut numbers at three parties, and return all that was sent.

    Args:
        parts: party i's part z_i of each number, [3, N].
        of: public parameters; its `first` is 0, so that the part of P0 is that of party 0.
        operation: number of this operation. Two cuts with one number have the same masks, which must never be.
        seed: seed of the parties' keys.
    """
    keys = [hashlib.sha256(f"{seed} {rank}".encode()).digest() for rank in range(PARTIES)]
    streams = [Streams(Stream(keys[rank]), Stream(keys[(rank + 1) % PARTIES])) for rank in range(PARTIES)]
    address, count = Address(call=0, operation=operation), parts.shape[1]
    parties = [cut(streams[rank], rank, parts[[rank]], of, address) for rank in range(PARTIES)]
    sent, pairs, came, number = {}, {}, dict.fromkeys(range(PARTIES)), 0
    while len(pairs) < PARTIES:
        rounds = {}
        for rank, party in enumerate(parties):
            try:
                rounds[rank] = party.send(came[rank])
            except StopIteration as end:
                pairs[rank] = end.value
        came = {to: {by: r.sends[to] for by, r in rounds.items() if to in r.sends} for to in range(PARTIES)}
        sent |= _by_name(of, came, number, count)
        number += 1
    return CutSeen(of, parts, tuple(streams), address, sent, tuple(pairs[rank] for rank in range(PARTIES)))


def _by_name(of: Cut, came: Mapping[int, Mapping[int, np.ndarray]], number: int, count: int) -> dict[str, np.ndarray]:
    """Return the messages of a round by name. Those from one party to another travel one after the other."""
    found, ends = {}, {}
    for message in of.messages(count, replicated=False):
        if message.round == number:
            way = message.receiver, message.sender
            start, ends[way] = ends.get(way, 0), ends.get(way, 0) + message.bytes
            content = came[message.receiver][message.sender][start : ends[way]]
            if message.name in ("e", "f"):
                found[message.name] = np.unpackbits(content, count=count, bitorder="little").astype(np.uint64)
            else:
                found[message.name] = unpacked(content, 8 * message.bytes // count)
    return found


def knowledge(seen: CutSeen) -> pd.DataFrame:
    """Table of all that each party knows of the first number when the cut is over: a row per party."""
    of, first = seen.of, int(seen.known_to_party_1[0])
    second = int(seen.numbers[0]) - 1 - first
    addends = (f"x₀ = {_hexadecimal(second, of.bits)}", f"x₁ = {_hexadecimal(first, of.bits)}", "")
    drawn = ("a, c₀, y₀", "b, y₂", "a, b, c₀, y₀, y₂")
    rows = {}
    for party, pair in enumerate(seen.pairs):
        came = [f"{NAMES[name]}: {seen.word(words[0], name)}" for name, words in seen.received(party).items()]
        held = [
            f"y{_INDEX[(party + n) % PARTIES]} = {_hexadecimal(word, of.result)}" for n, word in enumerate(pair[:, 0])
        ]
        rows[f"party {party}"] = {
            "brings": f"z{_INDEX[party]} = {_hexadecimal(seen.parts[party, 0], of.bits)}",
            "draws with a neighbour": drawn[party],
            "receives": ", ".join(came) or "nothing",
            "works out": addends[party],
            "ends with": ", ".join(held),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def cut_costs(cuts: Sequence[Cut], *, replicated: bool = False, numbers: int = 8) -> pd.DataFrame:
    """Table with a row per cut: bytes of all parties for each number by message, their sum, messages and rounds.

    Bits are packed eight to a byte, so bytes for each number are those of `numbers`, divided by it.
    """
    rows = {}
    for of in cuts:
        messages = of.messages(numbers, replicated=replicated)
        sizes = {NAMES[message.name]: message.bytes / numbers for message in messages}
        ways = {(message.round, message.sender, message.receiver) for message in messages}
        rows[f"{of.bits} bits to {of.result}, {of.shift} off"] = sizes | {
            "all": sum(sizes.values()),
            "messages": len(ways),
            "rounds": 1 + max(message.round for message in messages),
        }
    columns = [name for name in NAMES.values() if any(name in row for row in rows.values())]
    return pd.DataFrame.from_dict(rows, orient="index")[[*columns, "all", "messages", "rounds"]].fillna(0)


def told_apart(first: CutSeen, second: CutSeen, party: int, cells: int = 8) -> float:
    """Return the p-value of a chi-squared test that a party's messages of two cuts, taken together, have one distribution.

    Words count by the eighth of their ring that they are in; a small p-value says that the party can tell the cuts apart.
    """
    counts = []
    for seen in (first, second):
        place = np.zeros(seen.parts.shape[1], np.int64)
        for name, words in seen.received(party).items():
            kept = min(seen.bits_of(name), cells.bit_length() - 1)
            place = (place << kept) + (words >> np.uint64(seen.bits_of(name) - kept)).astype(np.int64)
        counts.append(place)
    most = 1 + max(int(place.max()) for place in counts)
    table = np.array([np.bincount(place, minlength=most) for place in counts])
    return float(stats.chi2_contingency(table[:, table.any(axis=0)]).pvalue)


def interval(seen: CutSeen, openings: int) -> np.ndarray:
    """Count the numbers that party 1 still takes for possible after each of some openings, [openings].

    Each number of the cut is one opening, and all of them are the same number.
    """
    of = seen.of
    step = 1 << of.shift
    r = (seen.known_to_party_1[:openings] & mask(of.shift)).astype(np.int64)
    # The result is floor((z - 1 - r) / 2^s) + 1, see `cipherdm.kernels.cut`.
    lowest, highest = (seen.results[:openings] - 1) * step + 1 + r, seen.results[:openings] * step + r
    return np.minimum.accumulate(highest) - np.maximum.accumulate(lowest) + 1
