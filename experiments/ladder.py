"""A denoising step from `direct` to `fast`, one change after the other, and what each change saves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from cipherdm.approximations.mish import mish_polynomial
from cipherdm.approximations.silu import silu_polynomial
from cipherdm.approximations.softmax import softmax_bounded
from cipherdm.cli.options import ModelArgument
from cipherdm.models import UNet
from cipherdm.protocols import DIRECT, FAST
from cipherdm.protocols.fast import image_patches
from cipherdm.records import read_record
from cipherdm.sampling import engine_for
from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .commands import AtOnceOption, BatchOption, RecordOption, RepetitionsOption, StepsOption
from .step import measure_variants
from .step_gains import gain
from .target import TINY, Check, Command, Target
from .variants import AT_ONCE, Variant


def rungs(unet: UNet, activation_bound: float = 12.0) -> tuple[Variant, ...]:
    """Return the variants, each with one change more than the one before it.

    - "direct": the plain model.
    - "+ time terms": the owner computes them in plaintext.
    - "+ matrix products": convolutions as one matrix product each.
    - "+ polynomials": activations as one polynomial of degree 8 (Mish: 6), right up to `activation_bound`, their largest.
    - "+ bounded softmax": no maximum and no clip.
    - "fast": truncations written out, and what calibration knows of each layer folded into the weights.
    """
    time = replace(DIRECT, time_embedding="precomputed")
    convolutions = replace(time, conv2d=conv2d_by_patches)
    polynomial = {"silu": silu_polynomial(activation_bound)}
    if unet.config.act_fn == "mish":
        polynomial["mish"] = mish_polynomial(activation_bound)
    activations = replace(convolutions, **polynomial)
    softmax = replace(activations, softmax=softmax_bounded(4.0))
    names = ("direct", "+ time terms", "+ matrix products", "+ polynomials", "+ bounded softmax", "fast")
    named = dict(zip(names, (DIRECT, time, convolutions, activations, softmax, FAST), strict=True))
    return tuple(Variant(name, replace(rung, name=name), engine_for(rung)) for name, rung in named.items())


def conv2d_by_patches(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """Convolve as `direct.conv2d`, by one matrix product of float32 arrays."""
    weight = params["weight"]
    outputs, _, size, _ = weight.shape
    corner = x[0, 0, 0, 0]
    shifted = image_patches(x, size, stride, padding, corner - corner)
    *_, batch, rows, columns = shifted.shape
    y = weight.reshape(outputs, -1) @ shifted.reshape(-1, batch * rows * columns)
    y = y + params["bias"][:, None] if "bias" in params else y
    return jnp.swapaxes(y.reshape(outputs, batch, rows, columns), 0, 1)


_QUANTITIES = {"seconds": ("seconds", 1.0), "bytes": ("MB, all parties", 1e-6), "sends": ("thousand messages", 1e-3)}


def ladder_figure(rows: Sequence[Mapping[str, Any]], batch: int = 1) -> Figure:
    """Draw time, bytes and messages of a step as bars, a rung below the other, from rows of `cipherdm bench ladder`."""
    rows = [row for row in rows if row["batch"] == batch]
    names, places = [row["variant"] for row in rows], np.arange(len(rows))
    figure = new_figure(8.2, 1.0 + 0.33 * len(rows))
    panels = figure.subplots(1, len(_QUANTITIES), sharey=True)
    told = []
    for axis, (column, (label, unit)), colour in zip(panels, _QUANTITIES.items(), PALETTE, strict=False):
        values = np.array([row[column] for row in rows]) * unit
        axis.barh(places, values, color=colour)
        for place, value in zip(places, values, strict=True):
            axis.text(value + 0.02 * values.max(), place, f"{value:,.3g}", va="center", fontsize=8, color=GREY)
        axis.set(xlabel=label, xlim=(0, 1.22 * values.max()))
        told.append(f"{label} " + ", ".join(f"{name} {value:,.3g}" for name, value in zip(names, values, strict=True)))
    panels[0].set_yticks(places, names)
    panels[0].invert_yaxis()
    return describe(
        figure, f"Bars, one step of {rows[0]['model']} with one change more at each rung: {'; '.join(told)}."
    )


def measure(
    model: ModelArgument,
    batch: BatchOption = "1",
    repetitions: RepetitionsOption = 3,
    steps: StepsOption = 20,
    at_once: AtOnceOption = AT_ONCE,
    record: RecordOption = None,
) -> None:
    """Measure a denoising step from direct to fast, with one change more at each rung."""
    settings = {"batch": batch, "repetitions": repetitions, "steps": steps, "at_once": at_once}
    measure_variants("ladder", model, rungs, record, **settings)


TARGET = Target(
    "ladder",
    "From direct to fast, one change after the other",
    "most of the gain is in activations, softmax and normalisation without comparisons and divisions",
    "ours",
    (Command(f"ladder_{TINY}", ("bench", "ladder", TINY), (), ("--repetitions", "1", "--at-once", "1")),),
    tuple(
        Check(
            f"bytes, direct / {rung.lstrip('+ ')}",
            gained,
            near,
            gain(TINY, rung, "bytes", benchmark="ladder"),
            near,
            digits,
        )
        for rung, gained, near, digits in (
            ("fast", 12.6, 0.2, 1),
            ("+ polynomials", 1.58, 0.03, 2),
            ("+ bounded softmax", 2.78, 0.03, 2),
        )
    ),
    lambda records: ladder_figure(read_record(records / f"ladder_{TINY}.json")["rows"]),
    order=140,
)
