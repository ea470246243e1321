"""Three parties on this machine: their processes and connections."""

import os
import secrets
import select
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc

from ..costs import LinkShaper, Network
from ..errors import CipherDMError
from ..files import private_folder
from . import party_pb2 as pb
from .config import PARTIES, EngineConfig, PartyConfig
from .rpc import Stub
from .session import Session
from .turn import Turn
from .variable_files import check_folder_name
from .wire import GRPC_OPTIONS, PartyError, gather

_CONNECT_TIMEOUT = 8.0
_PATIENCE = 5.0  # seconds for which a process may be stopped, as debuggers stop it, before that counts as a failure


class LocalCluster:
    """Three party processes on this machine, connected by sockets in a folder that only this user may open.

    Use it as a context manager: leaving the block ends the processes and deletes the folder. The processes also end when
    this process dies for any reason, because each looks for it. Threads may share a cluster, and take turns, see `Session`.

    A process that is killed, or stopped for five seconds, ends the cluster, as does a run that is interrupted. What uses the
    cluster then or later raises a CipherDMError that says why.

    The parties' memory is separate, but their owner is not: one machine that runs all three can read all shares.

    Args:
        network: network to imitate between the parties, by delaying and pacing their messages (`LinkShaper`). The client's
            connections are not affected.
        files: folder for variables that outlive the processes, with a subfolder per party, for sessions that ask for it. It
            is made if needed, for this user only.
        start_timeout: seconds to wait until the processes serve. Libraries on a network file system can take long to load.

    Raises:
        CipherDMError: (on entering) a party does not start.
    """

    def __init__(
        self,
        *,
        network: Network | None = None,
        files: str | Path | None = None,
        start_timeout: float = 120.0,
    ):
        self._network = network
        self._start_timeout = start_timeout
        self._files = None if files is None else Path(files)
        # Connecting takes several round trips.
        self._connect_timeout = _CONNECT_TIMEOUT + (10 * network.round_trip if network else 0)
        self._shaper: LinkShaper | None = None
        self._processes: list[subprocess.Popen] = []
        self._sessions: dict[tuple[EngineConfig, str], Session] = {}
        self._running = ExitStack()  # what `stop` ends, the last one first
        self._turn = Turn(self._fail, self._end)
        self._over = threading.Event()

    def __enter__(self) -> "LocalCluster":
        try:
            self._start()
            self._turn.ended = None
        except BaseException:
            self.stop()
            raise
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
        self._turn.check()
        if files:
            check_folder_name(files)
            if self._files is None:
                raise CipherDMError(
                    "the parties have no folder for files that outlive them: give LocalCluster `files`."
                )
        with self._turn.alone():
            if (config, files) not in self._sessions:
                name = uuid.uuid4().hex
                settings = config.runtime_config().SerializeToString()
                request = pb.OpenRequest(session=name, runtime_config=settings, files=files)
                if config.small_fraction_bits is not None:
                    request.small_config = config.runtime_config(small=True).SerializeToString()
                with self._turn.call():
                    gather([stub.Open.future(request, timeout=self._connect_timeout + 2) for stub in self._stubs])
                self._sessions[config, files] = Session(name, config, self._stubs, self._turn)
            return self._sessions[config, files]

    def stop(self) -> None:
        """End the three processes and delete their sockets and logs. Safe to call twice."""
        self._turn.ended = self._turn.ended or "it has been stopped"
        self._over.set()
        for process in self._processes:  # they hold nothing that has to be written, and may wait for each other
            process.kill()
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
        self._over = threading.Event()
        self._folder = Path(self._running.enter_context(private_folder()))
        links = tuple(self._folder / f"party{rank}.sock" for rank in range(PARTIES))
        if self._network is not None:
            self._shaper = self._running.enter_context(LinkShaper(self._network, links))
        self._running.callback(end_with_input, self._processes, timeout=3)
        link_id = secrets.token_hex(16)
        configs = [
            PartyConfig(
                rank,
                self._folder,
                links if self._shaper is None else self._shaper.seen_by(rank),
                link_id=link_id,
                connect_timeout=self._connect_timeout,
                files=None if self._files is None else self._files / f"party{rank}",
            )
            for rank in range(PARTIES)
        ]
        for config in configs:
            self._processes.append(start_party(config))
        running = {f"party {rank}": process.pid for rank, process in enumerate(self._processes)}
        if self._shaper is not None:
            running["the process that shapes the links"] = self._shaper.pid
        end_if_stopped(running, self._over, self._stopped)
        for rank, process in enumerate(self._processes):
            if not wait_until_ready(process, self._start_timeout):
                if self._over.is_set():
                    self._turn.check()
                end = how_it_ended(process, 0.5, self._folder, rank)
                limit = f"{self._start_timeout:g} seconds were not enough; give LocalCluster a longer start_timeout"
                raise CipherDMError(f"party {rank} did not start: " + (limit if end is None else f"it {end}"))
        self._stubs = tuple(connect_locally(self._running, config) for config in configs)

    def _stopped(self, why: str) -> None:
        self._mark(why)
        for process in self._processes:  # calls that wait for them end with an error
            process.kill()

    def _mark(self, why: str) -> None:
        """Keep the first reason for which the cluster ends."""
        if not self._over.is_set():
            self._turn.ended = f"{why}, so its parties were ended; start a new LocalCluster"
            self._over.set()

    def _end(self, why: str) -> None:
        """End the parties at once, whatever they do."""
        self._mark(why)
        self.stop()

    def _fail(self, failure: PartyError) -> CipherDMError:
        """Stop everything after a party's error; return an error that tells what happened."""
        rank, error = failure.rank, failure.error
        if self._over.is_set():
            self.stop()
            return CipherDMError(f"this cluster cannot be used: {self._turn.ended}.")
        if error.code() == grpc.StatusCode.NOT_FOUND and not failure.alone:  # a caller's mistake, which harms no party
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
        self._end(f"there was an error ({message})")
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
    """Start a party's process, which ends with this one, or when its input is closed; `wait_until_ready` waits for it.

    Args:
        config: configuration that the party reads on its standard input.
        threads: number of threads that it may use. SPU asks OpenMP for four, however many cores there are.
    """
    environment = os.environ | _ENVIRONMENT | {"OMP_THREAD_LIMIT": str(threads)}
    errors = config.work / f"party{config.rank}.err"
    return start_process(["-m", "cipherdm.engine.party"], config.to_json(), errors, environment)


