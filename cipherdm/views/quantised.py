"""Fraction bits of Ditto's ring of 32 bits: what rounding costs, what still fits, and what a model really carries.

Steps that the parties walk are computed in the clear, on words that wrap around at 32 bits; those of SPU on real numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from ..kernels.ring_program import HALF
from ..models.transformer import Transformer
from ..protocols import DITTO
from ..sampling.ditto_in_the_clear import computed_steps
from ..sampling.texts import classification_task
from .style import GREY, HATCHED, PALETTE, describe, new_figure, plot_right_and_wrong
from .widgets import Explorer, slider

_ROOM_BITS = HALF - 2  # a cut counts wraps right up to a quarter of its ring
_EXACT_BITS = 14  # the most with which the quadratic's constant fits 32 bits, in which JAX writes it
# What each walked step truncates, in order.
_TRUNCATED = {
    "scores": ("queries", "keys", "values", "scores"),
    "mixed": ("weighted values", "after attention"),
    "feed_forward": ("before the quadratic", "quadratic, times 8", "after the feed-forward network"),
    "pooler": ("pooler",),
    "classifier": ("logits",),
}


@dataclass(frozen=True, eq=False)
class FractionStudy:
    """A classifier on some texts, with several numbers of fraction bits in the ring of 32 bits.

    Attributes:
        largest: largest size of what is truncated, by what it is. The quadratic has three fraction bits more than other
            products before its truncation, so it counts eight times.
        errors: rms difference of the results of walked steps from exact ones, by the fraction bits.
        agreeing: number of texts with the class that exact numbers give, by the fraction bits.
        texts: number of texts.
    """

    largest: dict[str, float]
    errors: dict[int, float]
    agreeing: dict[int, int]
    texts: int


def fraction_study(model: Transformer, texts: Sequence[str], bits: Sequence[int] = range(4, 17)) -> FractionStudy:
    """Compute a classifier by Ditto's steps in the clear, exactly and with each of these numbers of fraction bits."""
    exact, sizes = _computed(model, texts, _EXACT_BITS, rounded=False)
    errors, agreeing, largest = {}, {}, {}
    for of in bits:
        found, _ = _computed(model, texts, of, rounded=True)
        differences = np.concatenate([(found[name] - exact[name]).ravel() for name in sizes])
        errors[of] = float(np.sqrt(np.mean(differences**2)))
        agreeing[of] = int((found["logits"].argmax(1) == exact["logits"].argmax(1)).sum())
    for name, size in (item for of_step in sizes.values() for item in of_step.items()):
        largest[name] = max(size, largest.get(name, 0.0))
    return FractionStudy(largest, errors, agreeing, len(texts))


def _computed(
    model: Transformer, texts: Sequence[str], bits: int, *, rounded: bool
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Return all results by name, float64, and the sizes of what walked steps truncate, by the name of their first result."""
    protocols = replace(DITTO, small_bits=bits)
    task, found, sizes = classification_task(model, texts, embedded=True, protocols=protocols), {}, {}
    for done in computed_steps(
        task.shape.nodes("block"), task.specs, task.owner | task.client, protocols, rounded=rounded
    ):
        found |= zip(done.node.outputs, done.results, strict=True)
        if what := _TRUNCATED.get(done.node.function.__name__):
            read = [done.sizes[o.inputs[0]] for o in done.walk.program.operations if o.kind == "truncate"]
            sizes[done.node.outputs[0]] = {n: size / 4.0**bits for n, size in zip(what, read, strict=True)}
    return found, sizes


def fraction_figure(study: FractionStudy, bits: int) -> Figure:
    """Draw over the fraction bits, on one logarithmic axis, what fits, what the model carries, and the error; mark `bits`."""
    x, errors = (np.array([*values]) for values in (study.errors, study.errors.values()))
    edges = np.array([x[0] - 0.5, x[-1] + 0.5])
    figure = new_figure(8.4, 4.4)
    axis, limits, limit = figure.subplots(), 2.0 ** (_ROOM_BITS - 2 * edges), 4.0 ** (_ROOM_BITS / 2 - x)
    axis.fill_between(edges, limits, limits.max(), **HATCHED)
    axis.plot(edges, limits, color="black")
    told = {"ha": "right", "va": "top", "fontsize": 9, "backgroundcolor": "white"}
    axis.text(edges[1] - 0.2, limit[0], "Incorrect here: numbers wrap around", **told)
    axis.text(x[0], limit[0] / 4.0**5, "below the line, a product fits: $2^{30 - 2f}$", fontsize=9)
    axis.hlines([*study.largest.values()], *edges, color=PALETTE[2], linewidth=0.8)
    name, size = max(study.largest.items(), key=lambda item: item[1])
    words = f"largest products of each kind, up to {size:.2g} ({name})"
    axis.text(edges[0] + 0.1, 1.2 * size, words, color=PALETTE[2], fontsize=9)
    plot_right_and_wrong(axis, x, errors, size > limit)
    axis.plot(x, errors, color=PALETTE[0], linewidth=1)
    axis.text(x[0] + 1, errors.min(), "rms error of results", color=PALETTE[0], fontsize=9)
    axis.axvline(bits, color=GREY, linestyle="--", linewidth=1)
    axis.set_yscale("log", base=2)
    axis.set(xlim=edges, ylim=(2.0**-13, limits.max()), xticks=x, ylabel="size", xlabel="fraction bits f, of 32 bits")
    found = f"products up to {4.0 ** (_ROOM_BITS / 2 - bits):,.6g} fit, the rms error is {study.errors[bits]:.2g}"
    title = f"{bits} fraction bits: {found}, and {study.agreeing[bits]} of {study.texts} classes as without rounding"
    axis.set_title(title, fontsize=10)
    carried = ", ".join(f"{name} {size:.2g}" for name, size in study.largest.items())
    return describe(
        figure,
        f"{title}. With more bits, less fits, by a factor of 4 per bit. The error falls to {errors.min():.2g}, with "
        f"{x[errors.argmin()]}, and is {errors[-1]:.2g} with {x[-1]}. Largest sizes: {carried}.",
    )


def fraction_explorer(study: FractionStudy) -> Explorer:
    """`fraction_figure` under a slider for the fraction bits."""
    chosen = slider("fraction bits", DITTO.small_bits, min(study.errors), max(study.errors))
    return Explorer({"bits": chosen}, lambda bits: fraction_figure(study, bits))
