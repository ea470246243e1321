"""Costs of a run per party, program and operator: the record behind every table and figure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..costs import Latency, Network, count_path_bytes, count_rounds, latency
from ..errors import CipherDMError
from . import party_pb2 as pb
from .profile import KERNEL

_COUNTS = ["calls", "seconds", "sent_bytes", "received_bytes", "sends", "receives"]
_KEYS = {
    "programs": ["party", "program"],
    "operators": ["party", "program", "operator"],
    "kernels": ["party", "program", "kernel"],
}  # key columns of each table of a report
TOTALS = ("seconds", "bytes", "sends", "rounds", "path_bytes")
"""Keys of `CostReport.totals`: the numbers of a run that tables and the latency model need."""


@dataclass(frozen=True)
class CostReport:
    """Costs of a run.

    Attributes:
        seconds: wall time at the client, from sending the plan to the last party's last call.
        programs: a row per party and program label: calls, seconds, sent_bytes, received_bytes, sends, receives.
        operators: likewise a row per party, program label and SPU operator.
        kernels: likewise a row per party, program label and kernel of SPU's protocol that sends. Operators consist of kernels.
    """

    seconds: float
    programs: pd.DataFrame
    operators: pd.DataFrame
    kernels: pd.DataFrame = field(default_factory=lambda: _frame("kernels", {}))

    @property
    def bytes(self) -> int:
        """Bytes sent, all parties together."""
        return int(self.programs["sent_bytes"].sum())

    @property
    def sends(self) -> int:
        """Messages sent, all parties together."""
        return int(self.programs["sends"].sum())

    @property
    def rounds(self) -> int:
        """Number of messages that had to wait for one another, see `cipherdm.costs.latency`."""
        return count_rounds(self.kernels, self.sends)

    @property
    def path_bytes(self) -> int:
        """Bytes that leave one after the other, see `cipherdm.costs.latency`."""
        return count_path_bytes(self.kernels, self.programs)

    def totals(self) -> dict[str, float]:
        """Return the sums of the run, by the names in `TOTALS`: wall seconds, and counts of all parties."""
        return {name: getattr(self, name) for name in TOTALS}

    def latency(self, network: Network) -> float:
        """Return the seconds that the run would take over a network: the sum of `latency_parts`."""
        return self.latency_parts(network).seconds

    def latency_parts(self, network: Network) -> Latency:
        """Apply the model of `cipherdm.costs.latency` to a run that was measured on a `LocalCluster` without a network."""
        return latency(self.seconds, self.rounds, self.path_bytes, network)

    def by_program(self) -> pd.DataFrame:
        """Return a row per program label: calls (of one party), seconds (mean of parties), bytes and sends (of all parties)."""
        return _summary(self.programs, "program")

    def by_operator(self) -> pd.DataFrame:
        """Return a row per SPU operator, with the columns of `by_program`."""
        return _summary(self.operators, "operator")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary: first totals, for human readers, then all rows."""
        return {
            "seconds": self.seconds,
            "bytes": self.bytes,
            "sends": self.sends,
            **{name: getattr(self, name).to_dict("split", index=False) for name in _KEYS},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "CostReport":
        """Invert `to_dict`; older records have no kernels."""
        return cls(fields["seconds"], **{name: pd.DataFrame(**fields[name]) for name in _KEYS if name in fields})

    def __add__(self, other: "CostReport") -> "CostReport":
        """Add the costs of two runs, one after the other."""
        tables = {
            name: pd.concat([getattr(self, name), getattr(other, name)])
            .groupby(keys, sort=False, as_index=False)[_COUNTS]
            .sum()
            for name, keys in _KEYS.items()
        }
        return CostReport(self.seconds + other.seconds, **tables)


def sum_totals(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Add up the totals of several runs, from rows with the totals of one run each, as in stored records.

    Raises:
        CipherDMError: a row lacks one of the totals.
    """
    sums = dict.fromkeys(TOTALS, 0)
    for row in rows:
        missing = [name for name in TOTALS if name not in row]
        if missing:
            raise CipherDMError(
                f"a row of costs lacks {', '.join(missing)}: it is of an older version; measure it again."
            )
        sums = {name: sums[name] + row[name] for name in TOTALS}
    return sums


class CostBook:
    """Sums of costs, filled while a plan runs."""

    def __init__(self):
        self._tables: dict[str, dict[tuple, list[float]]] = {name: {} for name in _KEYS}

    def add(self, party: int, program: str, done: pb.CallDone) -> None:
        """Book one call at one party, under its program's label."""
        self._add("programs", (party, program), 1, done)
        for item in done.operators:
            table = "kernels" if item.name.startswith(KERNEL) else "operators"
            self._add(table, (party, program, item.name.removeprefix(KERNEL)), item.calls, item)

    def report(self, seconds: float) -> CostReport:
        """Return everything booked, with the run's wall time."""
        return CostReport(seconds, **{name: _frame(name, rows) for name, rows in self._tables.items()})

    def _add(self, table: str, key: tuple, calls: int, costs: pb.CallDone | pb.Operator) -> None:
        row = self._tables[table].setdefault(key, [0] * len(_COUNTS))
        counts = (calls, *(getattr(costs, name) for name in _COUNTS[1:]))
        row[:] = [old + new for old, new in zip(row, counts, strict=True)]


def _frame(table: str, rows: Mapping[tuple, list[float]]) -> pd.DataFrame:
    return pd.DataFrame([[*key, *counts] for key, counts in rows.items()], columns=[*_KEYS[table], *_COUNTS])


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
