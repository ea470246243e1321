"""Every approximation beside the exact function, on the same values, parties and run: error, time, bytes, sends."""

# FROM cipherdm.protocols.norms:
# GroupNorm and LayerNorm with an inverse square root by a line, or Newton's iteration from it, in place of SPU's.
#
# Formula:  y = (x - mean) r(variance + eps) weight + bias, r being an `InverseSqrt`: A - B v, and Newton steps after it.
# Domain:   variance + eps within the domain of r, which an owner takes from calibration. Outside it the result is scaled
#           wrongly: r is too small on both sides, and negative beyond A/B.
# Error:    that of r: a factor on a whole row. High/low = 4: 0.086 by the line alone, 0.0114 after one step.
# Source:   Ba et al. 2016 (arXiv 1607.06450), Wu and He 2018 (arXiv 1803.08494) for the functions; the calibrated line is ours.
# Cost:     all parties together, 100,000 elements, measured (`cipherdm bench activations`), without weight and bias:
#           group_norm_line: 85 B an element, 31 sends;
#           layer_norm_line: 106 B an element, 31 sends.
#           FAST's group_norm (`fast`) has the line by class and step, and the gain in it; it truncates once.

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import typer
from jax import lax
from matplotlib.figure import Figure

from cipherdm.approximations import exact
from cipherdm.approximations.exp import ExpBounded, exp_bounded, exp_cipherdm, exp_corrected, exp_limit, exp_puma
from cipherdm.approximations.gelu import gelu_polynomial, gelu_puma, gelu_quad
from cipherdm.approximations.inverses import InverseSqrt, Reciprocal
from cipherdm.approximations.knuth import KnuthPolynomial
from cipherdm.approximations.mish import mish_cipherdm, mish_corrected, mish_polynomial
from cipherdm.approximations.piecewise import clamp
from cipherdm.approximations.silu import (
    quad,
    silu_bumblebee,
    silu_cipherdm,
    silu_corrected,
    silu_llama,
    silu_polynomial,
)
from cipherdm.approximations.softmax import (
    BoundedSoftmax,
    softmax_2quad,
    softmax_bounded,
    softmax_cipherdm,
    softmax_corrected,
    softmax_limit,
    softmax_puma,
)
from cipherdm.cli.options import parse_numbers
from cipherdm.engine import EngineConfig, LocalCluster, Node, Plan, Spec, compile_plan
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import direct
from cipherdm.protocols.direct import with_affine
from cipherdm.records import read_record
from cipherdm.views.pareto import pareto_figure

from .commands import RecordOption, finish, record_path
from .step import BASELINES
from .target import Check, Command, Records, Target, Value

SIZES = (1_000, 10_000, 100_000, 1_000_000)

ROW = 100  # scores in a softmax row

_NORM_ROWS = {"group_norm": 1000, "layer_norm": 50}  # elements that are normalised together

_VARIANCES = (0.5, 2.0)  # of rows, and the domain of their inverse root

_ONCE = 1_000_000  # from this size on, one repetition: the exact functions take many seconds

_SCORE_SPREAD = 1.5


@dataclass(frozen=True)
class Folded:
    """An approximation without the multiplication by its scales, as it costs when the owner folds them into layers."""

    approximation: KnuthPolynomial | ExpBounded | BoundedSoftmax

    @property
    def __name__(self) -> str:
        return f"{self.approximation.__name__}_folded"

    def __call__(self, z):
        return self.approximation.of_scaled(z)


