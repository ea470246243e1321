"""Who sent what to whom: every message of a computation, in order, and what one party has seen of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .ring import Ring

CLIENT = "client"


def name_of(who: int | str) -> str:
    """'party 0' for 0; the client's name stays."""
    return who if isinstance(who, str) else f"party {who}"


@dataclass(frozen=True, eq=False)
class Message:
    """One array on its way.

    Attributes:
        round: messages of one round do not wait for each other.
        operation: what the user asked for.
        step: the part of it that sent the message.
        sender: "party 0", ..., or "client".
        receiver: likewise.
        words: what was sent.
        word_bits: bits of each word on the wire.
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
        """The bytes on the wire; words whose size is not whole bytes are packed bit by bit."""
        if self.word_bits == 8 * self.words.itemsize:
            return self.words.tobytes()
        return np.packbits(Ring(self.word_bits).to_bits(self.words).ravel(), bitorder="little").tobytes()

    @property
    def bytes(self) -> int:
        """Bytes on the wire, without what a network adds to them."""
        return -(-self.words.size * self.word_bits // 8)


@dataclass(frozen=True)
class View:
    """All that one party has received. What it holds at any time follows from this and the programme.

    Attributes:
        party: 0, 1 or 2.
        messages: in order of arrival. The first is a key of the randomness it shares with another party.
        own_key: the key that it drew itself; 32 bytes.
    """

    party: int
    messages: tuple[Message, ...]
    own_key: bytes

    @property
    def payload(self) -> np.ndarray:
        """uint8: every byte received."""
        return np.frombuffer(b"".join(message.payload for message in self.messages), np.uint8)

    def of(self, operation: str) -> tuple[Message, ...]:
        """The messages of one operation."""
        return tuple(message for message in self.messages if message.operation == operation)

    def table(self) -> pd.DataFrame:
        """A row for each message: round, operation, sender, the number of words, and the first of them in hexadecimal."""
        return pd.DataFrame(
            {
                "round": [message.round for message in self.messages],
                "operation": [message.operation for message in self.messages],
                "from": [message.sender for message in self.messages],
                "words": [message.words.size for message in self.messages],
                "first words": [_hexadecimal(message) for message in self.messages],
            }
        )


class Transcript:
    """The list of messages, which grows while parties compute."""

    def __init__(self):
        self.messages: list[Message] = []
        self.rounds = 0
        self._names: list[str] = []

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """What the messages within belong to. The outermost name is their operation, the innermost their step."""
        self._names.append(name)
        try:
            yield
        finally:
            self._names.pop()

    @contextmanager
    def round(self) -> Iterator[None]:
        """The messages within are sent at once."""
        self.rounds += 1
        yield

    def send(self, sender: int | str, receiver: int | str, words: np.ndarray, ring: Ring) -> np.ndarray:
        """Note a message of the present round, and hand over a copy of its words, which is what the receiver goes on with."""
        words = np.array(words, ring.dtype)
        outer, inner = (self._names[0], self._names[-1]) if self._names else ("", "")
        self.messages.append(
            Message(self.rounds, outer, inner, name_of(sender), name_of(receiver), words, word_bits=ring.bits)
        )
        return words

    @property
    def bytes(self) -> int:
        """Bytes sent, by everybody together."""
        return sum(message.bytes for message in self.messages)

    def table(self) -> pd.DataFrame:
        """A row for each message: round, operation, step, sender, receiver, words, bytes."""
        columns = ["round", "operation", "step", "sender", "receiver"]
        rows = [[getattr(message, name) for name in columns] for message in self.messages]
        frame = pd.DataFrame(rows, columns=columns)
        frame["words"] = [message.words.size for message in self.messages]
        frame["bytes"] = [message.bytes for message in self.messages]
        return frame

    def summary(self) -> pd.DataFrame:
        """A row for each operation: rounds, messages and bytes of everybody together."""
        groups = self.table().groupby("operation", sort=False)
        return pd.DataFrame(
            {"rounds": groups["round"].nunique(), "messages": groups.size(), "bytes": groups["bytes"].sum()}
        )

    def received_by(self, who: int | str) -> tuple[Message, ...]:
        """The messages to one party, or to the client."""
        return tuple(message for message in self.messages if message.receiver == name_of(who))


def _hexadecimal(message: Message, most: int = 2) -> str:
    digits = -(-message.word_bits // 4)
    first = " ".join(f"{int(word):0{digits}x}" for word in message.words.flat[:most])
    return first + (" ..." if message.words.size > most else "")
