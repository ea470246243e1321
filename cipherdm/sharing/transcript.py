"""Record of every message of a computation, in order, and of what one party has seen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .ring import Ring

CLIENT = "client"


def name_of(who: int | str) -> str:
    """Return "party 0" for 0; the client's name stays."""
    return who if isinstance(who, str) else f"party {who}"


@dataclass(frozen=True, eq=False)
class Message:
    """Array sent from one party, or the client, to another.

    Attributes:
        round: number of the round; messages of one round do not wait for each other.
        operation: operation that the user asked for.
        step: step of the operation that sent the message.
        sender, receiver: "party 0", ..., or "client".
        words: words that were sent.
        word_bits: bits per word on the wire.
    """

    round: int
    operation: str
    step: str
    sender: str
    receiver: str
    words: np.ndarray
    word_bits: int

    @property
    def payload(self) -> bytes:
        """Bytes on the wire. Words that do not fill whole bytes are packed bit by bit."""
        if self.word_bits == 8 * self.words.itemsize:
            return self.words.tobytes()
        return np.packbits(Ring(self.word_bits).to_bits(self.words).ravel(), bitorder="little").tobytes()

    @property
    def bytes(self) -> int:
        """Number of bytes on the wire, without the network's own headers."""
        return -(-self.words.size * self.word_bits // 8)


@dataclass(frozen=True)
class View:
    """All that one party has received. This and the program determine what the party holds at any time.

    Attributes:
        party: 0, 1 or 2.
        messages: messages in order of arrival. The first is a key for random numbers shared with another party.
        own_key: key that the party drew itself, 32 bytes.
    """

    party: int
    messages: tuple[Message, ...]
    own_key: bytes

    @property
    def payload(self) -> np.ndarray:
        """Every byte received, as uint8."""
        return np.frombuffer(b"".join(message.payload for message in self.messages), np.uint8)

    def of(self, operation: str) -> tuple[Message, ...]:
        """Return the messages of one operation."""
        return tuple(message for message in self.messages if message.operation == operation)

    def table(self) -> pd.DataFrame:
        """Return a row per message: round, operation, sender, number of words, and the first words in hexadecimal."""
        table = _table(self.messages, "round", "operation", "sender").rename(columns={"sender": "from"})
        return table.assign(**{"first words": [_hexadecimal(message) for message in self.messages]})


class Transcript:
    """List of messages, which grows while parties compute."""

    def __init__(self):
        self.messages: list[Message] = []
        self.rounds = 0
        self._names: list[str] = []

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Name the messages sent within. The outermost name is their operation, the innermost their step."""
        self._names.append(name)
        try:
            yield
        finally:
            self._names.pop()

    @contextmanager
    def round(self) -> Iterator[None]:
        """Count the messages sent within as one round: they are sent at the same time."""
        self.rounds += 1
        yield

    def send(self, sender: int | str, receiver: int | str, words: np.ndarray, ring: Ring) -> np.ndarray:
        """Record a message of the current round; return a copy of its words, with which the receiver goes on."""
        words = np.array(words, ring.dtype)
        outer, inner = (self._names[0], self._names[-1]) if self._names else ("", "")
        self.messages.append(
            Message(self.rounds, outer, inner, name_of(sender), name_of(receiver), words, word_bits=ring.bits)
        )
        return words

    @property
    def bytes(self) -> int:
        """Bytes sent by all together."""
        return sum(message.bytes for message in self.messages)

    def table(self) -> pd.DataFrame:
        """Return a row per message: round, operation, step, sender, receiver, words, bytes."""
        table = _table(self.messages, "round", "operation", "step", "sender", "receiver")
        return table.assign(bytes=[message.bytes for message in self.messages])

    def summary(self) -> pd.DataFrame:
        """Return a row per operation: rounds, and messages and bytes of all together."""
        groups = self.table().groupby("operation", sort=False)
        return pd.DataFrame(
            {"rounds": groups["round"].nunique(), "messages": groups.size(), "bytes": groups["bytes"].sum()}
        )

    def received_by(self, who: int | str) -> tuple[Message, ...]:
        """Return the messages to one party, or to the client."""
        return tuple(message for message in self.messages if message.receiver == name_of(who))


def _table(messages: Sequence[Message], *fields: str) -> pd.DataFrame:
    """Return a row per message: these fields of it, and the number of its words."""
    rows = [(*(getattr(message, name) for name in fields), message.words.size) for message in messages]
    return pd.DataFrame(rows, columns=[*fields, "words"])


def _hexadecimal(message: Message, most: int = 2) -> str:
    digits = -(-message.word_bits // 4)
    first = " ".join(f"{int(word):0{digits}x}" for word in message.words.flat[:most])
    return first + (" ..." if message.words.size > most else "")
