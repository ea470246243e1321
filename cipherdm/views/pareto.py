"""Error against cost of all functions of a kind, and the frontier: those that no other function beats in both."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from ..errors import CipherDMError
from .style import GREY, PALETTE, describe, new_figure
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

# Where a label may stand, in points from the middle of its marker, the best first.
_OFFSETS = [(9, 0), (-9, 0), (0, 8), (0, -8), (7, 7), (-7, 7), (7, -7), (-7, -7)]
_OFFSETS += [(0, 18), (0, -18), (10, 16), (10, -16), (-10, 16), (-10, -16), (0, 28), (0, -28)]


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


def pareto_figure(record: Mapping[str, Any], kind: str, cost: Cost = "bytes", elements: int = 100_000) -> Figure:
    """Draw error against cost of a kind's functions, both axes logarithmic; down and to the left is better.

    The line joins the functions that nothing beats. Arguments and errors are those of `pareto_points`.
    """
    points = pareto_points(record, kind, cost, elements)
    best = frontier(points)
    figure = new_figure(7.6, 4.4)
    axis = figure.add_subplot()
    axis.set(xscale="log", yscale="log", xlabel=AXES[cost], ylabel="largest error")
    steps = [(p.cost, p.error) for p in best]
    style = {"color": GREY, "linewidth": 1, "linestyle": "--", "zorder": 1}
    axis.step(*zip(*steps, strict=True), where="post", label="nothing is better", **style)
    for family, (marker, colour) in _STYLES.items():
        members = [p for p in points if p.family == family]
        if members:
            x, y = [p.cost for p in members], [p.error for p in members]
            axis.scatter(x, y, marker=marker, color=colour, s=44, label=_legend(family, members), zorder=3)
    axis.margins(0.16, 0.14)
    axis.grid(alpha=0.25)
    for side in (axis.xaxis, axis.yaxis):  # 200 rather than 2 x 10^2
        low, high = side.get_view_interval()
        side.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6f}".rstrip("0").rstrip(".")))
        side.set_minor_formatter(NullFormatter())
    axis.set_title(f"{_KINDS.get(kind, kind)} on {elements:,} elements: error against cost")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _label(axis, points, steps)
    names = ", ".join(f"{_told(p)} ({p.cost:,.0f}, {p.error:.2g})" for p in sorted(points, key=lambda p: p.cost))
    return describe(
        figure,
        f"Scatter plot of {kind} functions, {AXES[cost]} against largest error, both logarithmic: {names}. "
        f"Nothing is better than {', '.join(map(_told, best))}.",
    )


def pareto_explorer(record: Mapping[str, Any], elements: int = 100_000) -> Explorer:
    """Error against cost under controls for the kind of function and for the cost; `pareto_figure` prints one."""
    kinds = {kind: name for kind, name in _KINDS.items() if any(row["kind"] == kind for row in record["rows"])}
    points = {kind: {cost: _scattered(pareto_points(record, kind, cost, elements)) for cost in AXES} for kind in kinds}
    controls = {
        "kind": Control("function", list(kinds), next(iter(kinds)), list(kinds.values()), "choice"),
        "cost": Control("cost", list(AXES), "bytes", list(AXES.values()), "choice"),
    }
    data = {"points": points, "axes": AXES, "kinds": kinds, "families": _STYLES}
    return Explorer(controls, scene="pareto", data=data)


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


def _told(point: Point) -> str:
    return point.label + (" folded" if point.family == "ours, scales folded" else "")


def _legend(family: str, members: Sequence[Point]) -> str:
    bounds = {p.bound for p in members} - {None}
    text = family + (f"\n  right for |x| ≤ {bounds.pop():g}" if len(bounds) == 1 else "")
    return text + ("\n  (error as a share of the value)" if any(p.relative for p in members) else "")


def _label(axis: Axes, points: Sequence[Point], steps: Sequence[tuple[float, float]]) -> None:
    """Write each point's label where it covers no point, line, other label or border, as near as can be."""
    axis.figure.draw_without_rendering()  # after which the axes stay where they are
    axis.figure.set_layout_engine("none")
    centres = axis.transData.transform([(p.cost, p.error) for p in points])
    corners = axis.transData.transform(steps)
    # Boxes that a label should not cover, each with a penalty for doing so.
    taken = [(Bbox.from_bounds(x - 5, y - 5, 10, 10), 2) for x, y in centres]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
        taken += [(Bbox([[x0, y0 - 1], [x1, y0 + 1]]), 1), (Bbox([[x1 - 1, y1], [x1 + 1, y0]]), 1)]
    inside = axis.get_window_extent()
    for point in points:
        style = {"textcoords": "offset points", "fontsize": 8, "annotation_clip": False}
        text = axis.annotate(point.label, (point.cost, point.error), (0, 0), **style)
        tried = []
        for dx, dy in _OFFSETS:
            _place(text, dx, dy)
            box = text.get_window_extent().padded(1)
            outside = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
            bad = sum(weight for other, weight in taken if box.overlaps(other)) + 4 * outside
            tried.append((bad, len(tried), (dx, dy)))
        _place(text, *min(tried)[2])
        taken.append((text.get_window_extent().padded(1), 3))


def _place(text, dx: float, dy: float) -> None:
    text.set_position((dx, dy))
    text.set_ha("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_va("bottom" if dy > 0 else "top" if dy < 0 else "center")
