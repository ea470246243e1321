"""What a run cost: per party, program and operator; the record behind every table and figure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

_COUNTS = ["calls", "seconds", "sent_bytes", "received_bytes", "sends", "receives"]
_PROGRAM_KEYS = ["party", "program"]
_OPERATOR_KEYS = ["party", "program", "operator"]


@dataclass(frozen=True)
class CostReport:
    """The costs of a run.

    Attributes:
        seconds: wall time as the client saw it, from sending the plan to the last party's last call.
        programs: one row for each party and program label: calls, seconds, sent_bytes, received_bytes, sends, receives.
        operators: the same for each party, program label and SPU operator.
    """

    seconds: float
    programs: pd.DataFrame
    operators: pd.DataFrame

    @property
    def bytes(self) -> int:
        """Bytes sent, all parties together."""
        return int(self.programs["sent_bytes"].sum())

    @property
    def sends(self) -> int:
        """Messages sent, all parties together."""
        return int(self.programs["sends"].sum())

    def by_program(self) -> pd.DataFrame:
        """A row for each program label: calls (of one party), seconds (mean of the parties), bytes and sends (all parties)."""
        return _summary(self.programs, "program")

    def by_operator(self) -> pd.DataFrame:
        """A row for each SPU operator, with the columns of `by_program`."""
        return _summary(self.operators, "operator")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary: the totals for a reader, then the rows."""
        return {
            "seconds": self.seconds,
            "bytes": self.bytes,
            "sends": self.sends,
            "programs": self.programs.to_dict("split", index=False),
            "operators": self.operators.to_dict("split", index=False),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "CostReport":
        """The inverse of `to_dict`."""
        return cls(fields["seconds"], pd.DataFrame(**fields["programs"]), pd.DataFrame(**fields["operators"]))

    def __add__(self, other: "CostReport") -> "CostReport":
        """The costs of two runs, one after the other."""
        return CostReport(
            self.seconds + other.seconds,
            _merge([self.programs, other.programs], _PROGRAM_KEYS),
            _merge([self.operators, other.operators], _OPERATOR_KEYS),
        )


class CostBook:
    """Adds up costs while a plan runs."""

    def __init__(self):
        self._programs: dict[tuple, list[float]] = {}
        self._operators: dict[tuple, list[float]] = {}

    def add_program(self, party: int, program: str, counts: Iterable[float]) -> None:
        """Book one call: (calls, seconds, sent_bytes, received_bytes, sends, receives)."""
        _book(self._programs, (party, program), counts)

    def add_operator(self, party: int, program: str, operator: str, counts: Iterable[float]) -> None:
        """Book what one operator took within a call, as `add_program`."""
        _book(self._operators, (party, program, operator), counts)

    def report(self, seconds: float) -> CostReport:
        """All that was booked, with the run's wall time."""
        return CostReport(seconds, _frame(self._programs, _PROGRAM_KEYS), _frame(self._operators, _OPERATOR_KEYS))


def _book(rows: dict[tuple, list[float]], key: tuple, counts: Iterable[float]) -> None:
    row = rows.setdefault(key, [0] * len(_COUNTS))
    row[:] = [old + new for old, new in zip(row, counts, strict=True)]


def _frame(rows: dict[tuple, list[float]], keys: list[str]) -> pd.DataFrame:
    return pd.DataFrame([[*key, *counts] for key, counts in rows.items()], columns=[*keys, *_COUNTS])


def _merge(frames: list[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    return pd.concat(frames).groupby(keys, sort=False, as_index=False)[_COUNTS].sum()


def _summary(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    parties = max(frame["party"].nunique(), 1)
    rows = frame.groupby(key, sort=False)
    return pd.DataFrame(
        {
            "calls": rows["calls"].sum() // parties,
            "seconds": rows["seconds"].sum() / parties,
            "bytes": rows["sent_bytes"].sum(),
            "sends": rows["sends"].sum(),
        }
    )
