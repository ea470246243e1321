"""Gate of a party's links: carries the bytes between its Unix sockets here and the gates of the other two, over TLS 1.3.

SPU's own TCP port takes plain connections even where it speaks TLS, so SPU gets sockets in a folder of this user's alone.
It listens at `party{rank}.sock` there, and reaches peer p by `to{p}.sock`, where this process listens; walks have sockets
`.walk` beside these, and the two kinds of link are told apart by ALPN (RFC 7301). A connection from outside is let in if its
certificate, signed by the links' authority, names one of the other two parties. One to peer p is used if the certificate there
names party p; otherwise not a byte has left. Both peers come in at SPU's one socket, so a party that deviates from the
protocol could still speak in the other's name.

It is a process of its own, because SPU holds Python's lock while it waits for a message. `Gate.start` starts it as
`python gate.py`, with one line of JSON on its standard input. It ends when that input closes.
"""

import ctypes
import json
import os
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

BUFFER = 1 << 18  # bytes read at a time: several records, so that a large message takes few turns of the loop
RECORD = 1 << 14  # most bytes of a TLS record
SETUP_SECONDS = 5.0  # for connecting and the whole handshake, so a silent caller cannot stay
MOST_SETUPS, MOST_SETUPS_FROM = 64, 16  # at once, in all and from one address
UNANSWERED_MS = 20_000  # after which a connection without acknowledgements counts as cut
KINDS = ("sock", "walk")  # of links: names in ALPN, and suffixes of sockets


@dataclass(frozen=True)
class Gate:
    """Configuration of a gate."""

    rank: int
    folder: str  # of the Unix sockets
    addresses: tuple[tuple[str, int], ...]  # host and port of the three gates by rank; this one listens at its own
    certificate: str  # path of a PEM file; the party's name, "party0" and so on, is common name and DNS name
    private_key: str  # and likewise the rest
    authority: str

    def start(self, errors: Path) -> subprocess.Popen:
        """Start the process, which prints a line "ready" when it listens; its complaints go to the file `errors`."""
        # Imported here, since the process itself imports nothing of the package.
        from ..engine.cluster import start_process

        return start_process([__file__], json.dumps(asdict(self)), errors)

    @property
    def peers(self) -> dict[str, int]:
        """Ranks of the other two parties by name."""
        return {f"party{rank}": rank for rank in range(len(self.addresses)) if rank != self.rank}

    def context(self, side: int, kinds: Sequence[str] = KINDS) -> ssl.SSLContext:
        """Return the rules for one side of TLS and these kinds of link: 1.3, and a certificate of the authority demanded."""
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.private_key)
        context.check_hostname = False  # `named` looks at the party's name instead, on both sides
        context.set_alpn_protocols(kinds)
        if side == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # no session is resumed past the check
        return context


def named(tls: ssl.SSLObject, names: set[str]) -> str:
    """Return which of the names is the peer's common name and a DNS name of it. Raises ConnectionError if none is."""
    certificate = tls.getpeercert()
    common = [value for part in certificate["subject"] for kind, value in part if kind == "commonName"]
    alternative = {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    if len(common) != 1 or common[0] not in names & alternative:
        raise ConnectionError(f"a certificate for {common} and {sorted(alternative)} is not one of {sorted(names)}")
    return common[0]


class Tunnel:
    """One connection: `wire`, which speaks TLS to another gate, and `plain`, a Unix socket of the party.

    What one side does not take at once is kept, and the other side is not read until that has gone.
    """

    def __init__(self, wire: socket.socket, context: ssl.SSLContext, *, serves: bool):
        self.wire, self.plain = wire, None
        self._received, self._sealed = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._received, self._sealed, server_side=serves)
        self._rest: dict[socket.socket, memoryview] = {}
        self._wishes: dict[socket.socket, int] = {}
        self._ended = False

    def shake_hands(self, deadline: float) -> None:
        """Do TLS's handshake. Raises OSError if it fails, or takes until `deadline` of the monotonic clock."""
        for level, option, value in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MS),
        ):
            self.wire.setsockopt(level, option, value)
        while True:
            self.wire.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                pass
            finally:
                self.wire.sendall(self._sealed.read())  # also what tells the other side why not
            data = self.wire.recv(RECORD)
            if not data:
                raise ConnectionError("closed in the handshake")
            self._received.write(data)

    def begin(self, plain: socket.socket, selector: selectors.BaseSelector, buffer: memoryview) -> None:
        """Carry bytes from now on, those first that came with the handshake."""
        self.plain = plain
        self.wire.sendall(self._sealed.read())
        for side in (self.wire, plain):
            side.setblocking(False)
            self._rest[side], self._wishes[side] = memoryview(b""), 0
        self._unseal(buffer)
        self._register(selector)

    def serve(self, side: socket.socket, events: int, selector: selectors.BaseSelector, one, two) -> None:
        """Do what a side is ready for. Raises OSError when the connection has broken, EOFError at its regular end."""
        other = self.plain if side is self.wire else self.wire
        if events & selectors.EVENT_WRITE:
            self._send(side, self._rest[side])
        if events & selectors.EVENT_READ and not self._rest[other]:
            count = side.recv_into(one)
            self._ended = self._ended or not count
            if side is self.wire:
                self._received.write(one[:count])
                self._unseal(two)
            else:
                self.tls.write(one[:count])
                self._send(self.wire, memoryview(self._sealed.read()))
        if self._ended and not any(self._rest.values()):
            raise EOFError
        self._register(selector)

    def close(self, selector: selectors.BaseSelector) -> None:
        """Close both sides."""
        for side, wish in self._wishes.items():
            if wish:
                selector.unregister(side)
        for side in (self.wire, self.plain):
            if side is not None:
                side.close()

    def _unseal(self, buffer: memoryview) -> None:
        at = 0
        try:
            # Records that have come whole are taken out now: the socket will not tell of them again.
            while self._received.pending and at + RECORD <= len(buffer):
                at += self.tls.read(len(buffer) - at, buffer[at:])
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        self._send(self.plain, buffer[:at])

    def _send(self, to: socket.socket, data: memoryview) -> None:
        try:
            while data:
                data = data[to.send(data) :]
        except BlockingIOError:
            data = memoryview(bytes(data))  # the buffer is used again
        self._rest[to] = data

    def _register(self, selector: selectors.BaseSelector) -> None:
        for side, other in ((self.wire, self.plain), (self.plain, self.wire)):
            reads = 0 if self._rest[other] or self._ended else selectors.EVENT_READ
            wish = reads | (selectors.EVENT_WRITE if self._rest[side] else 0)
            if wish != self._wishes[side]:
                if not self._wishes[side]:
                    selector.register(side, wish, self)
                elif wish:
                    selector.modify(side, wish, self)
                else:
                    selector.unregister(side)
                self._wishes[side] = wish


