"""Common parts of the client's connections: gRPC's options, values and shares as messages, and one call to all parties."""

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import grpc
import numpy as np
from spu import api, libspu

from ..errors import CipherDMError
from . import party_pb2 as pb
from .config import EngineConfig
from .variable_files import StoredShare

# SPU cuts shares into chunks of at most 128 MiB, each a message; whatever is longer is refused before it is read.
MESSAGE_BYTES = 160 << 20
# With so_reuseport two parties could listen on one port unnoticed.
GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment is for the web, and could not reach a party
)

_NEXT = ((0, 1), (1, 2), (2, 0))  # each party and the one whose first component is its second

_LOOK = 0.2  # seconds after which a wait for one party looks whether anything else has happened
_AGREEMENT = 5.0  # seconds for the other parties to see a mistake that one has seen
_AHEAD = 4  # messages that may wait for a party: enough to hide its pauses, and few enough to bound the memory


def pieces(
    session: str, name: str, share: libspu.Share | StoredShare, *, in_file: bool = False
) -> Iterator[pb.SharePiece]:
    """Cut one party's share of a variable into messages: one per chunk, and one for an empty array, which has no chunks."""
    chunks = share.share_chunks
    for index, chunk in enumerate(chunks or [b""]):
        yield pb.SharePiece(
            session=session,
            name=name,
            meta=share.meta,
            chunk_count=len(chunks),
            chunk_index=index,
            chunk=chunk,
            in_file=in_file,
        )


def shared(
    io: api.Io, name: str, array: np.ndarray, *, public: bool = False, session: str = "", in_file: bool = False
) -> Iterator[tuple[pb.SharePiece, ...]]:
    """Split an array into shares, and yield the messages to the three parties, by rank, piece by piece."""
    visibility = libspu.Visibility.VIS_PUBLIC if public else libspu.Visibility.VIS_SECRET
    shares = io.make_shares(array, visibility)
    yield from zip(*(pieces(session, name, share, in_file=in_file) for share in shares), strict=True)


def share_of(received: Sequence[pb.SharePiece]) -> libspu.Share:
    """Invert `pieces`. Raises CipherDMError if not all have come."""
    if len(received) < max(1, received[0].chunk_count if received else 0):
        raise CipherDMError("its share is missing or incomplete")
    share = libspu.Share()
    share.meta = received[0].meta
    share.share_chunks = [piece.chunk for piece in received][: received[0].chunk_count]
    return share


def words_in(chunks: Iterable[bytes]) -> np.ndarray:
    """Read the ring words in the chunks of a share: uint64 [elements, 2], as `Session.words_of` returns them."""
    return np.frombuffer(content_of(chunks), "<u8").reshape(-1, 2)


def reconstruct(io: api.Io, name: str, shares: Sequence[libspu.Share]) -> np.ndarray:
    """Put the three parties' shares of a variable together.

    Each party holds two of three components, so the six words of a number say everything twice.

    Raises:
        CipherDMError: what two parties say differs; the message names them.
    """
    different = [(rank, other) for rank, other in _NEXT if not _fit(shares[rank], shares[other])]
    if different:
        raise CipherDMError(f"{pairs_of(different)} sent shares of {name!r} that do not fit together; ask again.")
    meta = libspu.ValueMeta()
    meta.ParseFromString(shares[0].meta)
    if "FM32" in meta.storage_type:
        raise CipherDMError(f"{name!r} is held in the ring of 32 bits; take it to that of 64 before it is revealed.")
    return io.reconstruct(list(shares))


def pairs_of(pairs: Iterable[tuple[int, int]]) -> str:
    """Name pairs of parties in an error."""
    return ", and ".join(f"parties {min(pair)} and {max(pair)}" for pair in pairs)


def _fit(share: libspu.Share, following: libspu.Share) -> bool:
    """Return whether a party's second components are the first components of the next one, or public values are the same."""
    meta = libspu.ValueMeta()
    if share.meta != following.meta or not meta.ParseFromString(share.meta):
        return False
    elements = math.prod(meta.shape.dims)
    secret = meta.visibility == libspu.Visibility.VIS_SECRET
    try:
        first, second = (
            np.frombuffer(content_of(of.share_chunks), np.uint8).reshape(elements, 1 + secret, -1 if elements else 0)
            for of in (share, following)
        )
    except ValueError:  # another length than the shape says
        return False
    return first.shape == second.shape and np.array_equal(first[:, -1], second[:, 0])


def content_of(chunks: Iterable[bytes]) -> bytes:
    contents = []
    for data in chunks:
        chunk = libspu.ValueChunk()
        chunk.ParseFromString(data)
        contents.append(chunk.content)
    return b"".join(contents)


