"""Figures and tables of a step's time, bytes and rounds, from records of `cipherdm bench breakdown`; and the target."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from cipherdm.costs import Network, latency
from cipherdm.errors import CipherDMError
from cipherdm.records import read_record
from cipherdm.views.style import PALETTE, describe, new_figure

from .breakdown import GROUPS, REST
from .target import MODELS, TEN, TINY, Check, Command, Records, Target, Value

COLOURS = {
    "softmax": PALETTE[1],
    "attention products": PALETTE[4],
    "activation": PALETTE[0],
    "normalisation": PALETTE[2],
    "convolution": PALETTE[3],
    "linear": PALETTE[5],
    REST: "#bbbbbb",
}
"""Colour of each kind of layer, in the order in which bars stack them."""

UNITS = {
    "seconds": ("seconds", 1.0),
    "bytes": ("MB, all parties", 1e6),
    "sends": ("messages, all parties", 1.0),
    "rounds": ("rounds", 1.0),
}
"""Label of each quantity's axis, and the unit by which values are divided."""

_TWO_LINES = {
    "first and last convolution": "first and last\nconvolution",
    "down- and upsampling": "down- and\nupsampling",
}
_SHORT = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}
_SMALL = 8  # points
_CHARACTER = 0.075  # inches that a character takes at _SMALL


