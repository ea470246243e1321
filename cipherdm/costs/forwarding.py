"""Process that slows down the parties' traffic: it forwards connections with a delay and a limited bandwidth.

One process forwards for all three parties, because a party's links share its bandwidth. One thread loops over sockets: it
reads, notes when each piece is due at the other end, and writes it then. It uses `select` and not asyncio's epoll, whose
timeouts are whole milliseconds: several round trips of a local network.

Started by `LinkShaper` as `python -m cipherdm.costs.forwarding`, with one line of JSON on its standard input. Each further
line is a new delay in seconds. It ends when that input closes, or when the process that started it has ended.
"""

import ctypes
import heapq
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..hardening import end_with_parent

_SMALLEST_PIECE, _LARGEST_PIECE = 1 << 14, 1 << 18  # bytes read at a time
_PIECE_SECONDS = 4e-4  # longest time in which a piece should leave, since it arrives as a whole
_BACKLOG = 4 << 20  # bytes that a lane holds besides those on their way, like senders' buffers
_PR_SET_TIMERSLACK = 29


@dataclass
class Wire:
    """Path of a party's messages: its network card, where they leave one after the other, and then the distance."""

    bandwidth: float  # bit/s for all that the party sends, over any link
    delay: float  # seconds from leaving to arriving
    free: float = 0.0  # time at which the card is free

    def arrival(self, now: float, size: int) -> float:
        """Return the time at which the last bit of `size` bytes sent `now` arrives."""
        self.free = max(self.free, now) + 8 * size / self.bandwidth
        return self.free + self.delay


class Lane:
    """One direction of one connection of non-blocking sockets: bytes wait here until they are due at the other end."""

    def __init__(self, source: socket.socket, target: socket.socket, wire: Wire):
        self.source, self.target = source, target
        self._wire = wire
        rate = wire.bandwidth / 8
        self._piece = int(min(max(rate * _PIECE_SECONDS, _SMALLEST_PIECE), _LARGEST_PIECE))
        self._size = _SMALLEST_PIECE
        self._limit = rate * wire.delay + _BACKLOG
        self._waiting: deque[tuple[float, memoryview]] = deque()
        self._held = 0
        self.ended = False  # the source has sent all it will
        self.done = False  # and all of it has been written
        self.stuck = False  # the target takes no more at the moment

    @property
    def reads(self) -> bool:
        """True unless the source has ended or too many bytes wait here."""
        return not self.ended and self._held < self._limit

    def read(self) -> float:
        """Read what the source has; return the time to write it. Raises BlockingIOError if it has nothing."""
        try:
            piece = self.source.recv(self._size)
        except ConnectionError:
            piece = b""  # it is gone, and all that it sent has been read
        # A large buffer only after a full read: for short messages, allocating it would take as long as forwarding them.
        self._size = self._piece if len(piece) == self._size else _SMALLEST_PIECE
        due = self._wire.arrival(time.monotonic(), len(piece))
        self.ended = not piece
        self._held += len(piece)
        self._waiting.append((due, memoryview(piece)))
        return due

    def write(self, now: float) -> None:
        """Write all that is due, or drop it if the target has gone. What the target sent before that still arrives."""
        self.stuck = False
        while self._waiting and self._waiting[0][0] <= now and not self.stuck:
            due, piece = self._waiting.popleft()
            try:
                if not piece:  # the end of the stream, which travels like bytes
                    self.done = True
                    self.target.shutdown(socket.SHUT_WR)
                    return
                written = self.target.send(piece)
            except BlockingIOError:
                written = 0
            except OSError:
                self.ended = self.done = True
                self._waiting.clear()
                return
            self._held -= written
            if written < len(piece):
                self.stuck = True
                self._waiting.appendleft((due, piece[written:]))


@dataclass(frozen=True)
class Link:
    """Connections that party `sender` opens to `receiver`, at a socket of ours instead of the receiver's own: their paths."""

    sender: int
    receiver: int
    ours: str
    target: str


class Forwarder:
    """Forwards connections, each direction over the sending party's wire.

    Args:
        links: links to forward.
        bandwidth: bit/s of each party.
        delay: seconds in each direction.
    """

    def __init__(self, links: list[Link], bandwidth: float, delay: float):
        parties = {rank for link in links for rank in (link.sender, link.receiver)}
        self._wires = {rank: Wire(bandwidth, delay) for rank in parties}
        listeners = [(socket.socket(socket.AF_UNIX), link) for link in links]
        for listener, link in listeners:
            listener.bind(link.ours)
            listener.listen()
        self._listeners = {listener.fileno(): (listener, link) for listener, link in listeners}
        self._lanes: dict[int, tuple[Lane, Lane]] = {}  # by source: its lane, and the lane in the other direction
        self._due: list[tuple[float, int]] = []  # a heap of times, and sources whose bytes are due then

    def run(self, control: int) -> None:
        """Forward until the file with the descriptor `control` ends; each of its lines is a new delay in seconds."""
        while True:
            # Descriptors instead of sockets, since `select` would ask each socket for its own.
            readers = [source for source, (lane, _) in self._lanes.items() if lane.reads]
            stuck = {lane.target.fileno(): source for source, (lane, _) in self._lanes.items() if lane.stuck}
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            readable, writable, _ = select.select([control, *self._listeners, *readers], [*stuck], [], timeout)
            for ready in readable:
                if ready in self._lanes:
                    self._try(ready, self._read)
                elif ready in self._listeners:
                    self._accept(*self._listeners[ready])
                elif ready == control:
                    lines = os.read(control, 4096).split()
                    if not lines:
                        return
                    for wire in self._wires.values():
                        wire.delay = float(lines[-1])
            for ready in writable:
                self._try(stuck[ready], self._write)
            while self._due and self._due[0][0] <= time.monotonic():
                self._try(heapq.heappop(self._due)[1], self._write)

    def _read(self, source: int) -> None:
        heapq.heappush(self._due, (self._lanes[source][0].read(), source))

    def _write(self, source: int) -> None:
        lane, opposite = self._lanes[source]
        lane.write(time.monotonic())
        if lane.done and opposite.done:
            self._close(source)

    def _try(self, source: int, action: Callable[[int], None]) -> None:
        if source in self._lanes:  # it may have been closed in the meantime
            try:
                action(source)
            except BlockingIOError:
                pass

    def _accept(self, listener: socket.socket, link: Link) -> None:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(link.target)
        except OSError:
            near.close()  # nobody listens there yet; the caller sees a connection end at once, and tries again
            return
        for end in (near, far):
            end.setblocking(False)
        there = Lane(near, far, self._wires[link.sender])
        back = Lane(far, near, self._wires[link.receiver])
        self._lanes |= {near.fileno(): (there, back), far.fileno(): (back, there)}

    def _close(self, source: int) -> None:
        for lane in self._lanes[source]:
            del self._lanes[lane.source.fileno()]
            lane.source.close()


def main() -> None:
    """Run the process: read one line of JSON on standard input, print "ready", forward."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the client, who then ends this process
    # By default Linux wakes sleepers up to 50 microseconds late to save power, a quarter of a local network's delay.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    end_with_parent()
    control = sys.stdin.fileno()
    fields = json.loads(_first_line(control))
    forwarder = Forwarder([Link(*link) for link in fields["links"]], fields["bandwidth"], fields["delay"])
    print("ready", flush=True)
    forwarder.run(control)


def _first_line(descriptor: int) -> bytes:
    """Read one line and nothing after it; a file object would read more, which the loop would then miss."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(descriptor, 1) or b"\n"
    return line


if __name__ == "__main__":
    main()
