"""Read the costs of a program from SPU's log, the only place where SPU reports them."""

import os
import re
from pathlib import Path

from ..errors import CipherDMError
from . import party_pb2 as pb
from .config import direct_spu_log

_LEVEL = r"(?P<level>HLO|HAL|MPC) profiling: total time"

_OPERATOR = (
    r"- (?:pphlo\.)?(?P<name>\S+), executed (?P<calls>\d+) times, duration (?P<seconds>[\d.e+-]+)s, "
    r"send bytes (?P<sent_bytes>\d+) recv bytes (?P<received_bytes>\d+), "
    r"send actions (?P<sends>\d+), recv actions (?P<receives>\d+)"
)

_LINE = re.compile(f"{_LEVEL}|{_OPERATOR}")
_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")
_TRAFFIC = ("sent_bytes", "received_bytes", "sends", "receives")  # SPU calls messages actions
KERNEL = "kernel."
"""Prefix of the names of kernels, which tells them from operators."""

# Bookkeeping of the interpreter, which sends nothing and takes hardly any time.
_SILENT = {"free", "constant"}


class ProfileLog:
    """SPU's log file, read from where the last reading ended.

    SPU has one global logger per process, so a process makes one of these. SPU counts a message once it has left, so a few
    bytes may be booked on the operator or program after the one that sent them; sums are right.
    """

    def __init__(self, path: Path):
        direct_spu_log(path)
        self._path = path
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)  # a process that was killed may have written here before

    def read(self) -> pb.CallDone:
        """Return the traffic and the operators of the program run since the last reading.

        Raises:
            CipherDMError: SPU's report is not there, or not whole.
        """
        text = self._file.read().decode(errors="replace")
        if self._file.tell() > 1 << 24:
            # The log does not rotate, so it is emptied here. SPU appends, so it goes on writing at the new end.
            os.truncate(self._path, 0)
            self._file.seek(0)
        try:
            return parse_profile(text)
        except ValueError as problem:
            raise CipherDMError(
                f"costs cannot be measured, because {problem} in SPU's log {self._path}; is the temporary folder "
                f"{self._path.parent} full? Make room, or set TMPDIR to another folder"
            ) from None


def parse_profile(text: str) -> pb.CallDone:
    """Read the link totals and the tables of operators and of kernels from SPU's log.

    SPU counts at three levels, each of which covers the whole run. Operators of a program (HLO) consist of functions on
    fixed-point numbers (HAL, left out here). Those consist of kernels of the secret-sharing protocol (MPC, whose names here
    begin with `KERNEL`).

    Raises:
        ValueError: the text is not the whole report of one program.
    """
    totals = _LINK.findall(text)
    levels = [level for level in ("HLO", "HAL", "MPC") if f"{level} profiling: total time" not in text]
    if len(totals) != 1 or levels:
        raise ValueError(
            f"there are {len(totals)} link totals instead of 1, and {', '.join(levels) or 'no table'} lacks"
        )
    done = pb.CallDone(**dict(zip(_TRAFFIC, map(int, totals[0]), strict=True)))
    level = "HLO"
    for line in _LINE.finditer(text):
        level = line["level"] or level
        if line["level"] or level == "HAL" or line["name"] in _SILENT:
            continue
        counts = {count: int(line[count]) for count in ("calls", *_TRAFFIC)}
        name = line["name"] if level == "HLO" else KERNEL + line["name"]
        # Kernels that send nothing are many and cost next to nothing.
        if level == "HLO" or counts["sends"] or counts["receives"]:
            done.operators.add(name=name, seconds=float(line["seconds"]), **counts)
    return done
