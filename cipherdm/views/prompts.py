"""Pictures that prompts asked for, secure below plaintext, with what they cost: from records of `cipherdm bench prompts`."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..bench.prompts import DrawnPrompts
from .sheet import wrapped
from .style import GREY, describe, new_figure
from .trajectory import shown_pixels

ACROSS = 4
"""Prompts side by side."""


def prompts_sheet(drawn: DrawnPrompts) -> Figure:
    """Each prompt above its pictures, plaintext and secure, with PSNR, seconds and MB of all parties below."""
    rows = drawn.about["rows"]
    columns = min(len(rows), ACROSS)
    bands = -(-len(rows) // columns)
    titles = [wrapped(row["prompt"]) for row in rows]
    lines = 1 + max(title.count("\n") for title in titles)
    figure = new_figure(0.4 + 2.0 * columns, (3.9 + 0.17 * lines) * bands)
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for index, (row, title) in enumerate(zip(rows, titles, strict=True)):
        band, column = divmod(index, columns)
        for way, levels in enumerate(drawn.pictures[:, index]):
            axis = axes[2 * band + way, column]
            axis.imshow(shown_pixels(levels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes[2 * band, column].set_title(title, fontsize=9, pad=4)
        told = f"{row['psnr_db']:.1f} dB, {row['seconds']:.0f} s\n{row['bytes'] / 1e6:,.0f} MB"
        axes[2 * band + 1, column].set_xlabel(told, fontsize=8.5, color=GREY, labelpad=3)
    for band in range(bands):
        for way, text in enumerate(("plaintext", "secure")):
            axes[2 * band + way, 0].set_ylabel(text, fontsize=9)
    return describe(figure, _description(drawn))


def prompts_table(drawn: DrawnPrompts) -> pd.DataFrame:
    """A row for each prompt: PSNR in dB, secure and emulated; what the parties computed and sent, and held at most."""
    rows = pd.DataFrame(drawn.about["rows"])
    columns = {
        "PSNR": rows["psnr_db"],
        "emulated": rows["emulated_psnr_db"],
        "s": rows["seconds"],
        "s, with all": rows["whole_seconds"],
        "MB": rows["bytes"] / 1e6,
        "messages": rows["sends"],
        "rounds": rows["rounds"],
        "MiB a party": rows["peak_memory"] / 2**20,
    }
    return pd.DataFrame(columns).set_index(rows["prompt"])


def _description(drawn: DrawnPrompts) -> str:
    about = drawn.about
    found = [row["psnr_db"] for row in about["rows"]]
    lowest = about["rows"][int(np.argmin(found))]["prompt"]
    seconds = [row["seconds"] for row in about["rows"]]
    sampler = f"{about['scheduler'].upper()}-{about['steps']}"
    return (
        f"{len(found)} prompts drawn by {about['model']} with {sampler}, in plaintext and below it on shares under "
        f"{about['protocols']}, from the same noise. PSNR between the two: mean {np.mean(found):.1f} dB, lowest "
        f"{min(found):.1f} dB for {lowest!r}. The parties computed {min(seconds):.0f} to {max(seconds):.0f} seconds for a "
        f"picture. Prompts: {'; '.join(row['prompt'] for row in about['rows'])}."
    )
