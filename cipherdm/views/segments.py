"""A long sampling run in segments: secure beside plaintext, likeness on the way, and what each segment took."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import PALETTE, describe, new_figure


def segments_figure(record: Mapping[str, Any], samples: np.ndarray, columns: int = 5) -> Figure:
    """The samples at a few ends of segments, plaintext above secure, then PSNR and seconds a step over the run.

    Args:
        record: of `cipherdm bench segments`.
        samples: uint8 [2, segments + 1, B, C, H, W], plaintext and secure.
        columns: how many moments are shown, the noise and the end among them.
    """
    rows, pictures = record["rows"], samples.shape[2]
    ends = np.array([row["first"] + row["steps"] for row in rows])
    moments = np.unique(np.linspace(0, len(rows), columns).round().astype(int))
    figure = new_figure(8.0, 1.05 + 1.5 * pictures + 2.4)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5 * pictures + 0.6, 2.6))
    _draw_moments(above, record, samples, moments, ends)
    likeness, speed = below.subplots(1, 2)
    psnr = np.array([row["psnr_db"] for row in rows])
    for index, values in enumerate(psnr.T):
        likeness.plot(ends, values, marker=".", color=PALETTE[index % len(PALETTE)], label=_name(record, index))
    likeness.set(xlabel="step", ylabel="PSNR to plaintext in dB")
    likeness.legend(fontsize=8, frameon=False)
    times = [row["seconds"] / row["steps"] for row in rows]
    speed.step(
        [row["first"] for row in rows] + [ends[-1]], [*times, times[-1]], where="post", color=PALETTE[2], linewidth=2
    )
    speed.set(xlabel="step", ylabel="seconds a step", ylim=(0, 1.15 * max(times)))
    for axis in (likeness, speed):
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(color="#dddddd")
    return describe(
        figure,
        f"{pictures} pictures of {record['model']} in {record['steps']} steps of {record['scheduler'].upper()} under "
        f"{record['protocols']}: from noise to digits, in plaintext and on shares, at steps {_steps(moments, ends)}. Below, "
        f"the PSNR of the secure samples to the plaintext ones falls from {psnr[0].min():.0f} dB to "
        f"{', '.join(f'{value:.1f}' for value in psnr[-1])} dB; a step took {min(times):.2f} to {max(times):.2f} seconds.",
    )


def _draw_moments(
    figure, record: Mapping[str, Any], samples: np.ndarray, moments: np.ndarray, ends: np.ndarray
) -> None:
    pictures = samples.shape[2]
    axes = figure.subplots(2 * pictures, len(moments), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for picture in range(pictures):
        for way, text in enumerate(("plaintext", "secure")):
            line = axes[2 * picture + way]
            line[0].set_ylabel(f"{_name(record, picture)},\n{text}", fontsize=9, rotation=0, ha="right", va="center")
            for axis, moment in zip(line, moments, strict=True):
                axis.imshow(samples[way, moment, picture, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                if way and moment:
                    axis.set_xlabel(f"{record['rows'][moment - 1]['psnr_db'][picture]:.1f} dB", fontsize=8, labelpad=2)
    for axis, moment in zip(axes[0], moments, strict=True):
        axis.set_title(f"step {ends[moment - 1]}" if moment else "noise", fontsize=9)


def _name(record: Mapping[str, Any], index: int) -> str:
    labels = record["labels"]
    return f"label {labels[index]}" if labels else f"picture {index + 1}"


def _steps(moments: np.ndarray, ends: np.ndarray) -> str:
    return ", ".join(str(ends[moment - 1] if moment else 0) for moment in moments)
