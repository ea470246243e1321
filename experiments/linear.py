"""Products with their truncation on three parties: by SPU, and walked in 64 bits and in rings by value, in turns."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from cipherdm.engine import CostReport, LocalCluster, Node, Plan, Session, Spec, Walking, compile_plan, sizes_met
from cipherdm.errors import CipherDMError
from cipherdm.kernels.products import INT8, trial
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import FAST, FAST_RINGS, fast
from cipherdm.protocols.fast import VALUE_BITS, WEIGHT_BITS
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed, decode, dot_general, encode
from cipherdm.sampling.sample import engine_for

from .commands import RecordOption, RepetitionsOption, finish, record_path, silent, take_turns, typical
from .markdown import markdown, records_named, times
from .target import Check, Command, Records, Target, Value, of_rows
from .training.run import one_thread

ENGINE = engine_for(FAST)
WAYS = ("spu", "walk, 64 bits", "walk, rings by value")
PADDING = ((1, 1), (1, 1))  # of convolutions: it keeps the size

BITS = {"first": WEIGHT_BITS, "second": VALUE_BITS}  # of the two operands


@dataclass(frozen=True)
class Shape:
    """`batch` products of [rows, inner] and [inner, columns], or a convolution of 3 x 3 that is one such product."""

    name: str  # of a layer that has it
    rows: int
    inner: int
    columns: int
    batch: int | None = None
    images: tuple[int, int] | None = None  # of a convolution of inner / 9 channels: count, and side in pixels

    def __str__(self) -> str:
        return f"{self.rows}x{self.inner}x{self.columns}" + (f" x {self.batch}" if self.batch else "")

    @property
    def operands(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Extents of both operands."""
        if self.images:
            count, side = self.images
            return (self.rows, self.inner // 9, 3, 3), (count, self.inner // 9, side, side)
        batch = (self.batch,) if self.batch else ()
        return (*batch, self.rows, self.inner), (*batch, self.inner, self.columns)


SHAPES = (
    Shape("a convolution of mnist10, 16 pictures", 32, 288, 3136, images=(16, 14)),
    Shape("a convolution of 128 channels", 128, 1152, 196, images=(1, 14)),
    Shape("Stable Diffusion 1.5, feed-forward", 1280, 5120, 256),
    Shape("Stable Diffusion 1.5, convolution", 320, 2880, 4096, images=(1, 64)),
    Shape("Stable Diffusion 1.5, attention scores of one of eight heads", 4096, 40, 4096, 1),
)


def shape_named(text: str) -> Shape:
    """Return the shape written as "128x1152x196". Raises CipherDMError for other texts."""
    known = {str(shape): shape for shape in SHAPES}
    if text.strip() in known:
        return known[text.strip()]
    extents = text.strip().split("x")
    if len(extents) != 3 or not all(extent.isdecimal() and int(extent) for extent in extents):
        raise CipherDMError(f"cannot read the shape {text!r}: write rows x inner x columns, such as 128x1152x196.")
    return Shape("", *map(int, extents))


@dataclass(frozen=True)
class Product:
    """Product of two arrays of stored words as FAST's layers have it, or FAST_64's if it is `walked`."""

    walked: bool
    __name__ = "product"

    def __call__(self, first, second):
        first, second = (Fixed.load(*pair, ring=True) for pair in zip((first, second), BITS.values(), strict=True))
        if first.ndim == 4:
            conv2d = fast.conv2d_as_one if self.walked else fast.conv2d
            z = conv2d({"weight": first}, second, padding=PADDING)
        else:
            batch = tuple(range(first.ndim - 2))
            z = dot_general(first, second, (((first.ndim - 1,), (first.ndim - 2,)), (batch, batch)))
        return z.truncated(VALUE_BITS).store()


def plan_of(way: str, encoded: Mapping[str, np.ndarray]) -> Plan:
    """Return the plan of a product of encoded operands in one of the `WAYS`.

    Rings by value are planned for these numbers. Results have 64 bits in each way, as between programs; so the product alone
    is in a smaller ring, and no bytes are saved by it.
    """
    node = Node("product", Product(walked=way != "spu"), tuple(BITS), ("z",))
    specs, walking = {name: Spec.of(array) for name, array in encoded.items()}, None
    if way == "walk, 64 bits":
        walking = Walking(ENGINE_FRACTION_BITS)
    elif way != "spu":
        sizes = sizes_met([node], [encoded], specs, ENGINE_FRACTION_BITS)
        walking = Walking(ENGINE_FRACTION_BITS, FAST_RINGS.significant_bits, sizes)
    return compile_plan([node], specs, keep=["z"], walking=walking)


def run(
    session: Session, shapes: Sequence[Shape] = SHAPES, repetitions: int = 3, progress: Progress = silent
) -> dict[str, Any]:
    """Multiply at each shape in all ways in turns, and return the record.

    Times are the parties' own, without sharing and revealing. Raises CipherDMError if there is nothing to measure, or if the
    session's configuration is not `ENGINE`.
    """
    if not shapes or repetitions < 1 or session.config != ENGINE:
        raise CipherDMError(
            "give at least one shape and repetition, and a session with cipherdm_experiments.linear.ENGINE."
        )
    rows, parts = [], len(WAYS) * (repetitions + 1)
    for place, shape in enumerate(shapes):
        values, errors = operands(shape), {}
        encoded = {name: encode(value, BITS[name], ring=True) for name, value in values.items()}
        plans = {way: plan_of(way, encoded) for way in WAYS}
        session.share(encoded)

        def multiply(way, plans=plans, values=values, errors=errors) -> CostReport:
            cost = session.run(plans[way])
            if way not in errors:
                errors[way] = _error(session, values)
            return cost

        runs = [(f"{shape}, {way}", partial(multiply, way)) for way in WAYS]
        costs = take_turns(runs, repetitions, progress, before=place * parts, total=len(shapes) * parts)
        session.delete([*values, "z"])
        multiply_adds = (shape.batch or 1) * shape.rows * shape.inner * shape.columns
        about = {"name": shape.name, "shape": str(shape), "multiply_adds": multiply_adds}
        about["int8_rate"] = _int8_rate(shape, repetitions)
        for way, found in zip(WAYS, costs, strict=True):
            rows.append(about | {"way": way} | typical(found) | {"max_error": errors[way]})
    return {"benchmark": "linear", "repetitions": repetitions, "path": str(trial()), "rows": rows}


def _int8_rate(shape: Shape, repetitions: int) -> float:
    """Multiply-adds a second of such a product of int8 numbers, without shares, on one core of this machine."""
    generator, seconds = np.random.default_rng(0), []
    sides = (shape.rows, shape.inner), (shape.columns, shape.inner)  # the right operand by its columns
    left, right = (generator.integers(-128, 128, side, np.int8) for side in sides)
    out = np.empty((shape.rows, shape.columns), np.int32)
    with one_thread():
        for _ in range(repetitions + 1):  # the first warms up
            begin = time.perf_counter()
            INT8.multiply(left, right, out)
            seconds.append(time.perf_counter() - begin)
    return shape.rows * shape.inner * shape.columns / float(np.median(seconds[1:]))


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each shape and way: ms, billions of multiply-adds a second, MB, rounds, error, and ratios to SPU's.

    Those of "G/s" are each party's, of ring words; those of "int8 G/s" are of bytes on one core. The digits of 64 bits are 8
    bytes, so a product of such words takes 36 of bytes.
    """
    frame = pd.DataFrame(record["rows"])
    spu = frame[frame["way"] == "spu"].set_index("shape")
    frame["faster"] = frame["shape"].map(spu["ms"]) / frame["ms"]
    frame["fewer bytes"] = frame["shape"].map(spu["bytes"]) / frame["bytes"]
    frame["MB"] = frame["bytes"] / 1e6
    # Of a product of secrets, each party computes two products of ring words.
    frame["G/s"] = 2 * frame["multiply_adds"] / frame["ms"] / 1e6
    frame["int8 G/s"] = frame["int8_rate"] / 1e9
    return frame[["shape", "way", "ms", "G/s", "int8 G/s", "MB", "rounds", "max_error", "faster", "fewer bytes"]]


def operands(shape: Shape) -> dict[str, np.ndarray]:
    """Return multiples of 2^-8 between -1/8 and 1/8, so that nothing but the truncation rounds, in float32 neither."""
    generator = np.random.default_rng(0)
    return {name: generator.integers(-32, 33, size) / 256 for name, size in zip(BITS, shape.operands, strict=True)}


def _error(session: Session, values: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of the last result from the product in plaintext."""
    found = decode(session.reveal("z"), VALUE_BITS, ring=True)
    if values["first"].ndim == 4:
        images, weight = (torch.from_numpy(values[name].astype(np.float32)) for name in ("second", "first"))
        expected = torch.nn.functional.conv2d(images, weight, padding=1).numpy()
    else:
        expected = np.matmul(values["first"], values["second"])
    return float(np.abs(found - expected).max())


def linear_table(measurements: Path) -> str:
    """Return products by SPU and by walks, as Markdown."""
    (record,) = records_named(measurements, "linear.json", "cipherdm bench linear")
    rows = [
        [
            row["shape"],
            row["way"],
            f"{row['ms']:,.0f}",
            f"{row['G/s']:.1f}",
            f"{row['int8 G/s']:,.0f}",
            f"{row['MB']:,.1f}",
        ]
        + [times(row["faster"]), times(row["fewer bytes"])]
        for row in table(record).to_dict("records")
    ]
    return markdown(
        ["product", "by", "ms", "G multiply-adds/s", "of int8, one core", "MB", "faster", "fewer bytes"], rows
    )


TABLES = {"linear": linear_table}


def measure(
    shapes: Annotated[
        str | None,
        typer.Option(help='Shapes of matrices, such as "128x1152x196,320x2880x4096"; all layers by default.'),
    ] = None,
    repetitions: RepetitionsOption = 3,
    record: RecordOption = None,
) -> None:
    """Measure products with their truncation: SPU's against walks in 64 bits and in rings by value."""
    chosen = SHAPES if shapes is None else [shape_named(name) for name in shapes.split(",")]
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        session = cluster.session(ENGINE)
        found = run(session, chosen, repetitions, bar)
    finish(record_path(record, "linear"), found, table(found))


_CHECKED = "128x1152x196"  # the shape that targets look at


def gain(quantity: str, way: str) -> Value:
    """Return the function that says how many times less "ms" or "bytes" one of the `WAYS` takes than SPU."""

    def value(records: Records) -> float:
        found = {row["way"]: row[quantity] for row in records["linear"]["rows"] if row["shape"] == _CHECKED}
        return found["spu"] / found[way]

    return value


TARGET = Target(
    "linear",
    "Products with their truncation: SPU's, and walked in 64 bits and in rings by value",
    "walks give the same results as SPU's products with fewer bytes, in less time",
    "ours",
    (Command("linear", ("bench", "linear"), ("--repetitions", "5"), ("--shapes", _CHECKED, "--repetitions", "1")),),
    (
        # Two last places: both truncations are up or down by one.
        Check("largest error of a product", 0, 2.0**-9, of_rows("linear", "max_error", max), 2.0**-9, 4),
        Check("bytes, SPU / walk in 64 bits", 2.44, 0.01, gain("bytes", WAYS[1]), 0.01, 2),
        Check("bytes, SPU / walk in rings by value", 2.35, 0.05, gain("bytes", WAYS[2]), 0.05, 2),
    ),
    order=120,
)
