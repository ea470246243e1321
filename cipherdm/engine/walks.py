"""Walks of a session at one party: programs that it computes on its own pairs, where SPU would compute them otherwise.

The arithmetic is in `cipherdm.kernels`. This module connects it to SPU: it reads and writes shares as SPU stores them, agrees
on keys, and passes messages on.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from spu import libspu

from ..errors import CipherDMError
from ..kernels.cut import Round
from ..kernels.ring_program import WalkPlan
from ..kernels.streams import Streams
from ..kernels.walk import Walk
from ..kernels.zero import AgreedKeys, agree
from .config import PARTIES
from .kernels import _pair_of, _share_of
from .variable_files import StoredShare
from .walk_links import WalkLinks

Reader = Callable[[str], libspu.Share | StoredShare]
"""Function that returns a party's share of a variable."""


@dataclass
class WalkCosts:
    """What a walk took at one party."""

    seconds: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    sends: int = 0
    receives: int = 0
    rounds: int = 0

    def count(self, messages: Round) -> None:
        """Add the messages of a round, without the few bytes that say how long each is."""
        self.sends += len(messages.sends)
        self.sent_bytes += sum(content.size for content in messages.sends.values())
        self.receives += len(messages.receives)
        self.received_bytes += sum(messages.receives.values())
        self.rounds += 1


class Walks:
    """Walks of one session. All parties must run the same ones in the same order.

    Args:
        link: link of SPU that nothing else uses, over which the parties agree on keys.
        connected: function that returns the sockets of this party's walks.
    """

    def __init__(self, link: libspu.link.Context, connected: Callable[[], WalkLinks]):
        self._link, self._connected = link, connected
        self._keys: AgreedKeys | None = None
        self._streams: dict[bytes, Streams] = {}  # by the plan's digest
        self._calls = 0

    def run(self, plan: WalkPlan, read: Reader, inputs: Sequence[str]) -> tuple[list[libspu.Share], WalkCosts]:
        """Walk a program on variables; return this party's shares of the results, and the costs.

        Raises:
            CipherDMError: a variable is not shared as the program expects, or a party is gone or runs another program.
        """
        start, costs, links = time.perf_counter(), WalkCosts(), self._connected()
        run = self._link.id().encode()
        if self._keys is None:
            self._keys = agree(self._swap, self._link.all_gather, run)
        if plan.digest not in self._streams:
            self._streams[plan.digest] = self._keys.streams(run, plan.digest)
        program = plan.program
        values = [
            _public_words(read, name) if number in program.public else _pair_of(read, name, np.uint64)
            for number, name in zip(program.inputs, inputs, strict=True)
        ]
        call, self._calls = self._calls, self._calls + 1
        steps = Walk(plan, self._link.rank, self._streams[plan.digest], call).steps(values)
        came = None
        with links.lock:
            while True:
                try:
                    messages = steps.send(came)
                except StopIteration as end:
                    costs.seconds = time.perf_counter() - start
                    return [_share_of(pair, "float32") for pair in end.value], costs
                came = links.exchange(messages, (call, costs.rounds, plan.digest[:8]))
                costs.count(messages)

    def _swap(self, message: bytes) -> bytes:
        """Send a message to the previous party and return the next one's."""
        rank = self._link.rank
        self._link.send_async((rank - 1) % PARTIES, message)
        return self._link.recv((rank + 1) % PARTIES)


def _public_words(read: Reader, name: str) -> np.ndarray:
    """Return the words of a public variable."""
    share, meta = read(name), libspu.ValueMeta()
    meta.ParseFromString(share.meta)
    if meta.visibility != libspu.Visibility.VIS_PUBLIC:
        raise CipherDMError(f"{name} is secret, and its program takes it for public")
    content = bytearray()
    for chunk in share.share_chunks:
        parsed = libspu.ValueChunk()
        parsed.ParseFromString(chunk)
        content += parsed.content
    return np.frombuffer(content, np.uint64).reshape(tuple(meta.shape.dims))
