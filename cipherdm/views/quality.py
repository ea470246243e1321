"""How good samples are under each set of protocols, from all records of `cipherdm evaluate` that there are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..errors import CipherDMError
from ..records import read_record
from .style import PALETTE, describe, new_figure

ORDER = ("direct", "cipherdm", "cipherdm-corrected", "puma", "fast", "fast-mixed", "fast-guarded")
_MARKERS = "osD^vP"


def read_quality(measurements: Path) -> pd.DataFrame:
    """A row for each record of `cipherdm evaluate`.

    Columns: model, protocols, sampler, accuracy, f1, lenet_fid, samples, overflowed, psnr. `sampler` is the scheduler with its
    steps, "DDIM-50"; `psnr` that of the emulation to exact samples, NaN without one.

    Raises:
        CipherDMError: there is no such record.
    """
    paths = sorted(Path(measurements).glob("quality_*.json"))
    if not paths:
        raise CipherDMError(
            f"there is no record {measurements}/quality_*.json: make them with `cipherdm reproduce --only quality`."
        )
    rows = [
        {
            "model": record["model"],
            "protocols": record["protocols"],
            "sampler": f"{record['scheduler'].upper()}-{record['steps']}",
            "accuracy": record["accuracy"],
            "f1": record["f1"],
            "lenet_fid": record["lenet_fid"],
            "samples": record["count"],
            "overflowed": record.get("overflowed", 0),
            "psnr": record.get("emulated", {}).get("psnr", float("nan")),
        }
        for record in map(read_record, paths)
    ]
    frame = pd.DataFrame(rows)
    rank = {name: index for index, name in enumerate(ORDER)}
    keys = frame.assign(rank=[rank.get(name, len(rank)) for name in frame["protocols"]])
    return frame.loc[keys.sort_values(["model", "rank", "sampler"]).index].reset_index(drop=True)


def quality_figure(table: pd.DataFrame, models: Sequence[str], samplers: Sequence[str]) -> Figure:
    """Accuracy and LeNet-FID of each set of protocols, a row of panels for each model and a marker for each sampler.

    Better is right on the left panel and left on the right one.

    Args:
        table: as `read_quality` returns it.
        models: which to show.
        samplers: which to show, such as "DDIM-50"; up to six.
    """
    chosen = table[table["model"].isin(models) & table["sampler"].isin(samplers)]
    samplers = [name for name in samplers if name in set(chosen["sampler"])]
    names = list(
        dict.fromkeys([name for name in ORDER if name in set(chosen["protocols"])] + list(chosen["protocols"]))
    )
    figure = new_figure(8.0, 1.0 + (0.75 + 0.3 * len(names)) * len(models))
    panels = figure.subplots(len(models), 2, sharex="col", sharey=True, squeeze=False)
    told = []
    for line, model in zip(panels, models, strict=True):
        for index, sampler in enumerate(samplers):
            rows = chosen[(chosen["model"] == model) & (chosen["sampler"] == sampler)]
            height = [names.index(name) + 0.16 * (index - (len(samplers) - 1) / 2) for name in rows["protocols"]]
            for axis, column in zip(line, ("accuracy", "lenet_fid"), strict=True):
                axis.scatter(
                    rows[column], height, color=PALETTE[index], marker=_MARKERS[index], s=36, label=sampler, zorder=3
                )
            told += [
                f"{row.protocols} on {model}, {sampler}: {row.accuracy:.1%}, {row.lenet_fid:.2g}"
                for row in rows.itertuples()
            ]
        line[0].set_title(model, fontsize=10, loc="left")
        for axis in line:
            axis.grid(axis="x", color="#dddddd")
    panels[0, 0].set_yticks(np.arange(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.4, -0.6)
    panels[-1, 0].set(xlabel="accuracy: LeNet reads the digit asked for", xlim=(-0.03, 1.03))
    panels[-1, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    panels[-1, 1].set(xlabel="LeNet-FID, logarithmic", xscale="log")
    panels[-1, 1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[-1, 1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[-1, 1].xaxis.set_minor_formatter(NullFormatter())
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return describe(figure, "Points, accuracy on the left and LeNet-FID on the right: " + "; ".join(told) + ".")
