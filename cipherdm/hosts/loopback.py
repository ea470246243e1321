"""Three hosts on this machine, each a process started from its TOML file: for lessons, tests and trials."""

import os
import random
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..engine.cluster import end_with_input, last_words, wait_until_ready
from ..engine.config import PARTIES
from ..errors import CipherDMError
from .config import PARTY_NAMES
from .process import command

_START_TIMEOUT = 120.0  # seconds


class LoopbackHosts:
    """Three processes like those of `cipherdm party`. Use it as a context manager: leaving the block ends them.

    They also end when this process does, however it ends.

    Args:
        files: TOML files by role, as `make_trial` returns them. A party writes its events to a file beside its own, with
            the suffix .log.
        launchers: words before each party's command, such as `ip netns exec NAME`; none by default.

    Raises:
        CipherDMError: (on entering) a party does not start; the message has the last line of its log.
    """

    def __init__(self, files: Mapping[str, Path], launchers: Sequence[Sequence[str]] = ((), (), ())):
        self._files = [files[name] for name in PARTY_NAMES]
        self._logs = [path.with_suffix(".log") for path in self._files]
        self._launchers = launchers
        self._processes: list[subprocess.Popen | None] = [None] * PARTIES

    def __enter__(self) -> "LoopbackHosts":
        try:
            self.start(*range(PARTIES))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Process ids by rank; None for a party that was killed."""
        return tuple(process and process.pid for process in self._processes)

    def log(self, rank: int) -> str:
        """Return all that a party has logged."""
        return self._logs[rank].read_text()

    def start(self, *ranks: int) -> None:
        """Start parties that do not run; return when they are ready."""
        for rank in ranks:
            self._launch(rank)
        for rank in ranks:
            self._wait(rank)

    def kill(self, rank: int) -> None:
        """Kill a party's process, as a crash would."""
        process, self._processes[rank] = self._processes[rank], None
        with process:  # which waits for it, and closes its pipe
            process.kill()

    def pause(self, rank: int) -> None:
        """Stop a party's process (SIGSTOP): it exists and does nothing."""
        self._processes[rank].send_signal(signal.SIGSTOP)

    def resume(self, rank: int) -> None:
        """Let a stopped process go on."""
        self._processes[rank].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all three. Safe to call twice."""
        processes = [process for process in self._processes if process is not None]
        self._processes = [None] * PARTIES
        for process in processes:
            process.send_signal(signal.SIGCONT)  # a stopped process would not see that its input ends
        end_with_input(processes, timeout=10)

    def _launch(self, rank: int) -> None:
        with self._logs[rank].open("ab") as log:
            self._processes[rank] = subprocess.Popen(
                [*self._launchers[rank], *command(self._files[rank], end_with_input=True)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                stderr=log,
                env=os.environ | {"GRPC_VERBOSITY": "NONE"},
                start_new_session=True,
            )

    def _wait(self, rank: int) -> None:
        if not wait_until_ready(self._processes[rank], _START_TIMEOUT):
            raise CipherDMError(f"party {rank} did not start: {last_words(self._logs[rank]) or 'it said nothing'}")


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports of this machine on which no process listens.

    They are below the ports that the system gives to connections, so none is taken by chance before it is used.
    """
    for first in random.sample(range(20000, 30000 - count), 100):
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise CipherDMError(f"there are no {count} free ports in a row from 20000 to 30000 on this machine.")


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