def checked_array(name: str, value: np.ndarray, config: EngineConfig) -> np.ndarray:
    """Return a value as a contiguous array to share. Raises CipherDMError if it is not finite or beyond `config.limit`."""
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.floating) and array.size:
        if not np.isfinite(array).all():
            raise CipherDMError(f"{name} has values that are not finite; fixed-point numbers cannot hold them.")
        largest = float(np.abs(array).max())
        if largest >= config.limit:
            raise CipherDMError(
                f"{name} has a value of magnitude {largest:.6g}, outside the fixed-point range: with "
                f"{config.fraction_bits} fraction bits it must stay below {config.limit:.6g}. Scale it down."
            )
    return np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray turns scalars into vectors


class PartyError(Exception):
    """Error with which one party answered a call; `alone` if it is a caller's mistake that the other two do not see."""

    def __init__(self, rank: int, error: grpc.RpcError, *, alone: bool = False):
        super().__init__(rank, error)
        self.rank, self.error, self.alone = rank, error, alone


def gather(calls: Sequence[grpc.Future], meanwhile: Callable[[], None] = lambda: None) -> list:
    """Return the results of one call to each party, by rank.

    Args:
        calls: calls that have begun.
        meanwhile: called a few times per second; an error that it raises ends the waiting.

    Raises:
        PartyError: a call failed. The other calls may be waiting for that party, so they are cancelled.
    """
    finished: queue.SimpleQueue = queue.SimpleQueue()
    for rank, call in enumerate(calls):
        call.add_done_callback(lambda _, rank=rank: finished.put(rank))
    waiting = len(calls)
    while waiting:
        meanwhile()
        with suppress(queue.Empty):
            rank = finished.get(timeout=_LOOK)
            waiting -= 1
            error = calls[rank].exception()
            if error is not None:
                for call in calls:
                    call.cancel()
                raise PartyError(rank, error)
    return [call.result() for call in calls]


def spread(messages: Iterable[Sequence], calls: Sequence[Callable[[Iterator], grpc.Future]]) -> list:
    """Send each party its part of every message, at the pace of the slowest, and return the parties' answers.

    A large model is therefore never shared as a whole in memory.

    Args:
        messages: parts of each message, by rank.
        calls: functions that begin a party's call with an iterator of messages, by rank.

    Raises:
        PartyError: the first party that fails, and why; the other calls are cancelled.
    """
    queues = [queue.Queue(_AHEAD) for _ in calls]
    futures = [call(iter(waiting.get, None)) for call, waiting in zip(calls, queues, strict=True)]
    try:
        for parts in chain(messages, [(None,) * len(calls)]):  # None ends a party's stream
            for part, waiting in zip(parts, queues, strict=True):
                # A party that is done without an error has all its messages; a slower one still needs its last.
                while not any(future.done() and future.exception() for future in futures):
                    with suppress(queue.Full):
                        waiting.put(part, timeout=_LOOK)
                        break
                else:
                    return gather(futures)
        return gather(futures)
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def follow(streams: Sequence[grpc.Future]) -> Iterator[tuple[int, Any]]:
    """Yield the messages that one call to each party streams back, as they come, each with the party's rank.

    All streams are cancelled at the end, also if this is not read to the end.

    Raises:
        PartyError: a stream failed.
    """
    events: queue.SimpleQueue = queue.SimpleQueue()

    def forward(rank: int) -> None:
        try:
            for message in streams[rank]:
                events.put((rank, message))
            events.put((rank, None))
        except grpc.RpcError as error:
            events.put((rank, error))

    for rank in range(len(streams)):
        threading.Thread(target=forward, args=(rank,), daemon=True).start()
    running, mistakes = len(streams), []
    try:
        while running:
            try:
                rank, event = events.get(timeout=_AGREEMENT if mistakes else None)
            except queue.Empty:
                rank, event = None, None
            if isinstance(event, grpc.RpcError) and event.code() == grpc.StatusCode.NOT_FOUND:
                # A mistake in the call harms no party if all of them see it, and so do nothing.
                mistakes.append(PartyError(rank, event))
                if len(mistakes) == len(streams):
                    raise mistakes[0]
                continue
            if mistakes:
                raise PartyError(mistakes[0].rank, mistakes[0].error, alone=True)
            if isinstance(event, grpc.RpcError):
                raise PartyError(rank, event)
            if event is None:
                running -= 1
            else:
                yield rank, event
    finally:
        for stream in streams:
            stream.cancel()
