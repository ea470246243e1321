"""Sockets of a party's walks: to each of the other two one connection that it sends over, and one that it receives from.

A walk has hundreds of small messages, one after the other, and sockets need less for each than SPU's links. They stand beside
SPU's in the same folder, where only the party's user gets in.
"""

import hashlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import CipherDMError
from ..kernels.rounds import Round

# Before each message: its length, the number of the call, that of the round, and the plan.
_HEAD = struct.Struct("<QIQ8s")

PATIENCE = 2.0  # seconds to wait for a caller's first words, while others wait
_HELLO = hashlib.sha256().digest_size


class WalkLinks:
    """Connections to the other two parties.

    Args:
        rank: this party's rank.
        links: sockets of SPU's links as this party sees them, by rank; those of walks have the suffix ".walk" instead.
        link_id: what the three parties have alike and nobody else can guess; one of an earlier generation is not heard.
        connect_timeout: seconds to wait for the others.
        receive_timeout: seconds to wait for a message.

    Raises:
        CipherDMError: a party does not come in time.
    """

    def __init__(self, rank: int, links: Sequence[Path], link_id: str, connect_timeout: float, receive_timeout: float):
        self._timeout = receive_timeout
        others = [other for other in range(len(links)) if other != rank]
        hello = {other: hashlib.sha256(f"{link_id} {other}".encode()).digest() for other in range(len(links))}
        self.lock = threading.Lock()  # one walk has all connections
        own = links[rank].with_suffix(".walk")
        own.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(own))
        server.listen()
        self._from: dict[int, socket.socket] = {}
        deadline = time.monotonic() + connect_timeout
        accepts = threading.Thread(
            target=self._accept, args=(server, {hello[other]: other for other in others}, deadline)
        )
        accepts.start()
        try:
            self._to = {
                other: _connect(links[other].with_suffix(".walk"), hello[rank], other, deadline) for other in others
            }
        finally:
            accepts.join()
            server.close()
        missing = set(others).difference(self._from)
        if missing:
            raise CipherDMError(f"party {min(missing)} did not connect within {connect_timeout:g} seconds")
        for connection in (*self._to.values(), *self._from.values()):
            connection.setblocking(False)

    def exchange(self, messages: Round, at: tuple[int, int, bytes]) -> Mapping[int, np.ndarray]:
        """Send and receive the messages of a round; return those that came, by rank.

        Args:
            messages: messages of this party.
            at: number of the call and of the round, and 8 bytes that name the plan, all of which the others must have alike.

        Raises:
            CipherDMError: a party is gone, says nothing for the timeout, or is at another place or plan.
        """
        sending, receiving = {}, {}
        for rank, content in messages.sends.items():
            framed = _HEAD.pack(content.size, *at) + content.tobytes()
            sending[self._to[rank]] = (rank, memoryview(framed))
        for rank, size in messages.receives.items():
            receiving[self._from[rank]] = (rank, np.empty(_HEAD.size + size, np.uint8), 0)
        came = {}
        while sending or receiving:
            readable, writable, _ = select.select(list(receiving), list(sending), [], self._timeout)
            if not readable and not writable:
                silent = min(rank for rank, *_ in (*receiving.values(), *sending.values()))
                raise CipherDMError(f"party {silent} neither sent nor took anything for {self._timeout:g} seconds")
            for connection in writable:
                rank, rest = sending.pop(connection)
                rest = rest[_tried(connection.send, rest, rank) :]
                if rest:
                    sending[connection] = (rank, rest)
            for connection in readable:
                rank, buffer, count = receiving.pop(connection)
                count += _tried(connection.recv_into, memoryview(buffer)[count:], rank)
                head = _HEAD.pack(buffer.size - _HEAD.size, *at)
                if count >= _HEAD.size and buffer[: _HEAD.size].tobytes() != head:
                    raise CipherDMError(f"party {rank} runs another program, or is at another place in it")
                if count < buffer.size:
                    receiving[connection] = (rank, buffer, count)
                else:
                    came[rank] = buffer[_HEAD.size :]
        return came

    def _accept(self, server: socket.socket, callers: Mapping[bytes, int], deadline: float) -> None:
        """Let in who says what only the other parties know, each as itself."""
        while len(self._from) < len(callers) and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
                connection.settimeout(min(left, PATIENCE))
                said = connection.recv(_HELLO)
                if said in callers:
                    connection.sendall(said)
                    self._from[callers[said]] = connection
                else:
                    connection.close()
            except OSError:
                pass


def _connect(path: Path, hello: bytes, other: int, deadline: float) -> socket.socket:
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            connection.connect(str(path))
            connection.sendall(hello)
            # What listens may be no party, but a gate or what shapes links before it.
            if connection.recv(_HELLO) == hello:
                return connection
        except OSError:
            pass
        connection.close()
        time.sleep(0.01)
    raise CipherDMError(f"party {other} cannot be reached at {path.name}")


def _tried(action: Callable[[memoryview], int], buffer: memoryview, rank: int) -> int:
    """Send or receive what goes at once, and return the number of bytes."""
    try:
        count = action(buffer)
    except BlockingIOError:
        return 0
    except OSError:
        count = 0
    if not count:
        raise CipherDMError(f"party {rank} is gone")
    return count
