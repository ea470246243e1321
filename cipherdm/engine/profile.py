"""Reads the costs of a program from SPU's log, the one place where SPU tells them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .config import direct_spu_log

_OPERATOR = re.compile(
    r"- (?:pphlo\.)?(\S+), executed (\d+) times, duration ([\d.e+-]+)s, "
    r"send bytes (\d+) recv bytes (\d+), send actions (\d+), recv actions (\d+)"
)
_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")
# Bookkeeping of the interpreter, which sends nothing and takes no time worth a row.
_SILENT = {"free", "constant"}


@dataclass(frozen=True)
class Traffic:
    """What one party sent and received over SPU's link: bytes, and messages (SPU calls them actions)."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sends: int = 0
    receives: int = 0


@dataclass(frozen=True)
class OperatorCost:
    """What one operator of a program cost one party."""

    name: str
    calls: int
    seconds: float
    traffic: Traffic


class ProfileLog:
    """SPU's log file, read from where the last reading ended.

    SPU writes through one global logger a process, so a process makes one of these. SPU counts a message when it has
    left, so a few bytes may be booked on the operator or the program after the one that sent them; sums are right.
    """

    def __init__(self, path: Path):
        direct_spu_log(path)
        self._path = path
        self._file = path.open("rb")

    def read(self) -> tuple[Traffic, tuple[OperatorCost, ...]]:
        """The traffic in total, and each operator's cost, of all programs run since the last call."""
        text = self._file.read().decode(errors="replace")
        if self._file.tell() > 1 << 24:
            # Emptied here, since it does not rotate. SPU appends, so it goes on writing at the new end.
            os.truncate(self._path, 0)
            self._file.seek(0)
        return parse_profile(text)


def parse_profile(text: str) -> tuple[Traffic, tuple[OperatorCost, ...]]:
    """Read the operator tables (SPU's HLO level) and the link totals from SPU's log."""
    totals = [Traffic(*map(int, match.groups())) for match in _LINK.finditer(text)]
    operators = tuple(
        OperatorCost(name, int(calls), float(seconds), Traffic(*map(int, counts)))
        for name, calls, seconds, *counts in _OPERATOR.findall(text)
        if name not in _SILENT
    )
    return add_traffic(totals), operators


def add_traffic(items: list[Traffic]) -> Traffic:
    """The sum, field by field."""
    return Traffic(
        sum(item.sent_bytes for item in items),
        sum(item.received_bytes for item in items),
        sum(item.sends for item in items),
        sum(item.receives for item in items),
    )
