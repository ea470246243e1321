"""Pictures of ring words as digits: the digits themselves, and which pairs of them a product needs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..linear.digits import Format
from .style import PALETTE, describe, new_figure

_DROPPED = "#dddddd"
_LIGHT = PALETTE[4:7]  # colours that black is read on


def digit_table(form: Format, numbers: Sequence[int]) -> pd.DataFrame:
    """A row for each number: its digits, the lowest first, and what they add up to in the ring, read with its sign.

    Args:
        form: how words are cut.
        numbers: of the ring, negative ones too.
    """
    words = np.array([number % (1 << form.bits) for number in numbers], form.word)
    digits = form.split(words).astype(np.int64)
    columns = [f"B^{place}" if place else "1" for place in range(form.count)]
    table = pd.DataFrame(digits.T, index=[f"{number:,}" for number in numbers], columns=columns)
    table["sum"] = [f"{_joined(form, row):,}" for row in digits.T]
    return table


def _joined(form: Format, digits: np.ndarray) -> int:
    """The number of these digits, by Python's integers."""
    word = sum(int(digit) << form.base * place for place, digit in enumerate(digits)) % (1 << form.bits)
    return word - (word >> form.bits - 1 << form.bits)


def digit_pairs(forms: Sequence[Format]) -> Figure:
    """Which products of two digits a product of two words needs, a square of pairs for each way to cut words.

    Pairs with one sum of places have one colour and are one matrix product. Grey pairs are multiples of the ring's size.

    Args:
        forms: of at most eight digits.
    """
    figure = new_figure(0.5 + 3.9 * len(forms), 4.1)
    axes = figure.subplots(
        1, len(forms), squeeze=False, gridspec_kw={"width_ratios": [form.count + 1.5 for form in forms]}
    )
    texts, most = [], max(form.count for form in forms)
    for axis, form in zip(axes[0], forms, strict=True):
        kept, of = _draw_pairs(axis, form), form.count**2
        axis.set(xlim=(-0.6, form.count - 0.4), ylim=(most - 0.4, -0.6), aspect="equal", anchor="N")
        axis.set_xticks(range(form.count), [f"b{place}" for place in range(form.count)], fontsize=9)
        axis.set_yticks(range(form.count), [f"a{place}" for place in range(form.count)], fontsize=9)
        axis.tick_params(length=0, labeltop=True, labelbottom=False)
        axis.spines[:].set_visible(False)
        axis.set_title(f"{form.bits} bits, digits of {form.base}:\n{kept} of {of} products", fontsize=10)
        texts.append(
            f"Words of {form.bits} bits in {form.count} digits of {form.base} bits: {kept} of {of} pairs are needed, "
            "those whose places add up to less than the number of digits"
        )
    return describe(figure, ". ".join(texts) + ".")


def _draw_pairs(axis: Axes, form: Format) -> int:
    """A square for each pair of digits, with the sum of their places; returns how many are needed."""
    kept = 0
    for row, column in np.ndindex(form.count, form.count):
        place = row + column
        needed = place < form.count
        kept += needed
        colour = PALETTE[place % len(PALETTE)] if needed else _DROPPED
        axis.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, color=colour))
        if needed:
            ink = "black" if colour in _LIGHT else "white"
            axis.text(column, row, str(place), ha="center", va="center", color=ink, fontsize=10)
    return kept
