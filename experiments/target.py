"""Targets: tables and figures to reproduce, the commands that measure them, and the numbers that should come out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from cipherdm.errors import CipherDMError
from cipherdm.records import read_record
from cipherdm.views.style import Shown

TINY, TEN = MODELS = ("mnist01-tiny", "mnist10")
"""The models that targets are measured on: one of two digits, one of ten."""

PROMPT_MODEL = "sd-mini"
"""The model that draws prompts."""


@dataclass(frozen=True)
class Command:
    """One command of `cipherdm`, which writes one record."""

    name: str  # of the record's file, and of the run's folder while the record is not published
    base: tuple[str, ...]  # arguments of `cipherdm` that every run has, then further ones of full and of reduced runs
    full: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    option: Literal["--record", "--out"] = "--record"  # takes the record's path, or that of an image beside the record
    resumes: bool = False  # whether finished parts are kept in the folder that `--keep` names

    def arguments(self, reduced: bool) -> tuple[str, ...]:
        """Return the arguments of `cipherdm`, without the record's path."""
        return (*self.base, *(self.reduced if reduced else self.full))

    def line(self, reduced: bool) -> str:
        """Return what a reader would type."""
        return " ".join(("cipherdm", *self.arguments(reduced)))


class Records:
    """The records in a folder, by the stem of their file names. Each is read once."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._read: dict[str, dict[str, Any]] = {}

    def __contains__(self, stem: str) -> bool:
        return self.path(stem).exists()

    def path(self, stem: str) -> Path:
        """Return where the record is, or would be."""
        return self.folder / f"{stem}.json"

    def __getitem__(self, stem: str) -> dict[str, Any]:
        """Return a record. Raises CipherDMError if there is none."""
        path = self.path(stem)
        if not path.exists():
            raise CipherDMError(
                f"there is no record {path}: `cipherdm reproduce --list` names the command that makes it."
            )
        if stem not in self._read:
            self._read[stem] = read_record(path)
        return self._read[stem]


Value = Callable[[Records], float]
"""A number from records."""


@dataclass(frozen=True)
class Check:
    """A number that a target should give."""

    what: str
    expected: float  # in the committed records, rounded; or a bound
    tolerance: float  # allowed difference in a full run on another machine
    value: Value
    reduced: float | None = None  # allowed difference in a reduced run; None if it cannot tell
    digits: int = 1  # printed after the point
    unit: str = ""
    bound: Literal["", "least", "most"] = ""  # whether `expected` is the least or the most that the number should be

    def holds(self, records: Records, reduced: bool = False) -> bool:
        """Return True if the number is within its tolerance. NaN never is."""
        allowed = self.reduced if reduced else self.tolerance
        if allowed is None:
            return False
        difference = self.value(records) - self.expected
        enough, little_enough = difference >= -allowed, difference <= allowed
        return bool({"least": enough, "most": little_enough}.get(self.bound, enough and little_enough))

    def margin(self, tolerance: float) -> str:
        """Return a tolerance as it is printed after the expected value."""
        if not self.bound:
            return f"± {self.shown(tolerance)}"
        sign, beyond = {"least": ("-", "or more"), "most": ("+", "or less")}[self.bound]
        return f"{sign} {self.shown(tolerance)}, {beyond}" if tolerance else beyond

    def shown(self, value: float) -> str:
        """Return a value as it is printed: digits and unit."""
        return f"{value:,.{self.digits}f}{self.unit}"


@dataclass(frozen=True)
class Target:
    """A table or figure that can be measured again."""

    name: str  # for `cipherdm reproduce --only`
    title: str
    claim: str
    source: Literal["paper", "published", "ours"]  # whose the claim is
    commands: tuple[Command, ...]  # each can be run by itself
    checks: tuple[Check, ...] = ()
    figure: Callable[[Path], Figure | Shown] | None = None  # from the folder of records; None if a table says it all
    order: int = 1000  # place among the targets in documents and runs


def field(stem: str, *keys: str, factor: float = 1.0) -> Value:
    """Return the function that reads a number of a record, or the mean of several, by its keys, times a factor."""
    return lambda records: factor * float(np.mean(reduce(getitem, keys, records[stem])))


def of_rows(stem: str, name: str, take: Callable[[list[float]], float] = np.mean, factor: float = 1.0) -> Value:
    """Return the function that takes the mean of a number over a record's rows, or their `max` or `min`, times a factor."""
    return lambda records: factor * float(take([row[name] for row in records[stem]["rows"]]))
