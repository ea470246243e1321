"""Three hosts made of network namespaces of this machine, on a bridge that leads nowhere else; and their links' bandwidth."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

SUBNET = "10.231.77.{}"  # the bridge is 254, the hosts are 1, 2 and 3


def permitted() -> bool:
    """Return whether this process may make network namespaces here."""
    name = f"cdm{os.getpid()}try"
    made = _ip("netns", "add", name)
    if made:
        _ip("netns", "del", name)
    return made


@contextmanager
def three_hosts() -> Iterator[tuple[tuple[str, ...], ...]]:
    """For each rank what comes before a command so that it runs on that host. All is gone once the block is left."""
    bridge = f"cdm{os.getpid()}"
    with ExitStack() as stack:
        _make(stack, ("link", "add", bridge, "type", "bridge"), ("link", "del", bridge))
        _do("addr", "add", SUBNET.format(254) + "/24", "dev", bridge)
        _do("link", "set", bridge, "up")
        launchers = []
        for rank in range(3):
            name = f"{bridge}n{rank}"
            _make(stack, ("netns", "add", name), ("netns", "del", name))
            _do("link", "add", f"{bridge}v{rank}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _do("link", "set", f"{bridge}v{rank}", "master", bridge, "up")
            for command in (
                ("link", "set", "lo", "up"),
                ("addr", "add", SUBNET.format(rank + 1) + "/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                _do("-n", name, *command)
            launchers.append(("ip", "netns", "exec", name))
        yield tuple(launchers)


def limit_bandwidth(launcher: tuple[str, ...], megabits: int) -> None:
    """Let a host send no more than so many megabits a second."""
    limit = ("rate", f"{megabits}mbit", "burst", "32kbit", "latency", "400ms")
    subprocess.run([*launcher, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *limit], check=True)


def cut(launcher: tuple[str, ...]) -> None:
    """Pull a host's cable."""
    subprocess.run([*launcher, "ip", "link", "set", "eth0", "down"], check=True)


def mend(launcher: tuple[str, ...]) -> None:
    """Put it in again."""
    subprocess.run([*launcher, "ip", "link", "set", "eth0", "up"], check=True)


def _make(stack: ExitStack, how: tuple[str, ...], undo: tuple[str, ...]) -> None:
    _do(*how)
    stack.callback(_ip, *undo)


def _do(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _ip(*arguments: str) -> bool:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
