"""Walks of a session at one party: programs that it computes on its own pairs, where SPU would compute them otherwise.

The arithmetic is in `cipherdm.kernels`. This module connects it to SPU: it reads and writes shares as SPU stores them, agrees
on keys, and passes messages on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from spu import libspu

from ..errors import CipherDMError
from ..kernels.cut import Round
from ..kernels.ring_program import WalkPlan
from ..kernels.walk import Walk
from ..kernels.zero import agree
from .config import PARTIES
from .kernels import _pair_of, _share_of
from .variable_files import StoredShare

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


class Walks:
    """Walks of one session, on a link that nothing else uses. All parties must run the same ones in the same order."""

    def __init__(self, link: libspu.link.Context):
        self._link, self._streams, self._calls = link, None, 0

    def run(self, plan: WalkPlan, read: Reader, inputs: Sequence[str]) -> tuple[list[libspu.Share], WalkCosts]:
        """Walk a program on variables; return this party's shares of the results, and the costs.

        Raises:
            CipherDMError: a variable is not shared as the program expects, or a message has another length.
        """
        start, costs = time.perf_counter(), WalkCosts()
        if self._streams is None:
            run = self._link.id().encode()
            self._streams = agree(self._swap, self._link.all_gather, run).streams(run)
        program = plan.program
        values = [
            _public_words(read, name) if number in program.public else _pair_of(read, name, np.uint64)
            for number, name in zip(program.inputs, inputs, strict=True)
        ]
        steps = Walk(plan, self._link.rank, self._streams, self._calls).steps(values)
        self._calls += 1
        came = None
        while True:
            try:
                messages = steps.send(came)
            except StopIteration as end:
                costs.seconds = time.perf_counter() - start
                return [_share_of(pair, "float32") for pair in end.value], costs
            came = self._passed_on(messages, costs)

    def _passed_on(self, messages: Round, costs: WalkCosts) -> Mapping[int, np.ndarray]:
        for rank, content in messages.sends.items():
            self._link.send_async(rank, content.tobytes())
            costs.sent_bytes += content.size
            costs.sends += 1
        came = {}
        for rank, size in messages.receives.items():
            content = self._link.recv(rank)
            if len(content) != size:
                raise CipherDMError(
                    f"party {rank} sent {len(content)} bytes in a round of {size}; it runs another program"
                )
            came[rank] = np.frombuffer(content, np.uint8)
            costs.received_bytes += size
            costs.receives += 1
        costs.rounds += 1
        return came

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
