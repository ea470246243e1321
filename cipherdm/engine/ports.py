"""Ports of this machine for parties that run on it."""

import random
import socket

from ..errors import CipherDMError


def free_ports(count: int) -> int:
    """The first of `count` ports of this machine, one after the other, that nobody listens on.

    They are below those that the system gives to connections, so that none is taken by chance before it is used.
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
