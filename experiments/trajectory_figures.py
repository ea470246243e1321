"""Figures of recorded sampling: a film strip, PSNR over the steps, costs so far, and a slider that shows any step."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cipherdm.costs import LAN, WAN, Network
from cipherdm.views.style import GREY, PALETTE, describe, new_figure
from cipherdm.views.widgets import Control, Explorer, MovingPicture

from .recording import draw_levels, labelled_images, shown_pixels
from .target import TEN, TINY, Check, Command, Target, Value
from .trajectory import Recording, read

# Comparisons of the PSNR figure in the order in which they are drawn: label, colour, line.
_LINES = {
    "secure_to_exact": ("on shares, against the exact functions in plaintext", PALETTE[0], "-"),
    "emulated_to_exact": ("the same functions in plaintext, against the exact ones", PALETTE[1], "--"),
    "secure_to_emulated": ("on shares, against the same functions in plaintext", PALETTE[2], ":"),
}


def filmstrip(recording: Recording, picture: int = 0, columns: int = 9) -> Figure:
    """Draw one image on its way, at evenly spaced steps: the sample and the predicted image, plaintext above secure."""
    shown = np.unique(np.linspace(0, recording.steps, columns).round().astype(int))
    figure = new_figure(1.35 + 0.86 * len(shown), 4.5)
    labels = ("sample,\nplaintext", "sample,\nsecure", "predicted,\nplaintext", "predicted,\nsecure")
    axes = labelled_images(figure, labels, [f"step {step}" if step else "noise" for step in shown])
    ratios = {name: recording.likeness(name)[:, picture] for name in ("secure_to_exact", "predicted_to_exact")}
    for column, step in zip(axes.T, shown, strict=True):
        images = [*recording.samples[:, step, picture]]
        if step:  # before the first step nothing is predicted
            images += [*recording.predicted[:, step - 1, picture]]
            for axis, name in zip(column[1::2], ratios, strict=True):
                axis.set_xlabel(f"{ratios[name][step - 1]:.1f} dB", fontsize=8, color=GREY, labelpad=2)
        for axis, levels in zip(column, images, strict=False):
            draw_levels(axis, levels)
    last, classes = ratios["secure_to_exact"], recording.about.get("labels")
    title = f"label {classes[picture]}" if classes else f"picture {picture}"
    return describe(
        figure,
        f"{recording.name}: {title} at steps {', '.join(map(str, shown))}. Four rows: the sample in plaintext and on "
        f"shares, which goes from noise to a digit, and the picture that each step predicts, in plaintext and on shares. "
        f"The samples' PSNR is {last[0]:.1f} dB after the first step and {last[-1]:.1f} dB after the last.",
    )


def psnr_by_step(recordings: Sequence[Recording]) -> Figure:
    """Draw the PSNR of the samples after each step, medians over the images and a band, a panel for each recording."""
    figure = new_figure(max(6.5, 3.4 * len(recordings)), 3.5)
    panels = figure.subplots(1, len(recordings), sharey=True, squeeze=False)[0]
    told = []
    for axis, recording in zip(panels, recordings, strict=True):
        steps = np.arange(1, recording.steps + 1)
        for pair, (label, colour, line) in _LINES.items():
            median = np.median(recording.likeness(pair), axis=1)
            axis.plot(steps, median, color=colour, linestyle=line, linewidth=2, label=label)
        secure = recording.likeness("secure_to_exact")
        text = "from the lowest picture to the highest, on shares against exact"
        band = {"color": PALETTE[0], "alpha": 0.15, "linewidth": 0, "label": text}
        axis.fill_between(steps, secure.min(axis=1), secure.max(axis=1), **band)
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
    shown = panels[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    start = "Lines, the PSNR of the samples after each step, which falls as noise gives way to a picture."
    return describe(figure, f"{start} {'; '.join(told)}.")


def costs_so_far(recording: Recording, networks: Sequence[Network], steps: Sequence[int]) -> pd.DataFrame:
    """Return the cost of sampling up to some steps: seconds, measured and over networks, MB, messages, rounds."""
    columns = {"s, here": recording.so_far("seconds")}
    columns |= {f"s, {network.name}": recording.seconds_over(network) for network in networks}
    columns |= {"MB": recording.so_far("bytes") / 1e6, "messages": recording.so_far("sends").astype(int)}
    columns |= {"rounds": recording.so_far("rounds").astype(int)}
    return pd.DataFrame(columns).loc[list(steps)].rename_axis("after step")


def likenesses(recordings: Sequence[Recording]) -> pd.DataFrame:
    """Return the PSNR in dB of the finished images: medians of three comparisons, and the lowest; a row for each recording."""
    rows = {}
    for recording in recordings:
        secure, emulated, shares = (recording.likeness(pair)[-1] for pair in _LINES)
        rows[recording.name] = [np.median(secure), secure.min(), np.median(emulated), np.median(shares)]
    columns = ["secure to exact", "lowest", "functions alone", "shares alone"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


MAGNIFIED = 8
"""Factor by which drawn differences are enlarged."""

_KINDS = {"samples": "samples", "predicted": "predicted pictures"}
Kind = Literal["samples", "predicted"]

# Inches. Images and bars stand right of their labels.
_WIDTH, _LEFT, _RIGHT, _TOP, _LINE, _BAR = 8.4, 1.3, 0.15, 0.62, 0.27, 5.2


class StepPicture(MovingPicture):
    """A figure of a recorded run at one step, all in one axis, in inches. `show` shows another step without building anew."""

    def __init__(self, recording: Recording, step: int | None = None):
        self._recording = recording
        self._seconds = {"measured": recording.so_far("seconds")}
        self._seconds |= {network.name: recording.seconds_over(network) for network in (LAN, WAN)}
        count = recording.samples.shape[2]
        size = min(1.1, (_WIDTH - _LEFT - _RIGHT) / count)
        bars = _LINE * (len(self._seconds) + 1) + 0.3
        height = _TOP + 3 * (size + 0.05) + bars
        super().__init__(_WIDTH, height)
        self._axis = self.figure.add_axes((0, 0, 1, 1))
        self._axis.set(xlim=(0, _WIDTH), ylim=(0, height))
        self._axis.set_axis_off()

        self._title = self._text(0.12, height - 0.2, 11)
        self._ratios = [self._text(_LEFT + (i + 0.5) * size, height - 0.48, 9, align="center") for i in range(count)]
        self._images = []
        for place, label in enumerate(("plaintext", "secure", f"difference\n{MAGNIFIED} times")):
            top = height - _TOP - place * (size + 0.05)
            self._text(_LEFT - 0.1, top - size / 2, 10, label, align="right")
            limits = {"cmap": "PuOr", "vmin": -255} if place == 2 else {"cmap": "gray", "vmin": 0}
            shown = {"vmax": 255, "interpolation": "nearest", "aspect": "auto", **limits}
            extent = (_LEFT, _LEFT + count * size, top - size, top)
            self._images.append(self._axis.imshow(_side_by_side(recording.samples[0, 0]), extent=extent, **shown))
        self._draw_bars(bars)
        self._moves([self._title, *self._ratios, *self._images, *self._bars, *self._amounts, self._traffic])
        self.show(recording.steps if step is None else step)

    def show(self, step: int, kind: Kind = "samples") -> Figure:
        """Show the state after a step, 0 for the beginning. Return the figure, with its description."""
        recording, steps = self._recording, self._recording.steps
        plaintext, secure = self._levels(step, kind)
        difference = np.clip(MAGNIFIED * (secure.astype(int) - plaintext), -255, 255)
        for image, levels in zip(self._images, (plaintext, secure, difference), strict=True):
            image.set_data(_side_by_side(levels))
        pair = "secure_to_exact" if kind == "samples" else "predicted_to_exact"
        ratios = recording.likeness(pair)[step - 1] if step else []
        for index, text in enumerate(self._ratios):
            text.set_text(f"{ratios[index]:.1f} dB" if step else "")
        when = f"after step {step} of {steps}" if step else f"before step 1 of {steps}"
        self._title.set_text(f"{recording.name}: {_KINDS[kind]} {when}")
        for name, bar, text in zip(self._seconds, self._bars, self._amounts, strict=True):
            bar.set_width(_BAR * self._seconds[name][step] / self._longest)
            text.set_text(f"{self._seconds[name][step]:,.0f} of {self._seconds[name][-1]:,.0f} s")
        size, rounds = recording.so_far("bytes") / 1e6, recording.so_far("rounds")
        sent = f"{size[step]:,.0f} of {size[-1]:,.0f} MB sent by the three parties"
        traffic = f"{sent}, in {rounds[step]:,.0f} of {rounds[-1]:,.0f} rounds"
        self._traffic.set_text(traffic)
        now = ", ".join(f"{name} {seconds[step]:,.0f} s" for name, seconds in self._seconds.items())
        likeness = f", with a PSNR of {min(ratios):.1f} to {max(ratios):.1f} dB" if step else ", the same noise"
        return describe(
            self.figure,
            f"{recording.name}, step {step} of {steps}: the {_KINDS[kind]} of {recording.samples.shape[2]} digits in "
            f"plaintext and on shares{likeness}, and their difference {MAGNIFIED} times. So far: {now}; {traffic}.",
        )

    def _levels(self, step: int, kind: Kind) -> np.ndarray:
        """Return images uint8 [2, B, C, H, W]. Before the first step nothing is predicted, and all is grey."""
        if kind == "samples":
            return self._recording.samples[:, step]
        return self._recording.predicted[:, step - 1] if step else np.full_like(self._recording.predicted[:, 0], 128)

    def _text(self, x: float, y: float, size: float, text: str = "", align: str = "left"):
        return self._axis.text(x, y, text, fontsize=size, ha=align, va="center")

    def _draw_bars(self, top: float) -> None:
        self._axis.set(xlim=(0, _WIDTH), ylim=(0, self.figure.get_figheight()))  # which imshow has changed
        self._longest = max(seconds[-1] for seconds in self._seconds.values())
        self._bars, self._amounts = [], []
        for place, (name, seconds) in enumerate(self._seconds.items()):
            middle = top - _LINE * (place + 1)
            self._text(_LEFT - 0.1, middle, 9, name, align="right")
            corner, length = (_LEFT, middle - 0.09), _BAR * seconds[-1] / self._longest
            self._axis.add_patch(Rectangle(corner, length, 0.18, fill=False, edgecolor=GREY, linewidth=0.8))
            self._bars.append(self._axis.add_patch(Rectangle(corner, 0, 0.18, color=PALETTE[place])))
            self._amounts.append(self._text(_LEFT + length + 0.08, middle, 9))
        self._traffic = self._text(_LEFT, top - _LINE * (len(self._seconds) + 1), 9)


def step_slider(recording: Recording) -> Explorer:
    """`StepPicture` under a slider for the step, which can play, and the kind of images."""
    picture = StepPicture(recording)
    controls = {
        "step": Control("step", range(recording.steps + 1), recording.steps, plays=True),
        "kind": Control("images", list(_KINDS), next(iter(_KINDS)), list(_KINDS.values()), "choice"),
    }
    return Explorer(controls, picture.show, picture)


def _side_by_side(levels: np.ndarray) -> np.ndarray:
    """Return images [B, C, H, W] in a row, [H, W'] or [H, W', 3], with two pixels of white between them."""
    white = 255 if levels.dtype == np.uint8 else 0
    images = [shown_pixels(picture) for picture in levels]
    gap = np.full((len(images[0]), 2, *images[0].shape[2:]), white, levels.dtype)
    return np.concatenate([part for image in images for part in (gap, image)][1:], axis=1)


def last_median(stem: str, pair: str) -> Value:
    """Return the function that takes the median over the images of a PSNR after the last step, see `Recording.likeness`."""
    return lambda records: float(np.median(records[stem]["rows"][-1][pair]))


# Model, scheduler, steps, images, and the median PSNR that is expected.
_RUNS = ((TINY, "ddim", 20, 4, 33.7), (TEN, "ddim", 20, 10, 32.6), (TEN, "ddpm", 50, 5, 31.8))

TARGET = Target(
    "trajectory",
    "Sampling step by step, on three parties",
    "what the secure samples differ by comes from the replaced functions; computing on shares alone stays near 60 dB",
    "ours",
    tuple(
        Command(
            f"trajectory_{model}_{scheduler}",
            ("bench", "trajectory", model, "--scheduler", scheduler),
            ("--steps", str(steps), "--batch", str(batch)),
            ("--steps", "4", "--batch", "1"),
        )
        for model, scheduler, steps, batch, _ in _RUNS
    ),
    tuple(
        Check(f"{model}, {scheduler}: median PSNR to plaintext{to}", number, within, value, unit=" dB", bound=bound)
        for model, scheduler, _, _, expected in _RUNS
        for to, number, within, pair, bound in (
            ("", expected, 2, "secure_to_exact", ""),
            (" with the same functions", 50, 0, "secure_to_emulated", "least"),
        )
        for value in [last_median(f"trajectory_{model}_{scheduler}", pair)]
    ),
    lambda records: psnr_by_step([read(path) for path in sorted(records.glob("trajectory_*.json"))]),
    order=160,
)