def breakdown_frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a record, without parts that cost nothing in any variant."""
    frame = pd.DataFrame(record["rows"])
    used = frame.groupby("group")[["seconds", "bytes"]].sum().max(axis=1)
    return frame[frame["group"].isin(used[used > 0].index)]


def over_network(record: Mapping[str, Any], network: Network) -> dict[str, Any]:
    """Return the record with each row's seconds over a network, by the latency model.

    The parts add up, since the model is linear: a part's messages wait one after the other, whoever sends them.
    """

    def seconds(row: Mapping[str, Any]) -> float:
        return latency(row["seconds"], row["rounds"], row["path_bytes"], network).seconds

    return {**record, "rows": [row | {"seconds": seconds(row)} for row in record["rows"]], "network": network.name}


def breakdown_bars(record: Mapping[str, Any], quantities: Sequence[str] = ("seconds", "bytes", "rounds")) -> Figure:
    """Draw a stacked bar for each part of the U-Net, by kind of layer; a row of panels per quantity, a panel per variant."""
    frame = breakdown_frame(record)
    variants, groups = list(dict.fromkeys(frame["variant"])), [g for g in GROUPS if g in set(frame["group"])]
    height = 0.45 + (0.62 + 0.27 * len(groups)) * len(quantities)
    figure = new_figure(2.0 + 2.75 * len(variants), height)
    panels = figure.subplots(len(quantities), len(variants), sharey=True, sharex="row", squeeze=False)
    told, over = [], f" over {record['network']}" if "network" in record else ""
    for row, quantity in zip(panels, quantities, strict=True):
        label, unit = _unit(quantity)
        longest = frame.groupby(["variant", "group"])[quantity].sum().max() / unit
        for axis, variant in zip(row, variants, strict=True):
            chosen = frame[frame["variant"] == variant]
            sums = chosen.pivot_table(quantity, "group", "kind", aggfunc="sum", fill_value=0, observed=False)
            sums = sums.reindex(index=groups, columns=list(COLOURS), fill_value=0) / unit
            for (kind, colour), left in zip(
                COLOURS.items(), (sums.cumsum(axis="columns") - sums).T.to_numpy(), strict=True
            ):
                axis.barh(range(len(sums)), sums[kind], left=left, color=colour, height=0.75)
            axis.grid(axis="x", color="#dddddd")
            axis.set_axisbelow(True)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.tick_params(axis="x", labelsize=_SMALL)
            total = sums.to_numpy().sum()
            axis.set_xlim(0, 1.05 * longest)
            axis.set_title(f"{variant}: {_short(total)} {label.split(',')[0]}", fontsize=10)
            kinds = sums.sum().sort_values(ascending=False)
            told.append(f"{variant} {_short(total)} {label}, of which {kinds.index[0]} {kinds.iloc[0] / total:.0%}")
        row[0].set_yticks(range(len(groups)), [_TWO_LINES.get(group, group) for group in groups], fontsize=_SMALL)
        row[1 if len(row) > 1 else 0].set_xlabel(label + over * (quantity == "seconds"), fontsize=9)
    panels[0, 0].invert_yaxis()
    _legend(figure, COLOURS, columnspacing=1.2, handlelength=1.2)
    return describe(
        figure, f"Stacked bars for a denoising step of {record['model']}{over}, by part: {'; '.join(told)}."
    )


def breakdown_icicle(record: Mapping[str, Any], variant: str, quantity: str = "seconds") -> Figure:
    """Draw a step as an icicle: its groups of parts below it, their parts below those, and in each part the kinds of layers."""
    label, unit = _unit(quantity)
    frame = breakdown_frame(record)
    variants = list(dict.fromkeys(frame["variant"]))
    if variant not in variants:
        raise CipherDMError(f"the record has no {variant!r}: there are {', '.join(variants)}.")
    frame = frame[frame["variant"] == variant]
    total = frame[quantity].sum()
    figure = new_figure(10.5, 3.3)
    axis = figure.add_subplot()
    _cell(axis, 0, 1, 0, "#eeeeee", f"{variant}, one step: {_short(total / unit)} {label}")
    left, told = 0.0, []
    for group in [g for g in GROUPS if g in set(frame["group"])]:
        parts = frame[frame["group"] == group]
        share = parts[quantity].sum() / total
        _cell(axis, left, share, 1, "#dddddd", f"{_TWO_LINES.get(group, group)}\n{share:.0%}")
        told.append(f"{group} {share:.0%}")
        for part, rows in parts.groupby("part", sort=False):
            width = rows[quantity].sum() / total
            _cell(axis, left, width, 2, "#cccccc", _short_name(part))
            kinds = rows.set_index("kind")[quantity].reindex(list(COLOURS), fill_value=0) / total
            for kind, part_width in kinds.items():
                _cell(axis, left, part_width, 3, COLOURS[kind], "")
                left += part_width
    axis.set(xlim=(0, 1), ylim=(4, 0), xticks=[])
    axis.set_yticks([0.5, 1.5, 2.5, 3.5], ["step", "group", "part", "layers"], fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    present = set(frame.loc[frame[quantity] > 0, "kind"])
    _legend(figure, [kind for kind in COLOURS if kind in present])
    return describe(
        figure,
        f"An icicle of one step of {record['model']} with {variant}, {_short(total / unit)} {label}: {', '.join(told)}. "
        f"Below each part the kinds of layers that it consists of.",
    )


def breakdown_table(record: Mapping[str, Any], by: str = "group") -> pd.DataFrame:
    """Return seconds, MB and rounds by "group" of parts or "kind" of layer, for each variant; sums in the last row."""
    frame = breakdown_frame(record)
    order = {"group": GROUPS, "kind": tuple(COLOURS)}
    if by not in order:
        raise CipherDMError(f"rows of a breakdown are by group or by kind, not by {by!r}.")
    columns = {}
    for variant in dict.fromkeys(frame["variant"]):
        groups = frame[frame["variant"] == variant].groupby(by)
        for quantity, name in (("seconds", "s"), ("bytes", "MB"), ("rounds", "rounds")):
            columns[variant, name] = groups[quantity].sum() / _unit(quantity)[1]
    table = pd.DataFrame(columns)
    table = table.reindex([name for name in order[by] if name in table.index]).fillna(0.0)
    return pd.concat([table, table.sum().to_frame("all").T])


def _unit(quantity: str) -> tuple[str, float]:
    if quantity not in UNITS:
        raise CipherDMError(f"no quantity is called {quantity!r}: choose from {', '.join(UNITS)}.")
    return UNITS[quantity]


def _legend(figure: Figure, kinds: Iterable[str], **style) -> None:
    handles = [Patch(color=COLOURS[kind], label=kind) for kind in kinds]
    style |= {"loc": "outside lower center", "frameon": False, "fontsize": 9}
    figure.legend(handles=handles, ncols=len(handles), **style)


def _cell(axis: Axes, left: float, width: float, row: int, colour: str, text: str) -> None:
    if not width:
        return
    edge = {"edgecolor": "white", "linewidth": 0.8 if width > 0.004 else 0}
    axis.add_patch(Rectangle((left, row + 0.03), width, 0.94, facecolor=colour, **edge))
    inches, characters = 9.3 * width, max(map(len, text.split("\n")))
    if characters * _CHARACTER < inches:
        axis.text(left + width / 2, row + 0.5, text, ha="center", va="center", fontsize=9.5 if row < 2 else _SMALL)
    elif inches > 0.16 and row == 2 and characters * _CHARACTER < 0.62:
        axis.text(left + width / 2, row + 0.5, text, ha="center", va="center", fontsize=7, rotation=90)


def _short_name(part: str) -> str:
    """Return a short name: "down 0.1" for "down_blocks.0.resnets.1", "conv in" for "conv_in"."""
    head, _, rest = part.partition(".")
    numbers = [piece for piece in rest.split(".") if piece.isdecimal()]
    return f"{_SHORT[head]} {'.'.join(numbers)}".strip() if head in _SHORT else part.replace("_", " ")


def _short(number: float) -> str:
    """Return a number with three digits, or a whole number with separators."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def share_of_step(model: str, variant: str, quantity: str, by: Literal["group", "kind"], *names: str) -> Value:
    """Return the function that takes the share of some groups of parts, or kinds of layers, in a step, in percent."""

    def value(records: Records) -> float:
        rows = [row for row in records[f"breakdown_{model}"]["rows"] if row["variant"] == variant]
        mine = sum(row[quantity] for row in rows if row[by] in names)
        return 100 * mine / sum(row[quantity] for row in rows)

    return value


TARGET = Target(
    "breakdown",
    "A step by part of the U-Net and kind of layer",
    "noise prediction takes nearly all of the time, and in it softmax and activations are expensive",
    "paper",
    tuple(Command(f"breakdown_{model}", ("bench", "breakdown", model), (), ("--repetitions", "1")) for model in MODELS),
    tuple(
        Check(
            f"{model}, direct: {what}, share of {of}", *expected, share_of_step(model, "direct", of, *names), *printed
        )
        for model, what, of, names, expected, printed in (
            (TINY, "softmax and activations", "bytes", ("kind", "softmax", "activation"), (90.1, 2), (2, 1, "%")),
            (TINY, "convolutions", "bytes", ("kind", "convolution"), (1.3, 2), (2, 1, "%")),
            (TINY, "normalisation", "rounds", ("kind", "normalisation"), (30.6, 2), (2, 1, "%")),
            (TEN, "residual blocks", "bytes", ("group", "residual blocks"), (94.2, 2), (2, 1, "%")),
            (TEN, "the scheduler's update", "seconds", ("group", "scheduler update"), (1, 0), (0, 2, "%", "most")),
        )
    ),
    lambda records: breakdown_bars(read_record(records / f"breakdown_{TINY}.json")),
    order=30,
)
