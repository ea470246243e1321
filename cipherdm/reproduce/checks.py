"""Numbers of records that targets are checked with, as values: called with `Records`, each gives one float."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .claims import gains, step_record
from .target import Records


@dataclass(frozen=True)
class Gain:
    """How many times less a set takes than a baseline, in "time", "bytes" or "sends" of a step, of one picture by default."""

    model: str
    protocols: str
    quantity: str
    baseline: str = "direct"
    benchmark: str = "step"
    batch: int = 1

    def __call__(self, records: Records) -> float:
        of_step = self.benchmark == "step"
        stem = step_record(self.model, self.batch) if of_step else f"{self.benchmark}_{self.model}"
        table = gains(records[stem]["rows"], self.batch)
        found = table[(table["protocols"] == self.protocols) & (table["baseline"] == self.baseline)]
        return float(found[self.quantity].iloc[0])


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
class ErrorOfCall:
    """The error of the parties' result against diffusers in a record of `bench full-call`, of the rms of that."""

    stem: str

    def __call__(self, records: Records) -> float:
        return float(records[self.stem]["error"]["parties"]["rms"])


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


@dataclass(frozen=True)
class GridMean:
    """The mean PSNR in dB over the prompts of `bench grid`, under one set of protocols and one setting."""

    stem: str
    protocols: str
    guidance_scale: float
    steps: int

    def __call__(self, records: Records) -> float:
        wanted = (self.protocols, self.guidance_scale, self.steps)
        (row,) = (
            row
            for row in records[self.stem]["rows"]
            if (row["protocols"], row["guidance_scale"], row["steps"]) == wanted
        )
        return float(np.mean(row["psnr_db"]))


@dataclass(frozen=True)
class LastMedian:
    """The median over the pictures of a PSNR in dB after the last step of a recorded trajectory."""

    stem: str
    pair: str = "secure_to_exact"

    def __call__(self, records: Records) -> float:
        return float(np.median(records[self.stem]["rows"][-1][self.pair]))


@dataclass(frozen=True)
class ShareOfStep:
    """What some groups of parts or kinds of layers have of a step's "seconds", "bytes" or "rounds", in percent.

    From the record of `bench breakdown`, for one set of protocols.
    """

    model: str
    variant: str
    quantity: str
    by: Literal["group", "kind"]
    names: tuple[str, ...]

    def __call__(self, records: Records) -> float:
        rows = [row for row in records[f"breakdown_{self.model}"]["rows"] if row["variant"] == self.variant]
        mine = sum(row[self.quantity] for row in rows if row[self.by] in self.names)
        return 100 * mine / sum(row[self.quantity] for row in rows)


@dataclass(frozen=True)
class RightAnswers:
    """The share of requests in the record of `bench soak` that were answered rightly, in percent."""

    def __call__(self, records: Records) -> float:
        return 100 * records["soak"]["right"] / records["soak"]["requests"]


@dataclass(frozen=True)
class MemoryGrowth:
    """The largest growth of a party's memory from the second quarter of the requests to the last, in percent.

    From the record of `bench soak`.
    """

    def __call__(self, records: Records) -> float:
        from ..hosts.soak import growth

        return 100 * max(growth(records["soak"]))


@dataclass(frozen=True)
class FunctionRow:
    """A number of one function on its own from the record of `bench activations`, at its smallest number of elements."""

    kind: str
    function: str
    name: str = "max_error"
    exp: str = "taylor"
    each: bool = False  # for each element

    def __call__(self, records: Records) -> float:
        rows = [
            row
            for row in records["activations"]["rows"]
            if (row["kind"], row["function"], row["exp"]) == (self.kind, self.function, self.exp)
        ]
        row = min(rows, key=lambda row: row["elements"])
        return float(row[self.name]) / (row["elements"] if self.each else 1)


@dataclass(frozen=True)
class OperationRow:
    """Bytes an element of one operation, from the record of `bench operations`."""

    operation: str

    def __call__(self, records: Records) -> float:
        (row,) = (row for row in records["operations"]["rows"] if row["operation"] == self.operation)
        return row["bytes"] / row["elements"]


@dataclass(frozen=True)
class LargestProductError:
    """Of all ways and shapes in the record of `bench linear`."""

    def __call__(self, records: Records) -> float:
        return max(row["max_error"] for row in records["linear"]["rows"])


@dataclass(frozen=True)
class ProductGain:
    """How many times less a kernel takes than SPU, in "ms" or "bytes", at a shape in the record of `bench linear`."""

    quantity: str
    ring: int
    shape: str = "128x1152x196"

    def __call__(self, records: Records) -> float:
        found = {row["way"]: row[self.quantity] for row in records["linear"]["rows"] if row["shape"] == self.shape}
        return found["spu"] / found[f"kernel, {self.ring} bits"]


@dataclass(frozen=True)
class PiecewiseBytes:
    """Bytes an element of CipherDM's SiLU by counting its operations, from the record of `bench piecewise`."""

    def __call__(self, records: Records) -> float:
        from ..protocols.piecewise_costs import Prices
        from ..protocols.silu_cipherdm import silu_published

        return float(Prices.from_record(records["piecewise"]).bytes_per_element(silu_published))


@dataclass(frozen=True)
class LargestError:
    """The largest error, in percent, of the latency model ("latency") or of the shaped links ("network") of some networks."""

    stem: str
    networks: tuple[str, ...] = ()  # all of them

    def __call__(self, records: Records) -> float:
        rows = [row for row in records[self.stem]["rows"] if not self.networks or row["network"] in self.networks]
        if self.stem == "latency":
            return 100 * max(abs(row["error"]) for row in rows)
        pairs = (("round_trip", "measured_round_trip"), ("bandwidth", "measured_bandwidth"))
        return 100 * max(abs(row[measured] / row[asked] - 1) for row in rows for asked, measured in pairs)
