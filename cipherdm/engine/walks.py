"""Walks of a session at one party: programs that it computes on its own pairs, where SPU would compute them otherwise.

The arithmetic is in `cipherdm.kernels`. This module connects it to SPU: it reads and writes shares as SPU stores them, agrees
on keys, and passes messages on.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from spu import libspu

from ..errors import CipherDMError
from ..kernels.keys import AgreedKeys, agree
from ..kernels.ring_program import FULL, HALF, WalkPlan
from ..kernels.shares import bytes_from_pair, pair_from_bytes
from ..kernels.streams import Streams
from ..kernels.walk import Walk
from . import party_pb2 as pb
from .config import PARTIES
from .profile import KERNEL
from .variable_files import StoredShare
from .walk_links import WalkLinks

CHUNK_NUMBERS = 1 << 20  # numbers per chunk of a share that is handed to SPU: 16 MB, see `_chunks`
_STORAGES = {FULL: "aby3.AShr<FM64>", HALF: "aby3.AShr<FM32>"}
Reader = Callable[[str], libspu.Share | StoredShare]
"""Function that returns a party's share of a variable."""


@lru_cache(maxsize=8)
def read_plan(text: bytes, rank: int) -> Walk:
    """Return this party's walk of a plan. Later sessions of a process find it there.

    Raises:
        CipherDMError: the text is no plan.
    """
    return Walk(WalkPlan.from_json(text.decode(errors="replace")), rank)


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

    def run(
        self, walk: Walk, read: Reader, inputs: Sequence[str]
    ) -> tuple[list[tuple[libspu.Share, bool]], pb.CallDone]:
        """Walk a program on variables; return this party's shares of the results, whether each is in the small ring, and costs.

        Raises:
            CipherDMError: a variable is not shared as the program expects, or a party is gone or runs another program.
        """
        start, costs, rounds, links = time.perf_counter(), pb.Operator(name="walk", calls=1), 0, self._connected()
        run = self._link.id().encode()
        plan, program = walk.plan, walk.plan.program
        if self._keys is None:
            self._keys = agree(self._swap, self._link.all_gather, run)
        if plan.digest not in self._streams:
            self._streams[plan.digest] = self._keys.streams(run, plan.digest)
        values = [
            _public_words(read, name) if number in program.public else pair_of(read, name, plan.bits[number])
            for number, name in zip(program.inputs, inputs, strict=True)
        ]
        for number, name, value in zip(program.inputs, inputs, values, strict=True):
            # Messages are as long as the plan's shapes say, whatever the values are.
            if value.shape[number not in program.public :] != program.shapes[number]:
                raise CipherDMError(f"{name} has another shape than its program expects")
        call, self._calls = self._calls, self._calls + 1
        steps = walk.steps(values, self._streams[plan.digest], call)
        del values  # which the walk frees when nobody reads them any more
        came = None
        with links.lock:
            while True:
                try:
                    messages = steps.send(came)
                except StopIteration as end:
                    costs.seconds = time.perf_counter() - start
                    rings = [plan.bits[number] for number in program.outputs]
                    shares = [spu_share(pair, ring) for pair, ring in zip(end.value, rings, strict=True)]
                    return list(zip(shares, (ring == HALF for ring in rings), strict=True)), _done(costs, rounds)
                came = links.exchange(messages, (call, rounds, plan.digest[:8]))
                rounds += 1
                # Without the head of each message, as SPU counts its own.
                costs.sends += len(messages.sends)
                costs.sent_bytes += sum(content.size for content in messages.sends.values())
                costs.receives += len(messages.receives)
                costs.received_bytes += sum(messages.receives.values())

    def _swap(self, message: bytes) -> bytes:
        """Send a message to the previous party and return the next one's."""
        rank = self._link.rank
        self._link.send_async((rank - 1) % PARTIES, message)
        return self._link.recv((rank + 1) % PARTIES)


def _done(costs: pb.Operator, rounds: int) -> pb.CallDone:
    """Return the costs of a walk: one operator, and one kernel that is called once a round."""
    kernel, done = pb.Operator(), pb.CallDone()
    kernel.CopyFrom(costs)
    kernel.name, kernel.calls = f"{KERNEL}walk", rounds
    for name in ("seconds", "sent_bytes", "received_bytes", "sends", "receives"):
        setattr(done, name, getattr(costs, name))
    done.operators.extend([costs, kernel])
    return done


def pair_of(read: Reader, name: str, least: int = 1) -> np.ndarray:
    """Return this party's pair [2, ...] of a variable, uint64, in a ring of at least so many bits.

    Raises CipherDMError if the variable is not shared so, or its share has not the length of its shape.
    """
    share, meta = read(name), libspu.ValueMeta()
    meta.ParseFromString(share.meta)
    bits = next((ring for ring, storage in _STORAGES.items() if storage == meta.storage_type and ring >= least), None)
    if bits is None:
        wanted = " or ".join(storage for ring, storage in _STORAGES.items() if ring >= least)
        raise CipherDMError(f"{name} is stored as {meta.storage_type}; this walk computes on {wanted}")
    shape, parsed = tuple(meta.shape.dims), libspu.ValueChunk()
    pair = np.empty((2, math.prod(shape)), np.uint64)
    stop = 0
    for chunk in share.share_chunks:
        parsed.ParseFromString(chunk)
        content = parsed.content
        start, stop = stop, stop + len(content) // (bits // 4)  # a word for each of two components
        if stop <= pair.shape[1]:
            pair[:, start:stop] = pair_from_bytes(content, (stop - start,), bits)
    if stop != pair.shape[1]:
        raise CipherDMError(f"the share of {name} has {stop} numbers, and its shape {shape} has {pair.shape[1]}")
    return pair.reshape(2, *shape)


def spu_share(pair: np.ndarray, bits: int = 64) -> libspu.Share:
    """Return a pair of words of 64 or 32 bits as a share that SPU accepts, of numbers that programs take for float32."""
    meta = libspu.ValueMeta()
    meta.data_type, meta.visibility = libspu.DataType.DT_F32, libspu.Visibility.VIS_SECRET
    meta.shape, meta.storage_type = list(pair.shape[1:]), _STORAGES[bits]
    share = libspu.Share()
    share.meta, share.share_chunks = meta.SerializeToString(), list(_chunks(pair.reshape(2, -1), bits))
    return share


def _chunks(pair: np.ndarray, bits: int) -> Iterator[bytes]:
    """Yield a share [2, N] in chunks. Each is copied several times, and small chunks reuse memory that was just freed."""
    count, size = pair.shape[1], bits // 4
    for start in range(0, max(1, count), CHUNK_NUMBERS):
        chunk = libspu.ValueChunk()
        chunk.content = bytes_from_pair(pair[:, start : start + CHUNK_NUMBERS], bits)
        chunk.total_bytes, chunk.chunk_offset = size * count, size * start
        yield chunk.SerializeToString()


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
