"""Requests of several clients as rows of one run: a party's shares of inputs side by side, and those of outputs apart again.

A share is so many bytes for each number, in the order of the numbers. Rows are therefore put together and taken apart by each
party alone, and nothing is sent for it.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from spu import libspu

from ..engine.party_pb2 import SharePiece
from ..engine.wire import content_of, pieces
from . import host_pb2 as pb
from .manifest import meta_of

Pieces = list[SharePiece]

_CHUNK = 64 << 20  # bytes of a piece, well below gRPC's limit for a message


def joined(manifest: pb.Manifest, requests: Sequence[Pieces | None]) -> Iterator[SharePiece]:
    """Yield a party's shares of the inputs of one run, with a row for each request.

    Zeros stand for rows that nobody has, and for requests whose inputs this party lacks (None). Where all three parties have
    them they are shares of 0. Otherwise the row is nonsense, and it is the row of a client that is told so.
    """
    # Heads are made here: of what a client writes in one, nothing may reach the rows of others.
    together = manifest.together
    contents = {row: _contents(brought) for row, brought in enumerate(requests) if brought is not None}
    for item, parts in zip(together.inputs, together.parts, strict=True):
        rows = {row: np.frombuffer(of[item.name], np.uint8).reshape(parts, -1) for row, of in contents.items()}
        size = next(iter(rows.values())).shape[1]
        whole = np.zeros((parts, together.requests, size), np.uint8)
        for row, content in rows.items():
            whole[:, row] = content
        yield from _pieces(item.name, meta_of(item), whole.tobytes())


def apart(outputs: Pieces, requests: int) -> list[Pieces]:
    """Return a party's shares of each request's outputs; in those of a run all requests follow each other."""
    found: list[Pieces] = [[] for _ in range(requests)]
    meta = libspu.ValueMeta()
    heads = {piece.name: piece.meta for piece in outputs}
    for name, content in _contents(outputs).items():
        meta.ParseFromString(heads[name])
        first, *rest = meta.shape.dims
        meta.shape.dims = [first // requests, *rest]
        size = len(content) // requests
        for row, of in enumerate(found):
            of += _pieces(name, meta, content[row * size : (row + 1) * size])
    return found


def _contents(received: Pieces) -> dict[str, bytes]:
    by_name = groupby(received, lambda piece: piece.name)
    return {name: content_of(piece.chunk for piece in of_name) for name, of_name in by_name}


def _pieces(name: str, meta: libspu.ValueMeta, content: bytes) -> Iterator[SharePiece]:
    share, chunks = libspu.Share(), []
    for start in range(0, len(content), _CHUNK):
        chunk = libspu.ValueChunk()
        chunk.content = content[start : start + _CHUNK]
        chunk.total_bytes, chunk.chunk_offset = len(content), start
        chunks.append(chunk.SerializeToString())
    share.meta, share.share_chunks = meta.SerializeToString(), chunks
    return pieces("", name, share)
