"""What there is to reproduce: targets, the commands that measure their pieces, and what should come out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from cipherdm.errors import CipherDMError
from cipherdm.records import read_record


@dataclass(frozen=True)
class Piece:
    """One command of the project, which writes one record. A run that was interrupted goes on with the next piece.

    Attributes:
        name: of the record's file, and of the piece's folder while it is not published.
        command: the arguments of `cipherdm`, without those below and the path of the record.
        full: further arguments of the full run.
        reduced: further arguments of the reduced run.
        option: what takes the record's path; with "--out" the command writes a picture, and the record beside it.
        resumes: the command keeps parts of its own in the folder that `--keep` names.
    """

    name: str
    command: tuple[str, ...]
    full: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    option: Literal["--record", "--out"] = "--record"
    resumes: bool = False

    def arguments(self, reduced: bool) -> tuple[str, ...]:
        """The arguments of `cipherdm`, without the path of the record."""
        return (*self.command, *(self.reduced if reduced else self.full))

    def command_line(self, reduced: bool) -> str:
        """What a reader would type."""
        return " ".join(("cipherdm", *self.arguments(reduced)))


class Records:
    """The records in a folder, by the stem of their file names, each read once."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._read: dict[str, dict[str, Any]] = {}

    def __contains__(self, stem: str) -> bool:
        return self.path(stem).exists()

    def path(self, stem: str) -> Path:
        """Where the record is, or would be."""
        return self.folder / f"{stem}.json"

    def __getitem__(self, stem: str) -> dict[str, Any]:
        """The record. Raises CipherDMError if it is not there."""
        if stem not in self:
            raise CipherDMError(
                f"there is no record {self.path(stem)}: `cipherdm reproduce --list` names what makes it."
            )
        if stem not in self._read:
            self._read[stem] = read_record(self.path(stem))
        return self._read[stem]


@dataclass(frozen=True)
class Check:
    """A number that a target should give.

    Attributes:
        what: the number in words.
        expected: its value in the committed records, rounded; or a bound, see there.
        tolerance: how far it may be off in a full run on another machine.
        value: the number from the records.
        reduced: how far it may be off in a reduced run; None if a reduced run does not tell.
        digits: after the point, when it is printed.
        unit: printed after the number.
        bound: "least" or "most" if `expected` is the least or the most that the number should be, and not what was found.
    """

    what: str
    expected: float
    tolerance: float
    value: Callable[[Records], float]
    reduced: float | None = None
    digits: int = 1
    unit: str = ""
    bound: Literal["", "least", "most"] = ""

    def holds(self, records: Records, reduced: bool = False) -> bool:
        """Whether the number is within its tolerance. A value that is not a number is not."""
        allowed = self.reduced if reduced else self.tolerance
        if allowed is None:
            return False
        difference = self.value(records) - self.expected
        enough, little_enough = difference >= -allowed, difference <= allowed
        return bool({"least": enough, "most": little_enough}.get(self.bound, enough and little_enough))

    def margin(self, tolerance: float) -> str:
        """A tolerance as it is printed after the expected value."""
        if not self.bound:
            return f"± {self.shown(tolerance)}"
        sign, beyond = {"least": ("-", "or more"), "most": ("+", "or less")}[self.bound]
        return f"{sign} {self.shown(tolerance)}, {beyond}" if tolerance else beyond

    def shown(self, value: float) -> str:
        """A value as it is printed: digits and unit."""
        return f"{value:,.{self.digits}f}{self.unit}"


@dataclass(frozen=True)
class Target:
    """A table or figure that one command measures again.

    Attributes:
        name: for `--only`.
        title: what it shows.
        claim: what is claimed, and by whom.
        source: whose claim it is: the paper's, that of other publications, or ours.
        pieces: the commands, each of which can be run by itself.
        checks: what should come out.
        figure: draws the target's figure from the records in a folder; None if a table says it all.
    """

    name: str
    title: str
    claim: str
    source: Literal["paper", "published", "ours"]
    pieces: tuple[Piece, ...]
    checks: tuple[Check, ...] = ()
    figure: Callable[[Path], Figure] | None = None


@dataclass(frozen=True)
class Field:
    """A number at the top of a record, or in one of its dictionaries: Field("quality_mnist10_direct", "accuracy")."""

    stem: str
    name: str
    within: str = ""
    factor: float = 1.0

    def __call__(self, records: Records) -> float:
        record = records[self.stem]
        return self.factor * float((record[self.within] if self.within else record)[self.name])


@dataclass(frozen=True)
class Mean:
    """The mean of a list of numbers at the top of a record."""

    stem: str
    name: str

    def __call__(self, records: Records) -> float:
        return float(np.mean(records[self.stem][self.name]))


@dataclass(frozen=True)
class OfRows:
    """The mean, the lowest or the highest of a number over the rows of a record."""

    stem: str
    name: str
    which: Literal["mean", "lowest", "highest"]
    factor: float = 1.0

    def __call__(self, records: Records) -> float:
        take = {"mean": np.mean, "lowest": np.min, "highest": np.max}[self.which]
        return self.factor * float(take([row[self.name] for row in records[self.stem]["rows"]]))
