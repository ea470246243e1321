"""Linear layers on three parties: SPU's matrix products against kernels in both rings, in turns in one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer
from matplotlib.figure import Figure

from cipherdm.engine import CostReport, EngineConfig, LocalCluster, Node, Session, Spec, compile_plan
from cipherdm.errors import CipherDMError
from cipherdm.kernels.operation import Kernel, apply
from cipherdm.kernels.products import trial
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import fast
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed, decode, dot_general, encode, matmul
from cipherdm.views.style import PALETTE, describe, frameless, new_figure

from .commands import RecordOption, RepetitionsOption, finish, record_path, silent, take_turns, typical
from .markdown import markdown, records_named, times
from .target import Check, Command, Records, Target, Value, of_rows

ENGINE = EngineConfig(fraction_bits=ENGINE_FRACTION_BITS)
WAYS = ("spu", "kernel, 64 bits", "kernel, 32 bits")
PADDING = ((1, 1), (1, 1))  # of convolutions: it keeps the size
BITS = 8  # fraction bits of both operands, so that products of some thousand terms fit into 32 bits

_NAMES = ("first", "second")


@dataclass(frozen=True)
class Shape:
    """`batch` products of [rows, inner] and [inner, columns], or a convolution of 3 x 3 that is one such product."""

    name: str  # of a layer that has it
    rows: int
    inner: int
    columns: int
    batch: int | None = None  # with one both operands are activations; without one the first is weights
    images: tuple[int, int] | None = None  # of a convolution of inner / 9 channels: count, and side in pixels

    def __str__(self) -> str:
        return f"{self.rows}x{self.inner}x{self.columns}" + (f" x {self.batch}" if self.batch else "")

    @property
    def kind(self) -> Literal["matmul", "products", "conv2d"]:
        """Name of the operation, as kernels call it."""
        return "conv2d" if self.images else "products" if self.batch else "matmul"

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
    Shape("Stable Diffusion 1.5, attention scores of two of eight heads", 4096, 40, 4096, 2),
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
    """One way to multiply two arrays of stored words, as protocol sets do it for a layer of that shape."""

    way: str
    kind: Literal["matmul", "products", "conv2d"]
    __name__ = "product"

    def __call__(self, first, second):
        first, second = (Fixed.load(array, BITS, ring=True) for array in (first, second))
        if self.way == "spu":
            return _BY_SPU[self.kind](first, second).store()
        padding = PADDING if self.kind == "conv2d" else ((0, 0), (0, 0))
        kernel = Kernel(self.kind, padding=padding, ring=32 if self.way == "kernel, 32 bits" else 64)
        return Fixed(apply(kernel, first.array, second.array), 0, ring=True).store()


_BY_SPU: dict[str, Callable[[Fixed, Fixed], Fixed]] = {
    "matmul": matmul,
    "products": partial(dot_general, dimension_numbers=(((2,), (1,)), ((0,), (0,)))),
    "conv2d": lambda weight, x: fast.conv2d({"weight": weight}, x, padding=PADDING),
}


def run(
    session: Session, shapes: Sequence[Shape] = SHAPES, repetitions: int = 3, progress: Progress = silent
) -> dict[str, Any]:
    """Multiply at each shape in all ways in turns, without truncation, and return the record.

    Times are the parties' own, without sharing and revealing. Kernels keep weights' digits. Raises CipherDMError if there is
    nothing to measure, or if the session's configuration is not `ENGINE`.
    """
    if not shapes or repetitions < 1 or session.config != ENGINE:
        raise CipherDMError(
            "give at least one shape and repetition, and a session with cipherdm_experiments.linear.ENGINE."
        )
    rows, parts = [], len(WAYS) * (repetitions + 1)
    for place, shape in enumerate(shapes):
        values, errors = _operands(shape), {}
        specs = {name: Spec(extents) for name, extents in zip(_NAMES, shape.operands, strict=True)}
        session.share({name: encode(value, BITS, ring=True) for name, value in values.items()})

        def multiply(way, shape=shape, specs=specs, values=values, errors=errors) -> CostReport:
            node = Node("product", Product(way, shape.kind), _NAMES, ("z",))
            cost = session.run(compile_plan([node], specs, keep=["z"]))
            if way not in errors:
                errors[way] = _error(session, values, way)
            return cost

        runs = [(f"{shape}, {way}", partial(multiply, way)) for way in WAYS]
        costs = take_turns(runs, repetitions, progress, before=place * parts, total=len(shapes) * parts)
        session.delete([*values, "z"])
        multiply_adds = (shape.batch or 1) * shape.rows * shape.inner * shape.columns
        about = {"name": shape.name, "shape": str(shape), "multiply_adds": multiply_adds}
        for way, found in zip(WAYS, costs, strict=True):
            rows.append(about | {"way": way} | typical(found) | {"max_error": errors[way]})
    return {
        "benchmark": "linear",
        "repetitions": repetitions,
        "paths": {f"{8 * np.dtype(word).itemsize} bits": str(trial(word)) for word in (np.uint64, np.uint32)},
        "rows": rows,
    }


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each shape and way: ms, G multiply-adds per second of each party, MB, rounds, error, ratios to SPU's."""
    frame = pd.DataFrame(record["rows"])
    spu = frame[frame["way"] == "spu"].set_index("shape")
    frame["faster"] = frame["shape"].map(spu["ms"]) / frame["ms"]
    frame["fewer bytes"] = frame["shape"].map(spu["bytes"]) / frame["bytes"]
    frame["MB"] = frame["bytes"] / 1e6
    # Of a product of secrets, each party computes two products of ring words.
    frame["G/s"] = 2 * frame["multiply_adds"] / frame["ms"] / 1e6
    return frame[["shape", "way", "ms", "G/s", "MB", "rounds", "max_error", "faster", "fewer bytes"]]


