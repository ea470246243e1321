"""Process of a party: it serves a client over gRPC, and computes with the other two parties on SPU.

`LocalCluster`, or the host of an organisation, starts it as `python -m cipherdm.engine.party`, with one line of JSON
(`PartyConfig`) on its standard input. It ends when that input closes, or when the process that started it has ended.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import grpc
from spu import libspu

from ..errors import CipherDMError
from ..hardening import end_with_parent, harden, set_dumpable
from . import party_pb2 as pb
from .config import PartyConfig
from .party_session import PartySession
from .profile import ProfileLog
from .rpc import add_service
from .variable_files import StoredShare, VariableFiles, check_folder_name
from .walk_links import WalkLinks
from .wire import GRPC_OPTIONS, pieces

_STATUS = Path("/proc/self/status")


class PartyService:
    """Service of one party for a client; see party.proto."""

    def __init__(self, config: PartyConfig):
        self._config = config
        self._log = ProfileLog(config.work / f"party{config.rank}.log")
        self._link: libspu.link.Context | None = None
        self._sessions: dict[str, PartySession] = {}
        self._lock = threading.Lock()

    def Describe(self, request, context):
        description = pb.Description(peak_memory_bytes=_peak_memory())
        if request.reset_peak and description.peak_memory_bytes:
            set_dumpable(allowed=True)
            Path("/proc/self/clear_refs").write_text("5")  # what `_peak_memory` reads counts from now on
            set_dumpable(allowed=False)
        return description

    def Open(self, request, context):
        configs = []
        for text in filter(None, (request.runtime_config, request.small_config)):
            configs.append(libspu.RuntimeConfig())
            configs[-1].ParseFromString(text)
        # The three parties must spawn their links in the same order, so a client opens one session at a time.
        with self._lock, _reported(context, "cannot connect to the other parties"):
            if self._link is None:
                self._link = connect(self._config)
            files = VariableFiles(self._folder_of(request))
            temporary = not request.files
            opened = PartySession(self._link, configs, files, lambda: self._walk_links, temporary=temporary)
            self._sessions[request.session] = opened
        return pb.Empty()

    def Close(self, request, context):
        with self._lock:
            session = self._sessions.pop(request.session, None)
        if session is not None:
            with session.lock:  # once a run has ended
                session.close()
        return pb.Empty()

    def Store(self, request_iterator, context):
        chunks: list[bytes] = []
        for piece in request_iterator:
            session = self._session(piece.session, context)
            chunks.append(piece.chunk)
            if len(chunks) < piece.chunk_count:
                continue
            share = StoredShare(piece.meta, tuple(chunks[: piece.chunk_count]))
            with session.lock, _reported(context, f"cannot store {piece.name!r}"):
                session.store(piece.name, share, in_file=piece.in_file)
            chunks = []
        return pb.Empty()

    def Fetch(self, request, context):
        session = self._session(request.session, context)
        for name in request.names:
            if name not in session:
                context.abort(grpc.StatusCode.NOT_FOUND, f"there is no variable {name!r}")
            with session.lock, _reported(context, f"cannot read {name!r}"):
                share = session.read(name)
            yield from pieces(request.session, name, share)

    def Delete(self, request, context):
        session = self._session(request.session, context)
        with session.lock:
            for name in request.names:
                session.delete(name)
        return pb.Empty()

    def AddProgram(self, request, context):
        session = self._session(request.session, context)
        if request.walk:
            with _reported(context, f"there is no such program as {request.id!r}"):
                session.add_walk(request.id, request.walk)
            return pb.Empty()
        executable = libspu.Executable()
        executable.ParseFromString(request.executable)
        session.executables[request.id] = executable
        return pb.Empty()

    def Run(self, request, context):
        session = self._session(request.session, context)
        with session.lock:
            # All of it before the first call, so that after a mistake no party is ahead of another.
            problem = session.mistake_in(request.calls)
            if problem is not None:
                context.abort(grpc.StatusCode.NOT_FOUND, problem)
            for index, call in enumerate(request.calls):
                if not context.is_active():  # the client went away, and will end this process
                    return
                done = self._run_program(session, call, context)
                done.index = index
                yield done

    @cached_property
    def _walk_links(self) -> WalkLinks:
        config = self._config
        return WalkLinks(config.rank, config.links, config.link_id, config.connect_timeout, config.receive_timeout)

    def _folder_of(self, request: pb.OpenRequest) -> Path:
        """Return the folder of a session's variables in files."""
        if not request.files:
            return self._config.work / f"variables{self._config.rank}-{request.session}"
        check_folder_name(request.files)
        if self._config.files is None:
            raise CipherDMError("this party has no folder for files that outlive its process; open a session without")
        return self._config.files / request.files

    def _session(self, name: str, context: grpc.ServicerContext) -> PartySession:
        with self._lock:
            session = self._sessions.get(name)
        if session is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such session: open one first")
        return session

    def _run_program(self, session: PartySession, call: pb.Call, context: grpc.ServicerContext) -> pb.CallDone:
        stored = session.executables[call.program]
        if not isinstance(stored, libspu.Executable):
            with _reported(context, f"{call.label} failed"):
                return session.run_walk(stored, call)
        executable = libspu.Executable(stored.name, list(call.inputs), list(call.outputs), stored.code)
        start = time.perf_counter()
        with _reported(context, f"{call.label} failed"):
            session.run_program(executable, call)
            seconds = time.perf_counter() - start
            done = self._log.read()
        done.seconds = seconds
        return done


