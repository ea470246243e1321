"""Three parties on this machine: their processes and connections."""

import os
import select
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc

from ..costs import LinkShaper, Network
from ..errors import CipherDMError
from ..files import private_folder
from . import party_pb2 as pb
from .config import PARTIES, EngineConfig, PartyConfig
from .rpc import Stub
from .session import Session
from .variable_files import check_folder_name
from .wire import GRPC_OPTIONS, PartyError, gather

_CONNECT_TIMEOUT = 8.0


class LocalCluster:
    """Three party processes on this machine, connected by sockets in a folder that only this user may open.

    Use it as a context manager: leaving the block ends the processes and deletes the folder. The processes also end when
    this process dies for any reason, because each watches a pipe that only this process holds open.

    The parties' memory is separate, but their owner is not: one machine that runs all three can read all shares.

    Args:
        network: network to imitate between the parties, by delaying and pacing their messages (`LinkShaper`). The client's
            connections are not affected.
        files: folder for variables that outlive the processes, with a subfolder per party, for sessions that ask for it. It
            is made if needed, for this user only.

    Raises:
        CipherDMError: (on entering) a party does not start.
    """

    def __init__(
        self,
        *,
        network: Network | None = None,
        files: Path | None = None,
    ):
        self._network = network
        self._files = files
        # Connecting takes several round trips.
        self._connect_timeout = _CONNECT_TIMEOUT + (10 * network.round_trip if network else 0)
        self._shaper: LinkShaper | None = None
        self._processes: list[subprocess.Popen] = []
        self._sessions: dict[tuple[EngineConfig, str], Session] = {}
        self._running = ExitStack()  # what `stop` ends, the last one first
        self._ended: str | None = "it has not been started: use it in a with statement"

    def __enter__(self) -> "LocalCluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        self._ended = None
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def session(self, config: EngineConfig = EngineConfig(), *, files: str = "") -> Session:  # noqa: B008 (a frozen value)
        """Return the session with this configuration; the first call opens it on the parties.

        Args:
            config: configuration of the computation.
            files: name for the session's variables in files. A later session of this name, also of another cluster with the
                same folder, begins with the files left by the one before. Without a name, files end with the session.

        Raises:
            CipherDMError: the cluster has ended, the parties cannot connect, the name is not valid or there is no folder.
        """
        if self._ended is not None:
            raise CipherDMError(f"this cluster cannot be used: {self._ended}")
        if files:
            check_folder_name(files)
            if self._files is None:
                raise CipherDMError(
                    "the parties have no folder for files that outlive them: give LocalCluster `files`."
                )
        if (config, files) not in self._sessions:
            name = uuid.uuid4().hex
            settings = config.runtime_config().SerializeToString()
            request = pb.OpenRequest(session=name, runtime_config=settings, files=files)
            try:
                gather([stub.Open.future(request, timeout=self._connect_timeout + 2) for stub in self._stubs])
            except PartyError as failure:
                raise self._fail(failure.rank, failure.error) from None
            self._sessions[config, files] = Session(name, config, self._stubs, self._fail)
        return self._sessions[config, files]

    def stop(self) -> None:
        """End the three processes and delete their sockets and logs. Safe to call twice."""
        self._ended = self._ended or "it has been stopped"
        for session in self._sessions.values():
            session.closed = True
        self._running.close()
        self._processes, self._sessions = [], {}

    @property
    def folder(self) -> Path:
        """Folder of the parties' sockets and logs, while they run."""
        return self._folder

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the processes, by rank."""
        return tuple(process.pid for process in self._processes)

    def _start(self) -> None:
        self._folder = Path(self._running.enter_context(private_folder()))
        links = tuple(self._folder / f"party{rank}.sock" for rank in range(PARTIES))
        if self._network is not None:
            self._shaper = self._running.enter_context(LinkShaper(self._network, links))
        self._running.callback(end_with_input, self._processes, timeout=3)
        configs = [
            PartyConfig(
                rank,
                self._folder,
                links if self._shaper is None else self._shaper.seen_by(rank),
                connect_timeout=self._connect_timeout,
                files=None if self._files is None else self._files / f"party{rank}",
            )
            for rank in range(PARTIES)
        ]
        for config in configs:
            self._processes.append(start_party(config))
        for rank, process in enumerate(self._processes):
            if not wait_until_ready(process):
                words = last_words(self._folder / f"party{rank}.err")
                raise CipherDMError(f"party {rank} did not start: {words}")
        self._stubs = tuple(connect_locally(self._running, config) for config in configs)

    def _fail(self, rank: int, error: grpc.RpcError) -> CipherDMError:
        """Stop everything after a party's error; return an error that tells what happened."""
        if error.code() == grpc.StatusCode.NOT_FOUND:  # a mistake of the caller, which harms no party
            return CipherDMError(f"party {rank}: {error.details()}")
        shaper = "" if self._shaper is None or self._shaper.alive else " The process that shapes the links had ended."
        for other, process in enumerate(self._processes):
            # The process at fault may take a moment to end; a healthy one will not end.
            end = how_it_ended(process, 0.5 if other == rank else 0, self._folder, other)
            if end is not None:
                message = f"party {other} {end}"
                break
        else:
            message = f"party {rank}: {error.details()}."
        message += shaper
        self._ended = f"it was stopped after an error ({message})"
        self.stop()
        return CipherDMError(f"{message} The other parties have been stopped; start a new LocalCluster.")


