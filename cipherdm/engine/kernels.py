"""Linear layers that a party computes on its shares by itself, between programs of SPU.

The arithmetic is in `cipherdm.kernels`. This module connects it to SPU: it reads and writes shares as SPU stores them, has its
own link to the other parties, agrees on keys for zero shares, and keeps the digits of weights from one call to the next.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from spu import libspu

from ..errors import CipherDMError
from ..kernels import layers
from ..kernels.products import choose_path
from ..kernels.shares import bytes_from_pair, finish, pair_from_bytes
from ..kernels.zero import ZeroShares, agree
from . import party_pb2 as pb
from .config import PARTIES
from .variable_files import StoredShare

KEPT_BYTES = 2 << 30  # most bytes of weights' digits that a session keeps; a weight takes 16
CHUNK_NUMBERS = 1 << 20  # numbers per chunk of a share that is handed to SPU: 16 MB, see `_chunks`
_NUMBER_BYTES = 16  # bytes of a number in a share: a word of 64 bits for each of two components
_STORAGE = "aby3.AShr<FM64>"
_TYPES = {"float32": libspu.DataType.DT_F32, "int32": libspu.DataType.DT_I32}
Reader = Callable[[str], libspu.Share | StoredShare]
"""Function that returns a party's share of a variable."""


class Kernels:
    """Kernels of one session at one party, on a link that nothing else uses.

    All parties must run the same kernels in the same order.
    """

    def __init__(self, link: libspu.link.Context):
        self._link = link
        self._zeros: ZeroShares | None = None
        self._weights: dict[tuple[str, int], layers.Weights] = {}  # by name and ring

    def run(
        self, kernel: pb.Kernel, read: Reader, inputs: Iterable[str], keep_weights: bool
    ) -> tuple[libspu.Share, float, int]:
        """Compute a kernel on two variables.

        The result has the sum of both operands' fraction bits.

        Args:
            kernel: kernel to compute.
            read: function that returns this party's share of a variable.
            inputs: names of the two operands.
            keep_weights: True to keep the digits of the first operand for later calls, until `forget` names it.

        Returns:
            This party's share of the result, the seconds that it took, and the bytes of its one message in each direction.

        Raises:
            CipherDMError: an operand is not shared arithmetically, shapes do not fit, or the next party's message does not.
        """
        start = time.perf_counter()
        if self._zeros is None:
            run = self._link.id().encode()
            self._zeros = agree(self._exchange, self._link.all_gather, run).zero_shares(run)
        first, second = inputs
        z = self._local(kernel, read, first, second, keep_weights)
        share = spu_share(finish(z, self._exchange), kernel.dtype)
        return share, time.perf_counter() - start, z.nbytes

    def forget(self, names: Iterable[str]) -> None:
        """Drop the kept digits of these variables, because they are written or deleted."""
        for name in names:
            for ring in (64, 32):
                self._weights.pop((name, ring), None)

    def _local(self, kernel: pb.Kernel, read: Reader, first: str, second: str, keep: bool) -> np.ndarray:
        path, bits = choose_path(), kernel.ring
        x = pair_of(read, second)
        if kernel.kind == "products":
            return self._hidden(layers.batched_product(path, pair_of(read, first), x, bits), bits)
        weights = self._weights.get((first, kernel.ring))
        if weights is None:
            weights = layers.prepare(path, pair_of(read, first), bits)
            size = weights.digits.nbytes + sum(kept.digits.nbytes for kept in self._weights.values())
            if keep and size <= KEPT_BYTES:
                self._weights[first, kernel.ring] = weights
        if kernel.kind == "matmul":
            return self._hidden(layers.matmul(weights, x), bits)
        above, below, left, right = kernel.padding
        padding = ((above, below), (left, right))
        return self._hidden(layers.conv2d(weights, x, stride=kernel.stride, padding=padding), bits)

    def _hidden(self, z: np.ndarray, bits: int) -> np.ndarray:
        return self._zeros.add_to(z.astype(np.uint32 if bits == 32 else np.uint64, copy=False))

    def _exchange(self, message: bytes) -> bytes:
        """Send a message to the previous party and return the next one's."""
        rank = self._link.rank
        self._link.send_async((rank - 1) % PARTIES, message)
        return self._link.recv((rank + 1) % PARTIES)


def pair_of(read: Reader, name: str) -> np.ndarray:
    """Return this party's pair [2, ...] of a variable."""
    share, meta = read(name), libspu.ValueMeta()
    meta.ParseFromString(share.meta)
    if meta.storage_type != _STORAGE:
        raise CipherDMError(f"{name} is stored as {meta.storage_type}; kernels compute on {_STORAGE}")
    shape, parsed = tuple(meta.shape.dims), libspu.ValueChunk()
    pair = np.empty((2, math.prod(shape)), np.uint64)
    stop = 0
    for chunk in share.share_chunks:
        parsed.ParseFromString(chunk)
        content = parsed.content
        start, stop = stop, stop + len(content) // _NUMBER_BYTES
        if stop <= pair.shape[1]:
            pair[:, start:stop] = pair_from_bytes(content, (stop - start,))
    if stop != pair.shape[1]:
        raise CipherDMError(f"the share of {name} has {stop} numbers, and its shape {shape} has {pair.shape[1]}")
    return pair.reshape(2, *shape)


def spu_share(pair: np.ndarray, dtype: str) -> libspu.Share:
    """Return a pair as a share that SPU accepts.

    Words of 32 bits become the upper halves of words of 64: a number modulo 2^32, times 2^32, is a number modulo 2^64.
    """
    meta = libspu.ValueMeta()
    meta.data_type, meta.visibility = _TYPES[dtype], libspu.Visibility.VIS_SECRET
    meta.shape, meta.storage_type = list(pair.shape[1:]), _STORAGE
    share = libspu.Share()
    share.meta, share.share_chunks = meta.SerializeToString(), list(_chunks(pair.reshape(2, -1)))
    return share


def _chunks(pair: np.ndarray) -> Iterator[bytes]:
    """Yield a share [2, N] in chunks. Each is copied several times, and small chunks reuse memory that was just freed."""
    count = pair.shape[1]
    for start in range(0, max(1, count), CHUNK_NUMBERS):
        part = pair[:, start : start + CHUNK_NUMBERS]
        if part.dtype == np.uint32:
            part = part.astype(np.uint64) << np.uint64(32)
        chunk = libspu.ValueChunk()
        chunk.content = bytes_from_pair(part)
        chunk.total_bytes, chunk.chunk_offset = _NUMBER_BYTES * count, _NUMBER_BYTES * start
        yield chunk.SerializeToString()
