"""Process of a party's host: it listens, serves until it is told to end, and then ends what it started.

`cipherdm party` becomes this process, `python -m cipherdm.hosts.process FILE`, which needs no more than SPU.
"""

import errno
import hashlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from concurrent import futures
from pathlib import Path

import grpc

from ..engine.rpc import add_service
from ..engine.wire import GRPC_OPTIONS
from ..errors import CipherDMError
from ..hardening import harden
from . import host_pb2 as pb
from .channels import keepalive_options
from .config import HostConfig, load_host, split_address
from .roles import RoleCheck
from .service import EventLog, HostService

_CONNECTION_AGE_MS = 3_600_000  # then callers connect anew, and show a certificate that is still valid; calls go on
_END_WITH_INPUT = "--end-with-input"


def serve(host: HostConfig, *, end_with_input: bool = False) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        host: configuration of the party.
        end_with_input: True to end also when the standard input closes, so that this process does not outlive its parent,
            and to print a line "ready".

    Raises:
        CipherDMError: a port is in use, or the state's folder cannot be used.
    """
    harden()
    log, ended = EventLog(host.rank), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    address = f"{host.listen}:{split_address(host.caller.parties[host.rank])[1]}"
    check_port(address, host.rank)
    for slot in range(0 if host.link_sockets else host.limits.runs):
        ip, port = host.gate(slot, Path()).addresses[host.rank]
        check_port(f"{ip}:{port}", host.rank)
    folder = _run_folder(host)
    try:
        service = HostService(host, folder, log)
        server = listen(service, host, address)
        for warning in service.warnings():
            log("warning", level="warning", reason=warning)
        log("ready", pid=os.getpid(), address=address, configuration=host.agreement)
        if end_with_input:
            threading.Thread(target=_wait_for_end_of_input, args=(ended,), daemon=True).start()
            print("ready", flush=True)
        ended.wait()
        log("ending")
        server.stop(grace=None)
        service.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # A thread may still be at a call; a normal exit would wait for it.
    sys.stderr.flush()
    os._exit(0)


def listen(service: HostService, host: HostConfig, address: str) -> grpc.Server:
    """Let a service answer at `host:port`, and return its server. Raises CipherDMError if it cannot listen there."""
    roles = RoleCheck(host, service.denied, service.deadlines)
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=roles.threads),
        interceptors=(roles,),
        options=(
            *GRPC_OPTIONS,
            *keepalive_options(host.caller.timeouts),
            ("grpc.server_handshake_timeout_ms", round(host.caller.timeouts.connect * 1000)),
            ("grpc.max_connection_age_ms", _CONNECTION_AGE_MS),
        ),
    )
    add_service(server, pb.DESCRIPTOR, service)
    try:
        server.add_secure_port(address, host.caller.identity.to_serve())
    except (RuntimeError, ValueError) as error:
        raise CipherDMError(f"party {host.rank} cannot listen on {address}: {error}") from None
    server.start()
    return server


def check_port(address: str, rank: int) -> None:
    """Raise CipherDMError if a party cannot listen at `host:port`."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host.strip("[]"), port), family=family):
            pass
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "Another process has it; stop that process or choose other ports.",
            errno.EADDRNOTAVAIL: "This machine does not have that address: set [party] listen to one that it has.",
        }.get(error.errno, "Choose another address or port.")
        raise CipherDMError(f"party {rank} cannot use port {port} on {host}: {error.strerror}. {remedy}") from error


def _run_folder(host: HostConfig) -> Path:
    """Make an empty folder for sockets and logs. Its name is always the same, so what a killed process has left is deleted.

    It is not in the state's folder, because the path of a socket is limited to about a hundred characters.
    """
    name = hashlib.sha256(str(host.state.resolve()).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"cipherdm-party{host.rank}-{name}"
    try:
        if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
            raise CipherDMError(f"{folder} belongs to somebody else; have it removed, or set TMPDIR to another folder.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise CipherDMError(f"cannot make the folder {folder}: {error.strerror}.") from None
    return folder


def command(config: Path, *, end_with_input: bool = False) -> list[str]:
    """Return the command of such a process for a party's TOML file."""
    interpreter = [sys.executable, "-P"]  # -P: no module of the working directory is imported
    return [*interpreter, "-m", "cipherdm.hosts.process", str(config), *([_END_WITH_INPUT] if end_with_input else [])]


def main() -> None:
    """Entry point of the process. Its arguments are the party's TOML file and, if wanted, `--end-with-input`."""
    try:
        serve(load_host(sys.argv[1]), end_with_input=_END_WITH_INPUT in sys.argv)
    except CipherDMError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _wait_for_end_of_input(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


if __name__ == "__main__":
    main()