# The last four are settings of glibc's memory. One arena for all threads of a process: by default each thread has its own and
# keeps what it has freed, which adds up. Freed memory stays with the process, however large: every operation writes its result
# into new arrays, whose pages the system would otherwise clear and map each time.
_ENVIRONMENT = {
    "GRPC_VERBOSITY": "NONE",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 25),
}


def connect_locally(running: ExitStack, config: PartyConfig) -> Stub:
    """Return the calls of a party of this machine, over a channel that ends with `running`."""
    credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    channel = running.enter_context(grpc.secure_channel(config.control, credentials, GRPC_OPTIONS))
    return Stub(channel, pb.DESCRIPTOR)


def start_party(config: PartyConfig, threads: int = 1) -> subprocess.Popen:
    """Start a party's process, which ends when its standard input is closed. `wait_until_ready` waits until it serves.

    Args:
        config: configuration that the party reads on its standard input.
        threads: number of threads that it may use. SPU asks OpenMP for four, however many cores there are.
    """
    environment = os.environ | _ENVIRONMENT | {"OMP_THREAD_LIMIT": str(threads)}
    with (config.work / f"party{config.rank}.err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "cipherdm.engine.party"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the parties
        )
    process.stdin.write(config.to_json().encode() + b"\n")
    process.stdin.flush()
    return process


def wait_until_ready(process: subprocess.Popen, timeout: float = 30.0) -> bool:
    """Wait until a process says that it is ready; return False if it ends or takes longer than so many seconds.

    To import SPU and listen takes about 2 seconds on an idle machine.
    """
    readable, _, _ = select.select([process.stdout], [], [], timeout)
    return bool(readable) and process.stdout.readline() == b"ready\n"


def last_words(errors: Path) -> str:
    """Return the last line of a process's error output."""
    lines = errors.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def how_it_ended(process: subprocess.Popen, timeout: float, work: Path, rank: int) -> str | None:
    """Return how a party's process ended, with its last words, or None if it still runs after the timeout."""
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    cause = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    words = last_words(work / f"party{rank}.err")
    return f"{cause}. {words}".strip()


def end_with_input(processes: Sequence[subprocess.Popen], timeout: float) -> None:
    """End processes that end when their standard input does; kill those that take longer than the timeout."""
    for process in processes:
        process.stdin.close()
    for process in processes:
        with process:  # which waits for it, and closes its pipes
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
