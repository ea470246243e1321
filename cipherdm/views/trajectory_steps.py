"""All pictures of a recorded run at one step, secure beside plaintext, with its cost so far; and a slider for the step."""

from html import escape
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..bench.recording import Recording
from ..costs import LAN, WAN
from .moving import MovingPicture
from .style import GREY, PALETTE, describe
from .trajectory import shown_pixels

Kind = Literal["samples", "predicted"]

MAGNIFIED = 8
"""How many times larger than it is a difference is drawn."""

_KINDS = {"samples": "samples", "predicted": "predicted pictures"}
_ROWS = ("plaintext", "secure", f"difference\n{MAGNIFIED} times")
_GAP = 2  # pixels between pictures
# Inches. Pictures and bars stand right of their labels.
_WIDTH, _LEFT, _RIGHT, _TOP, _LINE = 8.4, 1.3, 0.15, 0.62, 0.27
_BAR = 5.2


class StepPicture(MovingPicture):
    """A recorded run at one step; `show` another step without building the figure anew.

    Rows of pictures: plaintext, secure, and secure minus plaintext, `MAGNIFIED` times. Below, bars of the seconds so far, on
    the recording's machine (measured) and over LAN and WAN by the latency model, in an outline of the whole run's.

    Everything stands in one system of axes, in inches.
    """

    def __init__(self, recording: Recording, step: int | None = None, kind: Kind = "samples"):
        self._recording = recording
        self._seconds = {
            "measured": recording.so_far("seconds"),
            LAN.name: recording.seconds_over(LAN),
            WAN.name: recording.seconds_over(WAN),
        }
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
        for place, label in enumerate(_ROWS):
            top = height - _TOP - place * (size + 0.05)
            self._text(_LEFT - 0.1, top - size / 2, 10, label, align="right")
            self._images.append(self._picture((_LEFT, _LEFT + count * size, top - size, top), signed=place == 2))
        self._draw_bars(bars)
        self._moves([self._title, *self._ratios, *self._images, *self._bars, *self._amounts, self._traffic])
        self.show(recording.steps if step is None else step, kind)

    def show(self, step: int, kind: Kind = "samples") -> Figure:
        """Show the state after a step, 0 for the beginning; returns the figure, with its description."""
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
        size, total = (recording.so_far("bytes")[index] / 1e6 for index in (step, -1))
        rounds, all_rounds = (recording.so_far("rounds")[index] for index in (step, -1))
        traffic = (
            f"{size:,.0f} of {total:,.0f} MB sent by the three parties, in {rounds:,.0f} of {all_rounds:,.0f} rounds"
        )
        self._traffic.set_text(traffic)
        return describe(self.figure, self._description(step, kind, ratios, traffic))

    def _levels(self, step: int, kind: Kind) -> np.ndarray:
        """uint8 [2, B, C, H, W]. Before the first step nothing is predicted, and all is grey."""
        if kind == "samples":
            return self._recording.samples[:, step]
        return self._recording.predicted[:, step - 1] if step else np.full_like(self._recording.predicted[:, 0], 128)

    def _text(self, x: float, y: float, size: float, text: str = "", align: str = "left"):
        return self._axis.text(x, y, text, fontsize=size, ha=align, va="center")

    def _picture(self, extent: tuple[float, float, float, float], *, signed: bool):
        levels = _side_by_side(self._levels(0, "samples")[0])
        limits = {"cmap": "PuOr", "vmin": -255, "vmax": 255} if signed else {"cmap": "gray", "vmin": 0, "vmax": 255}
        return self._axis.imshow(levels, extent=extent, interpolation="nearest", aspect="auto", **limits)

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

    def _description(self, step: int, kind: Kind, ratios, traffic: str) -> str:
        recording = self._recording
        now = ", ".join(f"{name} {seconds[step]:,.0f} s" for name, seconds in self._seconds.items())
        likeness = f", with a PSNR of {min(ratios):.1f} to {max(ratios):.1f} dB" if step else ", the same noise"
        return (
            f"{recording.name}, step {step} of {recording.steps}: the {_KINDS[kind]} of {recording.samples.shape[2]} digits in "
            f"plaintext and on shares{likeness}, and their difference {MAGNIFIED} times. So far: {now}; {traffic}."
        )


def step_slider(recording: Recording):
    """The pictures of a recorded run under a slider for the step, which also plays by itself.

    Returns:
        An ipywidgets.VBox. Its children are the play button with the slider, the choice between samples and predicted
        pictures, the image, and its description as text.
    """
    import ipywidgets as widgets  # which only notebooks need

    picture = StepPicture(recording)
    settings = {"min": 0, "max": recording.steps, "value": recording.steps}
    play = widgets.Play(interval=400, **settings)
    slider = widgets.IntSlider(description="step", layout={"width": "34em"}, **settings)
    widgets.jslink((play, "value"), (slider, "value"))
    kind = widgets.ToggleButtons(options=[(text, name) for name, text in _KINDS.items()])
    image, text = widgets.Image(format="png"), widgets.HTML()

    def draw(_=None) -> None:
        figure = picture.show(slider.value, kind.value)
        image.value, text.value = picture.png(), f"<small>{escape(figure.get_label())}</small>"

    for control in (slider, kind):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([widgets.HBox([play, slider]), kind, image, text])


def _side_by_side(levels: np.ndarray) -> np.ndarray:
    """Pictures [B, C, H, W] in a row, [H, W'] or [H, W', 3], with white between them."""
    white = 255 if levels.dtype == np.uint8 else 0
    parts = []
    for picture in levels:
        pixels = shown_pixels(picture)
        parts += [pixels, np.full((len(pixels), _GAP, *pixels.shape[2:]), white, pixels.dtype)]
    return np.concatenate(parts[:-1], axis=1)