def _operands(shape: Shape) -> dict[str, np.ndarray]:
    """Return multiples of 2^-8 between -1/8 and 1/8, so that sums are exact, in float32 and in a ring of 32 bits."""
    generator = np.random.default_rng(0)
    return {name: generator.integers(-32, 33, size) / 256 for name, size in zip(_NAMES, shape.operands, strict=True)}


def _error(session: Session, values: Mapping[str, np.ndarray], way: str) -> float:
    """Return the largest difference of the last result from the product in plaintext."""
    bits = 2 * BITS + (32 if way == "kernel, 32 bits" else 0)
    found = decode(session.reveal("z"), bits, ring=True)
    if values["first"].ndim == 4:
        # Both are multiples of 2^-8, so that float32 is exact.
        images, weight = (torch.from_numpy(values[name].astype(np.float32)) for name in ("second", "first"))
        expected = torch.nn.functional.conv2d(images, weight, padding=1).numpy()
    else:
        expected = np.matmul(values["first"], values["second"])
    return float(np.abs(found - expected).max())


def linear_table(measurements: Path) -> str:
    """Return matrix products by SPU and by kernels on shares, as Markdown."""
    (record,) = records_named(measurements, "linear.json", "cipherdm bench linear")
    rows = [
        [row["shape"], row["way"], f"{row['ms']:,.0f}", f"{row['G/s']:.1f}", f"{row['MB']:,.1f}"]
        + [times(row["faster"]), times(row["fewer bytes"])]
        for row in table(record).to_dict("records")
    ]
    return markdown(["product", "by", "ms", "G multiply-adds/s", "MB", "faster", "fewer bytes"], rows)


TABLES = {"linear": linear_table}

_COLOURS = (PALETTE[7], PALETTE[0], PALETTE[1])  # of `WAYS`


def speeds(record: Mapping[str, Any]) -> Figure:
    """Draw time and bytes of each shape as bars, in each way relative to SPU's, with the numbers beside them."""
    rows = table(record)
    shapes = list(dict.fromkeys(rows["shape"]))
    figure = new_figure(8.6, 0.9 + 0.95 * len(shapes))
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1.35, 1)})
    texts = []
    for index, (way, colour) in enumerate(zip(WAYS, _COLOURS, strict=True)):
        for place, shape in enumerate(shapes):
            (row,) = rows[(rows["shape"] == shape) & (rows["way"] == way)].to_dict("records")
            height = place + 0.27 * (index - 1)
            label = way.replace("spu", "SPU") if place == 0 else None
            bars = (("faster", f"{row['ms']:,.0f} ms, {row['faster']:.1f}x"), ("fewer bytes", f"{row['MB']:.1f} MB"))
            for axis, (ratio, text) in zip(axes, bars, strict=True):
                axis.barh(height, 1 / row[ratio], height=0.25, color=colour, label=label)
                axis.text(1 / row[ratio], height, f" {text}", va="center", fontsize=8.5)
            texts.append(f"{shape}, {way}: {row['ms']:,.0f} ms, {row['faster']:.1f} times as fast, {row['MB']:.1f} MB")
    axes[0].set_yticks(np.arange(len(shapes)), shapes, fontsize=9)
    axes[0].invert_yaxis()
    for axis, quantity, room in zip(axes, ("time", "bytes"), (1.5, 1.4), strict=True):
        axis.set(xlabel=f"{quantity}, as a share of SPU's", xlim=(0, room))
        axis.set_xticks([0, 0.5, 1], ["0", "half", "all"])
        frameless(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS), frameon=False)
    return describe(figure, "Bars by shape and way. " + "; ".join(texts) + ".")


def measure(
    shapes: Annotated[
        str | None,
        typer.Option(help='Shapes of matrices, such as "128x1152x196,320x2880x4096"; all layers by default.'),
    ] = None,
    repetitions: RepetitionsOption = 3,
    record: RecordOption = None,
) -> None:
    """Measure matrix products on three parties, SPU's against kernels on shares in both rings."""
    chosen = SHAPES if shapes is None else [shape_named(name) for name in shapes.split(",")]
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        session = cluster.session(ENGINE)
        found = run(session, chosen, repetitions, bar)
    finish(record_path(record, "linear"), found, table(found))


_CHECKED = "128x1152x196"  # the shape that targets look at


def gain(quantity: str, ring: int) -> Value:
    """Return the function that says how many times less "ms" or "bytes" a kernel takes than SPU."""

    def value(records: Records) -> float:
        found = {row["way"]: row[quantity] for row in records["linear"]["rows"] if row["shape"] == _CHECKED}
        return found["spu"] / found[f"kernel, {ring} bits"]

    return value


TARGET = Target(
    "linear",
    "Matrix products: SPU's, and the parties' own on shares in two rings",
    "kernels on shares give the same results as SPU's products with the same bytes, over Z_2^32 with half, in less time",
    "ours",
    (Command("linear", ("bench", "linear"), ("--repetitions", "5"), ("--shapes", _CHECKED, "--repetitions", "1")),),
    (
        Check("largest error of a product", 0, 0, of_rows("linear", "max_error", max), 0, 0),
        Check("bytes, SPU / kernel over Z_2^64", 1, 0.01, gain("bytes", 64), 0.01, 2),
        Check("bytes, SPU / kernel over Z_2^32", 2, 0.01, gain("bytes", 32), 0.01, 2),
        # Without the processor's instructions for products of bytes, kernels take longer than this.
        Check("time, SPU / kernel over Z_2^64", 2.0, 0.8, gain("ms", 64)),
        Check("time, SPU / kernel over Z_2^32", 2.9, 1.2, gain("ms", 32)),
    ),
    order=120,
)
