"""Error against cost of all functions of a kind, and the frontier: those that no other function beats in both."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..errors import CipherDMError
from .style import PALETTE, Shown
from .widgets import Control, Explorer

Cost = Literal["bytes", "sends", "ms"]

AXES = {"bytes": "bytes per element, all parties", "sends": "messages, all parties", "ms": "milliseconds"}

_KINDS = {"silu": "SiLU", "mish": "Mish", "gelu": "GeLU", "exp": "exp", "softmax": "softmax"}

_PUBLISHED = {
    "cipherdm": "CipherDM",
    "llama": "SPU's LLaMA",
    "bumblebee": "BumbleBee",
    "puma": "PUMA",
    "quad": "Quad (MPCFormer)",
    "2quad": "2Quad (MPCFormer)",
}

# Marker and colour of each family: the shape tells as much as the colour does.
_STYLES = {
    "direct": ("s", PALETTE[7]),
    "published": ("o", PALETTE[1]),
    "corrected": ("D", PALETTE[3]),
    "ours": ("^", PALETTE[5]),
    "ours, scales folded": ("v", PALETTE[0]),
}


@dataclass(frozen=True)
class Point:
    """A function in the figure: the text beside it, its family (a key of `_STYLES`), its cost and its largest error."""

    label: str
    family: str
    cost: float
    error: float
    relative: bool = False  # True if the error is a share of the value
    bound: float | None = None  # of a calibrated function's domain


def pareto_points(
    record: Mapping[str, Any], kind: str, cost: Cost = "bytes", elements: int = 100_000
) -> tuple[Point, ...]:
    """Read the points of a kind ("silu", "mish", "gelu", "exp" or "softmax") from the record of `cipherdm bench activations`.

    Raises CipherDMError for a cost or a kind that the record does not have at this number of elements.
    """
    if cost not in AXES:
        raise CipherDMError(f"no cost is called {cost!r}: there are {', '.join(AXES)}.")
    rows = [row for row in record["rows"] if row["kind"] == kind and row["elements"] == elements]
    if not rows:
        kinds = sorted({row["kind"] for row in record["rows"] if row["elements"] == elements})
        raise CipherDMError(
            f"the record has no {kind!r} on {elements:,} elements: there are {', '.join(kinds) or 'none'}."
        )
    return tuple(_point(row, cost) for row in rows)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Select the points that no other beats in cost and equals or beats in error, by ascending cost."""
    best, kept = np.inf, []
    for point in sorted(points, key=lambda p: (p.cost, p.error)):
        if point.error < best:
            kept.append(point)
            best = point.error
    return kept


def pareto_explorer(
    record: Mapping[str, Any], kind: str | None = None, cost: Cost = "bytes", elements: int = 100_000
) -> Explorer:
    """Error against cost, both logarithmic, under controls for the kind of function and for the cost.

    Down and to the left is better; the line joins the functions that nothing beats. It begins with a kind, by default the
    record's first, and a cost. Raises CipherDMError as `pareto_points`.
    """
    found = {row["kind"] for row in record["rows"]} | ({kind} - {None})
    kinds = {each: _KINDS.get(each, each) for each in [*_KINDS, kind] if each in found}
    points = {each: {way: _scattered(pareto_points(record, each, way, elements)) for way in AXES} for each in kinds}
    controls = {
        "kind": Control("function", list(kinds), kind or next(iter(kinds)), list(kinds.values()), "choice"),
        "cost": Control("cost", list(AXES), cost, list(AXES.values()), "choice"),
    }
    data = {"points": points, "axes": AXES, "kinds": kinds, "families": _STYLES, "elements": elements}
    return Explorer(controls, scene="pareto", data=data)


def pareto_figure(record: Mapping[str, Any], kind: str, cost: Cost = "bytes", elements: int = 100_000) -> Shown:
    """Draw what `pareto_explorer` begins with, without its controls."""
    return pareto_explorer(record, kind, cost, elements).shown


def _scattered(points: Sequence[Point]) -> list[dict[str, Any]]:
    best = frontier(points)
    return [asdict(point) | {"cost": float(f"{point.cost:.4g}"), "best": point in best} for point in points]


def _point(row: Mapping[str, Any], cost: Cost) -> Point:
    amount = row["bytes"] / row["elements"] if cost == "bytes" else row[cost]
    name = row["function"]
    label, family = _name(name.removeprefix(f"{row['kind']}_"), row["exp"])
    if name == "quad":  # ours, since MPCFormer's stands for GeLU
        label, family = "Quad", "ours"
    bound = re.search(r"(?:bound|bounded|limit)(\d+)", name)
    return Point(label, family, amount, row["max_error"], row["relative"], float(bound[1]) if bound else None)


def _name(name: str, exp: str) -> tuple[str, str]:
    """Return the label and the family of a function called `name` without its kind."""
    if name == "direct":
        return f"direct ({exp})", "direct"
    if name == "corrected":
        return "CipherDM's form, corrected", "corrected"
    if name in _PUBLISHED:
        return _PUBLISHED[name], "published"
    family = "ours, scales folded" if name.endswith("_folded") else "ours"
    plain = re.sub(r"(_bound)?\d+$", "", name.removesuffix("_folded").replace("bounded4_calibrated", "calibrated sum"))
    degree = re.match(r"degree(\d+)", name)
    label = f"degree {degree[1]}" if degree else plain.replace("limit_bound", "limit").replace("_", " ")
    return label, family
