"""Targets: tables and figures to reproduce, the commands that measure them, and the numbers that should come out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from cipherdm.errors import CipherDMError
from cipherdm.records import read_record

TINY, TEN = MODELS = ("mnist01-tiny", "mnist10")
"""The models that targets are measured on: one of two digits, one of ten."""

PROMPT_MODEL = "sd-mini"
"""The model that draws prompts."""


@dataclass(frozen=True)
class Command:
    """One command of `cipherdm`, which writes one record.

    Attributes:
        name: Name of the record's file, and of the run's folder while the record is not published.
        base, full, reduced: Arguments of `cipherdm` that every run has, and further ones of the full and the reduced run.
        option: Option that takes the record's path. A command with "--out" writes an image, and the record beside it.
        resumes: Whether the command keeps finished parts in the folder that `--keep` names.
    """

    name: str
    base: tuple[str, ...]
    full: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    option: Literal["--record", "--out"] = "--record"
    resumes: bool = False

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
    """A number that a target should give.

    Attributes:
        what: Name of the number.
        expected: Value in the committed records, rounded; or a bound, see `bound`.
        tolerance: Allowed difference in a full run on another machine.
        value: Function that takes the number from the records.
        reduced: Allowed difference in a reduced run; None if a reduced run cannot tell.
        digits: Printed digits after the point.
        unit: Unit, printed after the number.
        bound: "least" or "most" if `expected` is the least or the most that the number should be.
    """

    what: str
    expected: float
    tolerance: float
    value: Value
    reduced: float | None = None
    digits: int = 1
    unit: str = ""
    bound: Literal["", "least", "most"] = ""

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
    """A table or figure that can be measured again.

    Attributes:
        name, title: Name for `cipherdm reproduce --only`, and subject, as a heading.
        claim, source: Claim that the target tests, and its author: the "paper", other publications, or this project.
        commands: Commands that measure it. Each can be run by itself.
        checks: Numbers that should come out.
        figure: Function that draws the target's figure from the records in a folder; None if a table says it all.
        order: Place among the targets in documents and runs.
    """

    name: str
    title: str
    claim: str
    source: Literal["paper", "published", "ours"]
    commands: tuple[Command, ...]
    checks: tuple[Check, ...] = ()
    figure: Callable[[Path], Figure] | None = None
    order: int = 1000


def field(stem: str, name: str, within: str = "", factor: float = 1.0) -> Value:
    """Return the function that reads a number of a record, or of a dictionary `within` it, times a factor."""
    return lambda records: factor * float((records[stem][within] if within else records[stem])[name])


def mean_of(stem: str, name: str) -> Value:
    """Return the function that takes the mean of a list of numbers in a record."""
    return lambda records: float(np.mean(records[stem][name]))


def of_rows(stem: str, name: str, take: Callable[[list[float]], float] = np.mean, factor: float = 1.0) -> Value:
    """Return the function that takes the mean of a number over a record's rows, or their `max` or `min`, times a factor."""
    return lambda records: factor * float(take([row[name] for row in records[stem]["rows"]]))
