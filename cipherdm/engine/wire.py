"""The control plane's common parts: gRPC's options, a share cut into messages, and one call to all parties."""

import queue
from collections.abc import Iterator, Sequence

import grpc
from spu import libspu

from . import party_pb2 as pb

# Shares are larger than gRPC's 4 MB default. Without so_reuseport two parties could listen on one port unnoticed.
GRPC_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0))


def pieces(session: str, name: str, share: libspu.Share) -> Iterator[pb.SharePiece]:
    """Cut one party's share of a variable into messages, one a chunk, and at least one: an empty array has no chunks."""
    for index, chunk in enumerate(share.share_chunks or [b""]):
        yield pb.SharePiece(
            session=session,
            name=name,
            meta=share.meta,
            chunk_count=len(share.share_chunks),
            chunk_index=index,
            chunk=chunk,
        )


class PartyError(Exception):
    """One party's answer to a call was an error."""

    def __init__(self, rank: int, error: grpc.RpcError):
        super().__init__(rank, error)
        self.rank, self.error = rank, error


def gather(calls: Sequence[grpc.Future]) -> list:
    """The results of one call to each party, by rank.

    Raises:
        PartyError: for the first call that fails. The others may then be waiting for that party, so they are cancelled.
    """
    finished: queue.SimpleQueue = queue.SimpleQueue()
    for rank, call in enumerate(calls):
        call.add_done_callback(lambda _, rank=rank: finished.put(rank))
    for _ in calls:
        rank = finished.get()
        error = calls[rank].exception()
        if error is not None:
            for call in calls:
                call.cancel()
            raise PartyError(rank, error)
    return [call.result() for call in calls]
