"""The process that holds up the parties' traffic: it forwards connections with a delay and a limited bandwidth.

One process forwards for all three parties, because a party's links share its bandwidth. It is one loop over sockets in
one thread: read, note when each piece is due at the other end, write it then. `select` is used rather than asyncio's
epoll, whose timeouts are whole milliseconds, as long as several round trips of a local network.

Started by `LinkShaper` as `python -m cipherdm.costs.forwarding`, with one line of JSON on its standard input. Each further
line is a delay in seconds, to be kept from then on. It ends when that input closes.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass

_SMALLEST_PIECE, _LARGEST_PIECE = 1 << 14, 1 << 18  # bytes read at a time
_PIECE_SECONDS = 4e-4  # that a piece should take to leave at most, since it arrives as a whole
_BACKLOG = 4 << 20  # bytes that a lane holds beyond those on their way, as senders' buffers do
_PR_SET_TIMERSLACK = 29


class Wire:
    """What a party's messages go through: its network card, where they leave one after the other, and then the distance.

    Attributes:
        bandwidth: bit/s, for all that the party sends, whatever link it is for.
        delay: seconds from leaving to arriving.
    """

    def __init__(self, bandwidth: float, delay: float):
        self.bandwidth = bandwidth
        self.delay = delay
        self._free = 0.0

    def arrival(self, now: float, size: int) -> float:
        """When the last bit of `size` bytes that are sent `now` arrives."""
        self._free = max(self._free, now) + 8 * size / self.bandwidth
        return self._free + self.delay


class Lane:
    """One direction of one connection: bytes wait here until they are due at the other end.

    Args:
        source: where they are read; not blocking.
        target: where they are written; not blocking.
        wire: of the sending party.
    """

    def __init__(self, source: socket.socket, target: socket.socket, wire: Wire):
        self.source, self.target = source, target
        self._wire = wire
        rate = wire.bandwidth / 8
        self._piece = int(min(max(rate * _PIECE_SECONDS, _SMALLEST_PIECE), _LARGEST_PIECE))
        self._limit = rate * wire.delay + _BACKLOG
        self._waiting: deque[tuple[float, memoryview]] = deque()
        self._held = 0
        self.ended = False  # the source has sent all it will
        self.done = False  # and all of it has been written
        self.stuck = False  # the target takes no more at the moment

    @property
    def reads(self) -> bool:
        """Whether to look at the source: not after its end, and not while too much waits here."""
        return not self.ended and self._held < self._limit

    @property
    def due(self) -> float | None:
        """When the next piece is to be written; None if there is none, or the target takes none."""
        return self._waiting[0][0] if self._waiting and not self.stuck else None

    def read(self) -> None:
        """Take what the source has. Raises OSError if the connection broke."""
        piece = self.source.recv(self._piece)
        self.ended = not piece
        self._held += len(piece)
        self._waiting.append((self._wire.arrival(time.monotonic(), len(piece)), memoryview(piece)))

    def write(self, now: float) -> None:
        """Write all that is due. Raises OSError if the target is gone."""
        self.stuck = False
        while self._waiting and self._waiting[0][0] <= now and not self.stuck:
            due, piece = self._waiting.popleft()
            if not piece:  # the end, which travels as bytes do
                self.target.shutdown(socket.SHUT_WR)
                self.done = True
                return
            try:
                written = self.target.send(piece)
            except BlockingIOError:
                written = 0
            self._held -= written
            if written < len(piece):
                self.stuck = True
                self._waiting.appendleft((due, piece[written:]))


@dataclass(frozen=True)
class Link:
    """Connections that party `sender` opens to `receiver`, which listens at `target` (host and port)."""

    sender: int
    receiver: int
    target: tuple[str, int]


class Forwarder:
    """Forwards connections, each direction over the sending party's wire.

    Args:
        links: what to forward. `addresses` has, in this order, where to connect instead.
        bandwidth: bit/s of each party.
        delay: seconds in each direction.
    """

    def __init__(self, links: list[Link], bandwidth: float, delay: float):
        parties = {rank for link in links for rank in (link.sender, link.receiver)}
        self._wires = {rank: Wire(bandwidth, delay) for rank in parties}
        self._listeners = {socket.create_server(("127.0.0.1", 0)): link for link in links}
        self._connections: list[tuple[Lane, Lane]] = []
        self.addresses = [listener.getsockname() for listener in self._listeners]

    def run(self, control: int) -> None:
        """Forward until the file with the descriptor `control` ends; lines that it has before are new delays in seconds."""
        while True:
            lanes = [lane for connection in self._connections for lane in connection]
            readers = {lane.source: lane for lane in lanes if lane.reads}
            writers = [lane.target for lane in lanes if lane.stuck]
            dues = [due for lane in lanes if (due := lane.due) is not None]
            timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
            readable, _, _ = select.select([control, *self._listeners, *readers], writers, [], timeout)
            for ready in readable:
                if ready is control:
                    lines = os.read(control, 4096).split()
                    if not lines:
                        return self._close()
                    for wire in self._wires.values():
                        wire.delay = float(lines[-1])
                elif ready in self._listeners:
                    self._accept(ready)
            self._connections = [pair for pair in self._connections if _advance(pair, readable)]

    def _accept(self, listener: socket.socket) -> None:
        near, _ = listener.accept()
        link = self._listeners[listener]
        try:
            far = socket.create_connection(link.target, timeout=1)
        except OSError:
            near.close()  # nobody listens there yet; the caller sees a connection that ends at once, and tries again
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = Lane(near, far, self._wires[link.sender])
        self._connections.append((there, Lane(far, near, self._wires[link.receiver])))

    def _close(self) -> None:
        for end in (*self._listeners, *(lane.source for pair in self._connections for lane in pair)):
            end.close()


def _advance(connection: tuple[Lane, Lane], readable: list) -> bool:
    """Read what can be read and write what is due; false if the connection is over, whose ends have then been closed."""
    try:
        for lane in connection:
            if lane.source in readable:
                lane.read()
            lane.write(time.monotonic())
    except OSError:
        over = True  # it broke, and both ends are to notice
    else:
        over = all(lane.done for lane in connection)
    if over:
        for lane in connection:
            lane.source.close()
    return not over


def main() -> None:
    """Entry point of the process: one line of JSON on standard input; the addresses as one line on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client, who then ends this process
    # Linux lets sleepers wake up 50 microseconds late to save power, a quarter of a local network's delay.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    control = sys.stdin.fileno()
    fields = json.loads(_first_line(control))
    links = [Link(sender, receiver, tuple(target)) for sender, receiver, target in fields["links"]]
    forwarder = Forwarder(links, fields["bandwidth"], fields["delay"])
    print(json.dumps(forwarder.addresses), flush=True)
    forwarder.run(control)


def _first_line(descriptor: int) -> bytes:
    """A line, and nothing after it: a file object would take more, which the loop would then miss."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(descriptor, 1) or b"\n"
    return line


if __name__ == "__main__":
    main()
