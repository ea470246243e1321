"""What tests of servers share: a free port, and whether anything that they started is still there."""

import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def running_with(variable: str, value: str) -> list[str]:
    """The command lines of running processes that have an environment variable, which children inherit, with this value."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{variable}={value}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return found


@contextmanager
def unprotected() -> Iterator[None]:
    """Let processes that are started within the block leave core files, unless they forbid it themselves.

    They have another group than root's, too, so that the owner of their files in /proc tells `protection` about them.
    """
    limit, group = resource.getrlimit(resource.RLIMIT_CORE), os.getresgid()
    resource.setrlimit(resource.RLIMIT_CORE, (limit[1], limit[1]))
    if os.geteuid() == 0:
        os.setresgid(65534, 65534, 65534)  # all, or programs that are started would be protected for that
    try:
        yield
    finally:
        os.setresgid(*group)
        resource.setrlimit(resource.RLIMIT_CORE, limit)


def protection(pid: int) -> tuple[bool, bool]:
    """Return whether a process leaves no core file, and whether debuggers cannot read it: its files in /proc are root's."""
    limits = Path(f"/proc/{pid}/limits")
    core, owner = re.search(r"Max core file size +(\w+) +(\w+)", limits.read_text()), limits.stat()
    return core.groups() == ("0", "0"), (owner.st_uid, owner.st_gid) == (0, 0)