def connect(config: PartyConfig) -> libspu.link.Context:
    """Join the other two parties over SPU's link. Raises RuntimeError if they do not come within `connect_timeout`."""
    config.links[config.rank].unlink(missing_ok=True)
    description = libspu.link.Desc()
    description.id = config.link_id  # every message's key begins with it
    for rank, path in enumerate(config.links):
        # SPU's TCP port would take messages from anybody, even with certificates: it accepts plain connections beside TLS.
        description.add_party(f"party{rank}", f"unix:{path}")
    description.connect_retry_interval_ms = 200
    description.connect_retry_times = max(1, round(config.connect_timeout * 1000 / 200))
    description.recv_timeout_ms = round(config.receive_timeout * 1000)
    return libspu.link.create_brpc(description, config.rank)


def serve(config: PartyConfig) -> None:
    """Serve until the process ends. Raises CipherDMError if its socket cannot be made."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=GRPC_OPTIONS)
    add_service(server, pb.DESCRIPTOR, PartyService(config))
    try:
        server.add_secure_port(config.control, grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
    except RuntimeError as error:
        raise CipherDMError(f"party {config.rank} cannot listen on {config.control}: {error}") from error
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def main() -> None:
    """Run the process: read one line of JSON on standard input, then serve until that input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the client, who then ends the parties
    os.umask(0o077)
    harden()
    end_with_parent()
    config = PartyConfig.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        serve(config)
    except CipherDMError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)


def _end_with_input() -> None:
    sys.stdin.read()
    # A thread may wait inside SPU for a party that is gone, and a normal exit would wait for that thread.
    os._exit(0)


def _peak_memory() -> int:
    """Return the most bytes that this process has held; 0 where the system does not tell, as no process holds nothing.

    getrusage would count from the parent process's peak on.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0]) * 1024


@contextmanager
def _reported(context: grpc.ServicerContext, what: str) -> Iterator[None]:
    """Turn an error into a gRPC status with the first line that says something: SPU writes "what:" and a C++ stack."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, CipherDMError) as error:
        context.abort(grpc.StatusCode.INTERNAL, f"{what}: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """Return the first line of an error that has content after SPU's "what:"."""
    lines = (line.strip().removeprefix("what:").strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


if __name__ == "__main__":
    main()