def start_process(
    program: Sequence[str], line: str, errors: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Start Python with these arguments, and write a line to its standard input; `errors` is the file of its complaints."""
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", *program],  # -P: no module of the working directory is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the other
        )
    with suppress(BrokenPipeError):  # it has ended, and `wait_until_ready` will tell
        process.stdin.write(line.encode() + b"\n")
    return process


def wait_until_ready(process: subprocess.Popen, timeout: float) -> bool:
    """Wait until a process says that it is ready; return False if it ends or takes longer than so many seconds.

    To import SPU and listen takes about 2 seconds on an idle machine. Lines before that, of a library, are passed over.
    """
    deadline = time.monotonic() + timeout
    while select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        line = process.stdout.readline()
        if line in (b"ready\n", b""):
            return bool(line)
    return False


def end_if_stopped(pids: Mapping[str, int], over: threading.Event, end: Callable[[str], None]) -> None:
    """Watch child processes in a thread until `over` is set, and call `end` with the reason if one is stopped for long.

    Nobody would get an answer from it: its connections stay open. `pids` has ids by what the processes are called.
    """

    def watch() -> None:
        seen = dict.fromkeys(pids, time.monotonic())
        while not over.wait(0.5):
            for name, pid in pids.items():
                if not _is_stopped(pid):
                    seen[name] = time.monotonic()
                elif time.monotonic() - seen[name] > _PATIENCE and not over.is_set():
                    end(f"{name} was stopped by a signal, and did nothing for {_PATIENCE:g} seconds")
                    return

    threading.Thread(target=watch, daemon=True).start()


def _is_stopped(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # it has ended
        return False


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