@dataclass(frozen=True)
class Case:
    """A function to measure.

    Attributes:
        kind: the function that it computes or stands for.
        function: what runs on shares.
        reference: that function in NumPy.
        low, high: its values are spread evenly from low to high; softmax scores are normal and clipped to them.
        relative: report the error as a share of the exact value.
        direct: this is the function itself, not an approximation.
        exps: the engine's settings of exp to measure with; one if the function uses none.
    """

    kind: str
    function: Callable
    reference: Callable
    low: float
    high: float
    relative: bool = False
    direct: bool = False
    exps: tuple[str, ...] = ("taylor",)

    @property
    def name(self) -> str:
        """The approximation's name, or "direct"."""
        return "direct" if self.direct else self.function.__name__

    def values(self, size: int) -> np.ndarray:
        """The function's mathematical arguments, about `size` of them."""
        if self.kind == "softmax":
            scores = np.random.default_rng(0).normal(0, _SCORE_SPREAD, (-(-size // ROW), ROW))
            return np.clip(scores, self.low, self.high).astype(np.float32)
        if self.kind in _NORM_ROWS:
            width = _NORM_ROWS[self.kind]
            rows = np.random.default_rng(0).standard_normal((max(1, size // width), width))
            variances = np.geomspace(*_VARIANCES, len(rows))[:, None]
            return (exact.normalised_rows(rows) * np.sqrt(variances)).astype(np.float32)
        return np.linspace(self.low, self.high, size, dtype=np.float32)

    def inputs(self, values: np.ndarray) -> np.ndarray:
        """What the parties get for these values."""
        scale = self.function.approximation.input_scale if isinstance(self.function, Folded) else 1.0
        return (values * np.float32(scale)).astype(np.float32)

    def max_error(self, values: np.ndarray, result: np.ndarray) -> float:
        """The largest error of the parties' result."""
        expected = self.reference(values.astype(np.float64))
        if isinstance(self.function, Folded):
            result = result / getattr(self.function.approximation, "output_scale", 1.0)
        error = np.abs(result - expected)
        return float((error / np.abs(expected) if self.relative else error).max())


@dataclass(frozen=True)
class OnRows:
    """A normalisation of the rows of a matrix [N, width], without weight and bias; width is at most the matrix's."""

    norm: Callable
    kind: str

    @property
    def __name__(self) -> str:
        return self.norm.__name__

    def __call__(self, rows):
        if self.kind == "group_norm":
            return self.norm({}, rows, groups=1, eps=0.0)
        # Tokens are the last axis and channels the one before.
        return jnp.swapaxes(self.norm({}, jnp.swapaxes(rows, 0, 1)[None], eps=0.0)[0], 0, 1)


_BOTH = {"direct": True, "exps": ("taylor", "pade")}


def cases() -> tuple[Case, ...]:
    """All functions of `cipherdm.protocols`, by kind, each kind's exact function first."""
    activations = {
        "silu": (jax.nn.silu, [silu_cipherdm, silu_corrected, silu_llama, silu_bumblebee, quad]),
        "mish": (jax.nn.mish, [mish_cipherdm, mish_corrected]),
        "gelu": (direct.gelu, [gelu_puma, gelu_quad]),
    }
    polynomials = {
        "silu": [silu_polynomial(6, degree) for degree in (4, 6, 8)],
        "mish": [mish_polynomial(6, degree) for degree in (4, 6)],
        "gelu": [gelu_polynomial(4, degree) for degree in (4, 6, 8)],
    }
    found = []
    for kind, (plain, piecewise) in activations.items():
        reference = getattr(exact, kind)
        found.append(Case(kind, plain, reference, -10, 10, **_BOTH))
        # Quadratics are other functions; on a wider range their error would only say how fast a square grows.
        found += [Case(kind, f, reference, *((-4, 4) if f in (gelu_quad, quad) else (-10, 10))) for f in piecewise]
        for polynomial in polynomials[kind]:
            found += [Case(kind, f, reference, *polynomial.domain) for f in (polynomial, Folded(polynomial))]
    found.append(Case("exp", jax.numpy.exp, np.exp, -14, 0, **_BOTH))
    found += [Case("exp", f, np.exp, -14, 0) for f in (exp_cipherdm, exp_corrected, exp_puma)]
    bounded = exp_bounded(4)
    found += [Case("exp", f, np.exp, -4, 4, relative=True) for f in (exp_limit(4), bounded, Folded(bounded))]
    found.append(Case("softmax", jax.nn.softmax, exact.softmax, -4, 4, **_BOTH))
    softmaxes = [softmax_cipherdm, softmax_corrected, softmax_puma, softmax_2quad, softmax_limit(4)]
    # The rows' mean exponentials lie near exp(1.5^2 / 2), about 3.
    calibrated = softmax_bounded(4, reciprocal=Reciprocal("row_mean", (1.25, 6.0), 2))
    softmaxes += [softmax_bounded(4), Folded(softmax_bounded(4)), calibrated, Folded(calibrated)]
    found += [Case("softmax", f, exact.softmax, -4, 4) for f in softmaxes]
    for kind, plain, reference, newton in (
        ("inverse_sqrt", lax.rsqrt, exact.inverse_sqrt, InverseSqrt),
        ("reciprocal", jax.numpy.reciprocal, exact.reciprocal, Reciprocal),
    ):
        found.append(Case(kind, plain, reference, 0.5, 2, relative=True, direct=True))
        steps = [newton(f"{kind}_steps{k}", (0.5, 2.0), k) for k in (0, 1, 2)]
        found += [Case(kind, f, reference, 0.5, 2, relative=True) for f in steps]
    found += _norm_cases()
    found.append(Case("clamp", clamp(6), lambda x: np.clip(x, -6, 6), -10, 10))
    return tuple(found)


def _norm_cases() -> list[Case]:
    plain = {"group_norm": (direct.group_norm, GroupNorm), "layer_norm": (direct.layer_norm, LayerNorm)}
    found = []
    for kind, (function, form) in plain.items():
        line = form(f"{kind}_line", InverseSqrt("line", _VARIANCES, 0))
        found.append(Case(kind, OnRows(function, kind), exact.normalised_rows, -4, 4, direct=True))
        found.append(Case(kind, OnRows(line, kind), exact.normalised_rows, -4, 4))
    return found


def run(
    cluster: LocalCluster,
    sizes: Sequence[int] = SIZES,
    repetitions: int = 3,
    progress: Progress | None = None,
    chosen: Sequence[Case] | None = None,
) -> dict[str, Any]:
    """Measure every function at every size on the cluster's parties, and return the record.

    The functions take turns, so that a busy moment of the machine does not fall on one of them alone. Sizes from 1,000,000
    on are run once.

    Args:
        cluster: running parties.
        sizes: numbers of elements.
        repetitions: of every function at every size.
        progress: told of each measurement.
        chosen: what to measure instead of `cases()`.
    """
    measured = [(case, exp) for case in chosen or cases() for exp in case.exps]
    rounds = [(size, 1 if size >= _ONCE else repetitions) for size in sizes]
    total, done = sum(count for _, count in rounds) * len(measured), 0
    rows = []
    for size, count in rounds:
        costs: list[list] = [[] for _ in measured]
        errors = [0.0] * len(measured)
        for _ in range(count):
            for index, (case, exp) in enumerate(measured):
                if progress is not None:
                    progress(done, total, f"{case.kind} {case.name} {exp} {size:,}")
                cost, error = _measure(cluster, case, exp, size)
                costs[index].append(cost)
                errors[index] = max(errors[index], error)
                done += 1
        rows += [_row(*item, size, *result) for item, *result in zip(measured, costs, errors, strict=True)]
    return {"benchmark": "activations", "repetitions": repetitions, "softmax_row": ROW, "rows": rows}


def table(record: dict[str, Any], size: int | None = None) -> pd.DataFrame:
    """The record's rows as a table, of one size or of all; bytes also by element."""
    frame = pd.DataFrame(record["rows"])
    frame.insert(frame.columns.get_loc("sends"), "bytes_per_element", frame["bytes"] / frame["elements"])
    return frame if size is None else frame[frame["elements"] == size].reset_index(drop=True)


def measure(
    sizes: Annotated[str, typer.Option(help="Numbers of elements.")] = "1000,10000,100000,1000000",
    repetitions: Annotated[int, typer.Option(help="Repetitions of every function at every size.")] = 3,
    record: RecordOption = None,
) -> None:
    """Measure every approximation beside the exact function on three parties: error, time, bytes, messages."""
    chosen = parse_numbers(sizes, "--sizes")
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        found = run(cluster, chosen, repetitions, bar)
    finish(record_path(record, "activations"), found, table(found))


def _measure(cluster: LocalCluster, case: Case, exp: str, size: int):
    session = cluster.session(EngineConfig(exp=exp))
    values = case.values(size)
    inputs = case.inputs(values)
    session.share({"bench.x": inputs})
    cost = session.run(_plan(case.function, Spec.of(inputs)))
    error = case.max_error(values, session.reveal("bench.y"))
    session.delete(["bench.x", "bench.y"])
    return cost, error


def _plan(function: Callable, spec: Spec) -> Plan:
    return compile_plan([Node("run", function, ("bench.x",), ("bench.y",))], {"bench.x": spec}, ("bench.y",))


def _row(case: Case, exp: str, size: int, costs: list, error: float) -> dict[str, Any]:
    # The parties' own time: the client's would add a round trip to each.
    times = [1000 * float(cost.by_program()["seconds"].iloc[0]) for cost in costs]
    return {
        "kind": case.kind,
        "function": case.name,
        "exp": exp,
        "elements": int(np.prod(case.values(size).shape)),
        "max_error": error,
        "relative": case.relative,
        "ms": statistics.median(times),
        "ms_low": min(times),
        "ms_high": max(times),
        "bytes": costs[0].bytes,
        "sends": costs[0].sends,
    }


@dataclass(frozen=True)
class GroupNorm:
    """`Protocols.group_norm` with an approximate inverse root. For few groups: their squares come from one Gram matrix."""

    name: str
    inverse_sqrt: InverseSqrt

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, params, x, *, groups, eps):
        rows = x.reshape(x.shape[0] * groups, -1)
        count, width = rows.shape
        centred = rows - rows @ np.full((width, 1), 1 / width, np.float32)
        # The diagonal of one matrix product, truncated once a row, where squares are truncated one by one.
        gram = lax.dot_general(centred, centred * jnp.float32(1 / width), (((1,), (1,)), ((), ())))
        variance = gram.reshape(-1)[:: count + 1]
        y = centred * self.inverse_sqrt(variance + jnp.float32(eps))[:, None]
        return with_affine(params, y.reshape(x.shape))


@dataclass(frozen=True)
class LayerNorm:
    """`Protocols.layer_norm` with an approximate inverse root. For many short columns."""

    name: str
    inverse_sqrt: InverseSqrt

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, params, x, *, eps):
        batch, channels = x.shape[:2]
        columns = jnp.moveaxis(x.reshape(batch, channels, -1), 1, 0).reshape(channels, -1)
        mean_of = np.full((1, channels), 1 / channels, np.float32)
        centred = columns - mean_of @ columns
        variance = mean_of @ (centred * centred)
        y = centred * self.inverse_sqrt(variance + jnp.float32(eps))
        y = jnp.moveaxis(y.reshape(channels, batch, -1), 0, 1).reshape(x.shape)
        return with_affine(params, y)


_SHOWN = {  # of each kind: the published function, the corrected one, and ours with its scales folded
    "exp": ("exp_cipherdm", "exp_corrected", "exp_bounded4_folded"),
    "silu": ("silu_cipherdm", "silu_corrected", "silu_degree8_bound6_folded"),
    "mish": ("mish_cipherdm", "mish_corrected", "mish_degree6_bound6_folded"),
    "softmax": ("softmax_cipherdm", "softmax_corrected", "softmax_bounded4_calibrated_folded"),
}

_WAYS = ("published", "corrected", "ours")


def function_gains(record: Mapping[str, Any], elements: int = 100_000) -> pd.DataFrame:
    """Each function that CipherDM replaces, four ways, from the record of `bench activations`.

    Returns:
        Indexed by kind and way ("direct", "direct-pade", "published", "corrected", "ours"): largest error, ms and bytes an
        element; how many times less time and fewer bytes than "direct" and than "direct-pade". Softmax rows are of about
        `elements` numbers in all. The error of our exp is a share of the value, on its own domain.
    """
    rows = [row for row in record["rows"] if row["elements"] == elements]
    found = {}
    for kind, functions in _SHOWN.items():
        names = {(f, "taylor"): way for f, way in zip(functions, _WAYS, strict=True)}
        names |= {("direct", "taylor"): "direct", ("direct", "pade"): "direct-pade"}
        mine = {
            names[key]: row for row in rows if row["kind"] == kind and (key := (row["function"], row["exp"])) in names
        }
        for way in (*BASELINES, *_WAYS):
            row = mine[way]
            found[kind, way] = {
                "largest error": row["max_error"],
                "ms": row["ms"],
                "bytes an element": row["bytes"] / elements,
                **{f"time, {base} /": mine[base]["ms"] / row["ms"] for base in BASELINES},
                **{f"bytes, {base} /": mine[base]["bytes"] / row["bytes"] for base in BASELINES},
            }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["function", "way"])


def of_function(kind: str, function: str, name: str = "max_error", *, exp: str = "taylor", each: bool = False) -> Value:
    """Return the function that takes a number of one function, at its smallest size, from the record.

    Args:
        kind, function, exp: Names as in the record.
        name: Column of the number.
        each: Whether to divide it by the number of elements.
    """

    def value(records: Records) -> float:
        rows = [
            row
            for row in records["activations"]["rows"]
            if (row["kind"], row["function"], row["exp"]) == (kind, function, exp)
        ]
        row = min(rows, key=lambda row: row["elements"])
        return float(row[name]) / (row["elements"] if each else 1)

    return value


def figure(records: Path) -> Figure:
    """Draw error against bytes of every SiLU."""
    record = read_record(records / "activations.json")
    sizes = {row["elements"] for row in record["rows"]}
    return pareto_figure(record, "silu", "bytes", elements=100_000 if 100_000 in sizes else max(sizes))


TARGET = Target(
    "activations",
    "Error and cost of every function",
    "exp, SiLU and Mish by polynomials cost less than the exact functions on SPU; as published they are coarse",
    "paper",
    (Command("activations", ("bench", "activations"), (), ("--sizes", "1000", "--repetitions", "1")),),
    (
        Check("largest error of exp, published", 0.0485, 0.001, of_function("exp", "exp_cipherdm"), 0.001, 4),
        Check("largest error of exp, corrected", 0.0055, 0.0005, of_function("exp", "exp_corrected"), 0.0005, 4),
        Check("largest error of SiLU, published", 0.064, 0.004, of_function("silu", "silu_cipherdm"), 0.004, 3),
        Check("bytes an element, SiLU direct", 1832, 2, of_function("silu", "direct", "bytes", each=True), 2, 0),
        Check(
            "bytes an element, SiLU direct, Pade",
            3072,
            3,
            of_function("silu", "direct", "bytes", exp="pade", each=True),
            3,
            0,
        ),
        Check(
            "bytes an element, SiLU published", 728, 1, of_function("silu", "silu_cipherdm", "bytes", each=True), 1, 0
        ),
    ),
    figure,
)
