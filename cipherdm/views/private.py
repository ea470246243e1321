"""Private training in pictures: gradients that are clipped and summed with noise, and epsilon over the steps of a training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ..private.budget import COARSE, epsilon_of
from .style import GREY, PALETTE, describe, new_figure
from .widgets import Control, Explorer


def clipping_figure(gradients: np.ndarray, clip: float, noise_multiplier: float, seed: int = 0) -> Figure:
    """Draw examples' gradients [N, 2] as arrows, clipped to the norm `clip`, and their sum with the noise of a private step.

    Draws of the noisy sum are of a generator with this seed. The first gradient is drawn apart: it is the one whose owner asks
    what the sum tells of it.
    """
    norms = np.linalg.norm(gradients, axis=1)
    clipped = gradients * np.minimum(1, clip / norms)[:, None]
    others, total = clipped[1:].sum(0), clipped.sum(0)
    deviation = noise_multiplier * clip
    draws = total + deviation * np.random.default_rng(seed).standard_normal((300, 2))
    figure = new_figure(9.4, 3.8)
    left, right = figure.subplots(1, 2)
    for each, colour, width in ((gradients, "#cccccc", 0.004), (clipped, PALETTE[0], 0.005)):
        left.quiver(
            *np.zeros((2, len(each))), *each.T, color=colour, angles="xy", scale_units="xy", scale=1, width=width
        )
    left.quiver(0, 0, *clipped[0], color=PALETTE[1], angles="xy", scale_units="xy", scale=1, width=0.008)
    left.add_patch(Circle((0, 0), clip, fill=False, color=GREY, linestyle="--"))
    reach = 1.05 * np.abs(gradients).max()
    left.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"each clipped to {clip:g}")
    right.plot(*draws.T, ".", color="#bbbbbb", markersize=4, label="sums with noise")
    right.plot(*others, "o", color=PALETTE[0], label="sum of all others")
    right.plot(*total, "o", color=PALETTE[1], label="with the first one")
    middle, reach = (others + total) / 2, 4.5 * max(deviation, clip)
    right.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach), aspect="equal")
    right.set_title(f"noise of {noise_multiplier:g} times the clip in each direction", fontsize=11)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    share = (norms > clip).mean()
    apart = np.linalg.norm(clipped[0]) / deviation if deviation else np.inf
    return describe(
        figure,
        f"{len(gradients)} gradients, of which {share:.0%} are longer than the clip of {clip:g} and are shortened to it. Their "
        f"sum with and without the first one differ by {np.linalg.norm(clipped[0]):.2g}, {apart:.2g} of the noise's deviation.",
    )


def clipping_explorer(gradients: np.ndarray) -> Explorer:
    """`clipping_figure` under sliders for the clip and the noise."""
    tenths = [number / 10 for number in range(1, 41)]
    controls = {"clip": Control("clip", tenths[:30], 1.0), "noise_multiplier": Control("noise multiplier", tenths, 1.0)}
    return Explorer(controls, lambda **values: clipping_figure(gradients, **values))


@dataclass(frozen=True, eq=False)
class EpsilonStudy:
    """Epsilon after numbers of steps, by sampling rate and noise multiplier.

    Attributes:
        delta: of all.
        steps: numbers of steps.
        epsilons: [rates, noises, steps].
        rates, noises: sampling rates, and noise multipliers.
    """

    delta: float
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    noises: tuple[float, ...]
    epsilons: np.ndarray


def epsilon_study(
    rates: tuple[float, ...] = (1 / 120, 1 / 30, 1 / 8),
    noises: tuple[float, ...] = (0.6, 1.0, 1.5, 2.5, 4.0),
    steps: tuple[int, ...] = (10, 100, 1000, 3000),
    delta: float = 1e-5,
) -> EpsilonStudy:
    """Compute all epsilons by privacy loss distributions."""
    found = [[[epsilon_of(noise, rate, count, delta, COARSE) for count in steps] for noise in noises] for rate in rates]
    return EpsilonStudy(delta, steps, rates, noises, np.array(found))


def epsilon_figure(study: EpsilonStudy, noise: int, marks: Sequence[float] = (1.0, 10.0)) -> Figure:
    """Draw epsilon over steps for each rate, with the noise multiplier of this number in the study; mark some epsilons."""
    figure = new_figure(7.6, 3.6)
    axis, said = figure.subplots(), []
    for colour, rate, epsilons in zip(PALETTE, study.rates, study.epsilons[:, noise], strict=False):
        name = f"1 image in {1 / rate:.0f} at a step"
        axis.plot(study.steps, epsilons, "o-", color=colour, label=name)
        said.append(f"{name} from {epsilons[0]:.2g} to {epsilons[-1]:.2g}")
    for mark in marks:
        axis.axhline(mark, color=GREY, linestyle="--", linewidth=0.8)
        axis.text(study.steps[-1], mark, f" {mark:g}", color=GREY, va="center", fontsize=9)
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel=f"epsilon, at delta {study.delta:g}")
    axis.set_ylim(study.epsilons[np.isfinite(study.epsilons)].min() / 2, 300)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.legend(frameon=False, fontsize=9)
    title = f"noise multiplier {study.noises[noise]:g}"
    axis.set_title(title, fontsize=11)
    return describe(figure, f"Epsilon over {study.steps[0]} to {study.steps[-1]:,} steps, {title}: {'; '.join(said)}.")


def epsilon_explorer(study: EpsilonStudy) -> Explorer:
    """`epsilon_figure` under a slider for the noise."""
    words = [f"{noise:g}" for noise in study.noises]
    control = Control("noise multiplier", range(len(words)), 1, words)
    return Explorer({"noise": control}, lambda noise: epsilon_figure(study, noise))
