"""Requests of several clients as rows of one run: a party's shares of inputs side by side, and those of outputs apart again.

A share is so many bytes for each number, in the order of the numbers. Rows are therefore put together and taken apart by each
party alone, and nothing is sent for it.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from spu import libspu

from ..engine.party_pb2 import SharePiece
from . import host_pb2 as pb
from .manifest import meta_of

Pieces = list[SharePiece]

_CHUNK = 64 << 20  # bytes of a piece, well below gRPC's limit for a message


def joined(manifest: pb.Manifest, requests: Sequence[Pieces | None]) -> Iterator[SharePiece]:
    """Yield a party's shares of the inputs of one run, with a row for each request.

    Zeros stand for rows that nobody has, and for requests whose inputs this party lacks (None). Where all three parties have
    them they are shares of 0. Otherwise the row is nonsense, and it is the row of a client that is gone.
    """
    # Heads are made here: of what a client writes in one, nothing may reach the rows of others.
    together = manifest.together
    contents = [None if pieces is None else _contents(pieces) for pieces in requests]
    for item, parts in zip(together.inputs, together.parts, strict=True):
        known = [None if of is None else np.frombuffer(of[item.name], np.uint8).reshape(parts, -1) for of in contents]
        nothing = np.zeros_like(next(row for row in known if row is not None))
        rows = [nothing if row is None else row for row in known] + [nothing] * (together.requests - len(known))
        yield from _pieces(item.name, meta_of(item), np.concatenate(rows, axis=1).tobytes())


def apart(outputs: Pieces, requests: int) -> list[Pieces]:
    """Return a party's shares of each request's outputs; in those of a run all requests follow each other."""
    found: list[Pieces] = [[] for _ in range(requests)]
    meta = libspu.ValueMeta()
    for name, content in _contents(outputs).items():
        meta.ParseFromString(next(piece.meta for piece in outputs if piece.name == name))
        first, *rest = meta.shape.dims
        meta.shape.dims = [first // requests, *rest]
        size = len(content) // requests
        for row, pieces in enumerate(found):
            pieces += _pieces(name, meta, content[row * size : (row + 1) * size])
    return found


def _contents(pieces: Pieces) -> dict[str, bytes]:
    chunk, found = libspu.ValueChunk(), {}
    for name, of_name in groupby(pieces, lambda piece: piece.name):
        found[name] = b"".join(chunk.content for piece in of_name if chunk.ParseFromString(piece.chunk))
    return found


def _pieces(name: str, meta: libspu.ValueMeta, content: bytes) -> Iterator[SharePiece]:
    head, starts = meta.SerializeToString(), range(0, len(content), _CHUNK)
    for index, start in enumerate(starts):
        chunk = libspu.ValueChunk()
        chunk.content = content[start : start + _CHUNK]
        chunk.total_bytes, chunk.chunk_offset = len(content), start
        piece = SharePiece(name=name, meta=head, chunk_count=len(starts), chunk_index=index)
        piece.chunk = chunk.SerializeToString()
        yield piece
