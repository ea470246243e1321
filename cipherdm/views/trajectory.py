"""Sampling step by step, from records of `cipherdm bench trajectory`: a film strip, PSNR over the steps, and what it cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..bench.recording import Recording
from ..costs import Network
from .style import GREY, PALETTE, describe, new_figure

ROWS = ("sample, plaintext", "sample, secure", "predicted, plaintext", "predicted, secure")
_LINES = {  # of the PSNR figure: label, colour, line, in the order in which they are drawn
    "secure_to_exact": ("on shares, against the exact functions in plaintext", PALETTE[0], "-"),
    "emulated_to_exact": ("the same functions in plaintext, against the exact ones", PALETTE[1], "--"),
    "secure_to_emulated": ("on shares, against the same functions in plaintext", PALETTE[2], ":"),
}


def filmstrip(recording: Recording, picture: int = 0, columns: int = 9) -> Figure:
    """One picture on its way, at evenly spaced steps: the sample and the predicted picture, plaintext above secure.

    The number below a secure picture is its PSNR to the one above it, in dB.
    """
    shown = np.unique(np.linspace(0, recording.steps, columns).round().astype(int))
    figure = new_figure(1.35 + 0.86 * len(shown), 4.5)
    axes = figure.subplots(4, len(shown))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for axis, text in zip(axes[:, 0], ROWS, strict=True):
        axis.set_ylabel(text.replace(", ", ",\n"), fontsize=9, rotation=0, ha="right", va="center")
    ratios = {name: recording.likeness(name)[:, picture] for name in ("secure_to_exact", "predicted_to_exact")}
    for column, step in zip(axes.T, shown, strict=True):
        column[0].set_title(f"step {step}" if step else "noise", fontsize=9)
        _draw_pair(
            column[:2], recording.samples[:, step, picture], ratios["secure_to_exact"][step - 1] if step else None
        )
        if step:
            _draw_pair(column[2:], recording.predicted[:, step - 1, picture], ratios["predicted_to_exact"][step - 1])
    last = ratios["secure_to_exact"]
    return describe(
        figure,
        f"{recording.name}: {_title(recording, picture)} at steps {_numbers(shown)}. Four rows: the sample in plaintext and on "
        f"shares, which goes from noise to a digit, and the picture that each step predicts, in plaintext and on shares. "
        f"The samples' PSNR is {last[0]:.1f} dB after the first step and {last[-1]:.1f} dB after the last.",
    )


def psnr_by_step(recordings: Sequence[Recording]) -> Figure:
    """PSNR of the samples after each step, medians over the pictures, a panel for each recording.

    Three comparisons: secure sampling with exact plaintext, and its two parts, the replaced functions (in plaintext) and
    computing on shares. The band goes from the lowest to the highest secure picture.
    """
    figure = new_figure(max(6.5, 3.4 * len(recordings)), 3.5)
    panels = figure.subplots(1, len(recordings), sharey=True, squeeze=False)[0]
    told = []
    for axis, recording in zip(panels, recordings, strict=True):
        steps = np.arange(1, recording.steps + 1)
        for pair, (label, colour, line) in _LINES.items():
            axis.plot(
                steps,
                np.median(recording.likeness(pair), axis=1),
                color=colour,
                linestyle=line,
                linewidth=2,
                label=label,
            )
        secure = recording.likeness("secure_to_exact")
        axis.fill_between(
            steps,
            secure.min(axis=1),
            secure.max(axis=1),
            color=PALETTE[0],
            alpha=0.15,
            linewidth=0,
            label="from the lowest picture to the highest, on shares against exact",
        )
        axis.set(title=recording.name, xlabel="step")
        axis.title.set_fontsize(10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="#dddddd")
        medians = {pair: np.median(recording.likeness(pair)[-1]) for pair in _LINES}
        told.append(
            f"{recording.name}: from {np.median(secure[0]):.0f} dB to {medians['secure_to_exact']:.1f} dB, the functions alone "
            f"{medians['emulated_to_exact']:.1f} dB, computing on shares alone {medians['secure_to_emulated']:.1f} dB"
        )
    panels[0].set_ylabel("PSNR in dB, median")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    return describe(
        figure,
        "Lines, the PSNR of the samples after each step, which falls as noise gives way to a picture. "
        + "; ".join(told)
        + ".",
    )


def costs_so_far(recording: Recording, networks: Sequence[Network], steps: Sequence[int]) -> pd.DataFrame:
    """What sampling has cost up to some steps: seconds on the recording's machine and over networks, MB, messages, rounds."""
    columns = {"s, here": recording.so_far("seconds")}
    columns |= {f"s, {network.name}": recording.seconds_over(network) for network in networks}
    columns |= {"MB": recording.so_far("bytes") / 1e6, "messages": recording.so_far("sends").astype(int)}
    columns |= {"rounds": recording.so_far("rounds").astype(int)}
    return pd.DataFrame(columns).loc[list(steps)].rename_axis("after step")


def likenesses(recordings: Sequence[Recording]) -> pd.DataFrame:
    """PSNR in dB of the finished pictures, a row for each recording: medians of the three comparisons, and the lowest."""
    rows = {}
    for recording in recordings:
        last = {pair: recording.likeness(pair)[-1] for pair in _LINES}
        rows[recording.name] = {
            "secure to exact": np.median(last["secure_to_exact"]),
            "lowest": last["secure_to_exact"].min(),
            "functions alone": np.median(last["emulated_to_exact"]),
            "shares alone": np.median(last["secure_to_emulated"]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def shown_pixels(levels: np.ndarray) -> np.ndarray:
    """[C, H, W] of one or three channels to what `imshow` takes."""
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)


def _draw_pair(axes, pair: np.ndarray, ratio: float | None) -> None:
    for axis, levels in zip(axes, pair, strict=True):
        axis.imshow(shown_pixels(levels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    if ratio is not None:
        axes[1].set_xlabel(f"{ratio:.1f} dB", fontsize=8, color=GREY, labelpad=2)


def _title(recording: Recording, picture: int) -> str:
    labels = recording.about.get("labels")
    return f"label {labels[picture]}" if labels else f"picture {picture}"


def _numbers(steps: np.ndarray) -> str:
    return ", ".join(map(str, steps))