class Server:
    """The process: threads that accept and shake hands, and one loop that carries the bytes of all tunnels."""

    def __init__(self, gate: Gate):
        self._gate = gate
        self._accepts = gate.context(ssl.PROTOCOL_TLS_SERVER)
        self._connects = {kind: gate.context(ssl.PROTOCOL_TLS_CLIENT, [kind]) for kind in KINDS}
        self._new: list[tuple[Tunnel, socket.socket]] = []
        self._bell, self._rung = socket.socketpair()
        self._setups: Counter[str] = Counter()
        self._problems = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        """Listen, and carry bytes until the process ends."""
        self._listen(socket.create_server(tuple(self._gate.addresses[self._gate.rank])), self._let_in)
        for peer, kind in product(self._gate.peers.values(), KINDS):
            path = Path(self._gate.folder, f"to{peer}.{kind}")
            path.unlink(missing_ok=True)
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(path))
            server.listen()
            self._listen(server, lambda plain, peer=peer, kind=kind: self._lead_out(peer, kind, plain))
        print("ready", flush=True)
        selector = selectors.DefaultSelector()
        selector.register(self._rung, selectors.EVENT_READ)
        one = memoryview(bytearray(BUFFER))
        two = memoryview(bytearray(2 * BUFFER))  # more than `one` can hold of records
        while True:
            for key, events in selector.select():
                tunnel = key.data
                try:
                    if tunnel is None:
                        self._rung.recv(1)
                        tunnel, plain = self._new.pop(0)
                        tunnel.begin(plain, selector, two)
                    elif key.fileobj.fileno() >= 0:  # else it was closed by an event just before
                        tunnel.serve(key.fileobj, events, selector, one, two)
                except (OSError, EOFError):
                    tunnel.close(selector)

    def _listen(self, server: socket.socket, setup: Callable[[socket.socket], None]) -> None:
        def accept() -> None:
            while True:
                connection, address = server.accept()
                caller = address[0] if address else ""
                with self._lock:
                    busy = self._setups[caller] >= MOST_SETUPS_FROM or self._setups.total() >= MOST_SETUPS
                    self._setups[caller] += not busy
                if busy:
                    connection.close()
                else:
                    threading.Thread(target=guarded, args=(connection, caller), daemon=True).start()

        def guarded(connection: socket.socket, caller: str) -> None:
            try:
                setup(connection)
            except (OSError, ValueError) as error:  # errors of ssl are both
                connection.close()
                self._complain(f"{caller or 'own party'}: {type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self._setups[caller] -= 1

        threading.Thread(target=accept, daemon=True).start()

    def _complain(self, problem: str) -> None:
        with self._lock:
            self._problems += 1
            # Ever more seldom, so that nobody can fill the disk from outside.
            if self._problems < 10 or self._problems.bit_count() == 1:
                print(f"{self._problems}: {problem[:200]}", file=sys.stderr, flush=True)

    def _let_in(self, wire: socket.socket) -> None:
        tunnel = Tunnel(wire, self._accepts, serves=True)
        tunnel.shake_hands(time.monotonic() + SETUP_SECONDS)
        named(tunnel.tls, set(self._gate.peers))
        kind = tunnel.tls.selected_alpn_protocol()
        if kind is None:
            raise ConnectionError("it does not say which kind of link it is")
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(Path(self._gate.folder, f"party{self._gate.rank}.{kind}")))
        self._hand_over(tunnel, plain)

    def _lead_out(self, peer: int, kind: str, plain: socket.socket) -> None:
        deadline = time.monotonic() + SETUP_SECONDS
        wire = socket.create_connection(tuple(self._gate.addresses[peer]), SETUP_SECONDS)
        try:
            tunnel = Tunnel(wire, self._connects[kind], serves=False)
            tunnel.shake_hands(deadline)
            named(tunnel.tls, {f"party{peer}"})
        except BaseException:
            wire.close()
            raise
        self._hand_over(tunnel, plain)

    def _hand_over(self, tunnel: Tunnel, plain: socket.socket) -> None:
        self._new.append((tunnel, plain))
        self._bell.send(b"x")


def _end_with_input() -> None:
    while sys.stdin.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    os.umask(0o077)
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: nobody reads its memory; core files are off in its parent
    try:
        server = Server(Gate(**json.loads(sys.stdin.readline())))
        threading.Thread(target=_end_with_input, daemon=True).start()
        server.run()
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr, flush=True)
        os._exit(2)
