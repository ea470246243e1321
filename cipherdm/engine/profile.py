"""Read the costs of a program from SPU's log, the only place where SPU reports them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .config import direct_spu_log

_LEVEL = r"(?P<level>HLO|HAL|MPC) profiling: total time"

_OPERATOR = (
    r"- (?:pphlo\.)?(?P<name>\S+), executed (?P<calls>\d+) times, duration (?P<seconds>[\d.e+-]+)s, "
    r"send bytes (?P<sent>\d+) recv bytes (?P<received>\d+), send actions (?P<sends>\d+), recv actions (?P<receives>\d+)"
)

_LINE = re.compile(f"{_LEVEL}|{_OPERATOR}")
_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")
KERNEL = "kernel."
"""Prefix of the names of kernels, which tells them from operators."""

# Bookkeeping of the interpreter, which sends nothing and takes hardly any time.
_SILENT = {"free", "constant"}


@dataclass(frozen=True)
class Traffic:
    """Bytes and messages (in SPU's words, actions) that one party sent and received over SPU's link."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sends: int = 0
    receives: int = 0


@dataclass(frozen=True)
class OperatorCost:
    """Cost of one operator of a program at one party."""

    name: str
    calls: int
    seconds: float
    traffic: Traffic


class ProfileLog:
    """SPU's log file, read from where the last reading ended.

    SPU has one global logger per process, so a process makes one of these. SPU counts a message once it has left, so a few
    bytes may be booked on the operator or program after the one that sent them; sums are right.
    """

    def __init__(self, path: Path):
        direct_spu_log(path)
        self._path = path
        self._file = path.open("rb")

    def read(self) -> tuple[Traffic, tuple[OperatorCost, ...]]:
        """Return the total traffic and each operator's cost of all programs run since the last call."""
        text = self._file.read().decode(errors="replace")
        if self._file.tell() > 1 << 24:
            # The log does not rotate, so it is emptied here. SPU appends, so it goes on writing at the new end.
            os.truncate(self._path, 0)
            self._file.seek(0)
        return parse_profile(text)


def parse_profile(text: str) -> tuple[Traffic, tuple[OperatorCost, ...]]:
    """Read the link totals and the tables of operators and of kernels from SPU's log.

    SPU counts at three levels, each of which covers the whole run. Operators of a program (HLO) consist of functions on
    fixed-point numbers (HAL, left out here). Those consist of kernels of the secret-sharing protocol (MPC, whose names here
    begin with `KERNEL`).
    """
    totals = [Traffic(*map(int, match.groups())) for match in _LINK.finditer(text)]
    found, level = [], "HLO"
    for line in _LINE.finditer(text):
        level = line["level"] or level
        if line["level"] or level == "HAL" or line["name"] in _SILENT:
            continue
        traffic = Traffic(*(int(line[count]) for count in ("sent", "received", "sends", "receives")))
        if level == "HLO":
            found.append(OperatorCost(line["name"], int(line["calls"]), float(line["seconds"]), traffic))
        elif traffic.sends or traffic.receives:  # the others are many and cost next to nothing
            found.append(OperatorCost(KERNEL + line["name"], int(line["calls"]), float(line["seconds"]), traffic))
    return add_traffic(totals), tuple(found)


def add_traffic(items: list[Traffic]) -> Traffic:
    """Add up traffic, field by field."""
    return Traffic(
        sum(item.sent_bytes for item in items),
        sum(item.received_bytes for item in items),
        sum(item.sends for item in items),
        sum(item.receives for item in items),
    )
