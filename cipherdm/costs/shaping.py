"""Slow down the links between parties on one machine to those of a network, to measure runs instead of modelling them.

Linux can do this (`tc netem`), but needs a kernel module and root rights. A process that forwards the parties' connections
needs neither. It shapes delay and bandwidth of established connections. It has no packet loss, no jitter and no slow start of
TCP, so a real network with the same numbers can be slower.
"""

import json
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

from ..errors import CipherDMError
from ..files import private_folder
from .networks import Network

_START_TIMEOUT = 20.0
_CALIBRATED = 20e-3  # seconds of round trip above which the time of forwarding itself does not matter
_TURNS, _TURN = 4, 0.2  # number of measurements, and seconds for each
_PINGS = 400  # at most; with fewer, a measurement would end before the processor is awake
_PROBE = -1  # rank of the process that measures; it has its own wire


class LinkShaper:
    """Process between parties, through which they reach each other as if over a network.

    Use it as a context manager, or call `start` and `stop`. The process ends with this one, whatever the cause.

    Args:
        network: network to imitate.
        addresses: paths of the Unix sockets at which the parties listen, by rank.
    """

    def __init__(self, network: Network, addresses: Sequence[Path]):
        self.network = network
        self._addresses = tuple(addresses)
        self._server: socket.socket | None = None
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "LinkShaper":
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; return when it listens. The parties themselves may start later.

        Raises CipherDMError if the process did not start.
        """
        self._temporary = private_folder()
        self._folder = Path(self._temporary.name)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "probed.sock"))
        self._server.listen()
        ranks = range(len(self._addresses))
        targets = {pair: self._addresses[pair[1]] for pair in permutations(ranks, 2)}
        targets[_PROBE, _PROBE] = self._folder / "probed.sock"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cipherdm.costs.forwarding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the other
        )
        # Beside SPU's sockets stand those of walks.
        links = [
            (*pair, str(self._socket(*pair).with_suffix(kind)), str(target.with_suffix(kind)))
            for pair, target in targets.items()
            for kind in (".sock", ".walk")
        ]
        settings = {"links": links, "bandwidth": self.network.bandwidth, "delay": self.network.delay}
        try:
            self._tell(json.dumps(settings))
            readable, _, _ = select.select([self._process.stdout], [], [], _START_TIMEOUT)
            if not readable or self._process.stdout.readline() != b"ready\n":
                raise OSError
            if self.network.round_trip < _CALIBRATED:
                self._calibrate()
        except OSError:  # it ended, or said nothing
            self._process.kill()
            words = self._process.stderr.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            self.stop()
            raise CipherDMError(f"the process that shapes the parties' links did not start: {words[-1]}") from None

    def stop(self) -> None:
        """End the process. Safe to call twice."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._process.stderr, self._server):
            file.close()
        self._process = None
        self._temporary.cleanup()

    @property
    def pid(self) -> int:
        """Id of the process, while it runs."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.poll() is None

    def seen_by(self, rank: int) -> tuple[Path, ...]:
        """Return all parties' sockets for the party of that rank: its own to listen at, the others' to connect to."""
        return tuple(
            address if other == rank else self._socket(rank, other) for other, address in enumerate(self._addresses)
        )

    def _socket(self, sender: int, receiver: int) -> Path:
        return self._folder / f"{sender}to{receiver}.sock"

    @contextmanager
    def probe(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Yield both ends of a connection over the network, to measure it; it takes no party's bandwidth."""
        with socket.socket(socket.AF_UNIX) as near:
            near.connect(str(self._socket(_PROBE, _PROBE)))
            far, _ = self._server.accept()
            with far:
                yield near, far

    def _calibrate(self) -> None:
        """Measure the time that sockets and waking up take, and shorten the requested delay by it.

        The lower quartile is taken, since a busy moment of the machine delays many messages.
        """
        delay = self.network.delay
        pings = min(_PINGS, round(_TURN / max(self.network.round_trip, 1e-3)))
        with self.probe() as (near, far):
            for _ in range(_TURNS):
                measured = statistics.quantiles(ping(near, far) for _ in range(pings))[0] / 2
                delay = max(0.0, delay + self.network.delay - measured)
                self._tell(f"{delay:.9f}")
                ping(near, far)  # may still have the delay before

    def _tell(self, line: str) -> None:
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()


def ping(near: socket.socket, far: socket.socket) -> float:
    """Return the seconds that one byte takes from one end of a connection to the other and back."""
    start = time.perf_counter()
    near.send(b".")
    far.send(far.recv(1))
    near.recv(1)
    return time.perf_counter() - start
