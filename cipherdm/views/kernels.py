"""Figures of one convolution on shares: in plaintext, at each party, its patches, and its words as digits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..kernels.digits import Format
from ..kernels.shares import PARTIES
from .style import PALETTE, describe, frameless, image_axis, new_figure


def convolution(image: np.ndarray, weights: np.ndarray, result: np.ndarray) -> Figure:
    """Draw an image [H, W], a filter [K, K] as numbers, and their convolution, from blue for negative values to red.

    A filter larger than 5 x 5 is hard to read.
    """
    figure = new_figure(8, 2.9)
    before, middle, after = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1, 0.62, 1.2)})
    before.imshow(image, cmap="gray")
    image_axis(before, f"picture, {_extents(image)}")
    middle.imshow(weights, cmap="RdBu_r", vmin=-2.5 * np.abs(weights).max(), vmax=2.5 * np.abs(weights).max())
    for (row, column), weight in np.ndenumerate(weights):
        middle.text(column, row, f"{weight:g}", ha="center", va="center", fontsize=12)
    image_axis(middle, f"filter, {_extents(weights)}")
    reach = float(np.abs(result).max()) or 1.0
    drawn = after.imshow(result, cmap="RdBu_r", vmin=-reach, vmax=reach)
    image_axis(after, f"result, {_extents(result)}")
    figure.colorbar(drawn, ax=after, shrink=0.85)
    return describe(
        figure,
        f"A picture of {_extents(image)} pixels, a filter of {_extents(weights)} numbers, "
        f"{'; '.join(' '.join(f'{weight:g}' for weight in row) for row in weights)}, and their convolution of "
        f"{_extents(result)} values from {result.min():.3g} to {result.max():.3g}.",
    )


def party_views(
    pictures: Sequence[np.ndarray],
    filters: Sequence[np.ndarray],
    z: Sequence[np.ndarray],
    received: Sequence[np.ndarray],
) -> Figure:
    """Draw as grey values, a row per party, its components of an image and a filter, what it sends and what it receives.

    Black is 0 and white the largest word. Equal words have frames of one colour, that of the component.

    Args:
        pictures: three parties' pairs [2, H, W] of ring words.
        filters: three parties' pairs [2, K, K].
        z: each party's part of the product, [rows, columns], which it sends to the previous party.
        received: message [rows, columns] that each party gets from the next one.
    """
    figure = new_figure(8.6, 4.6)
    axes = figure.subplots(PARTIES, 6, gridspec_kw={"width_ratios": (1, 1, 0.55, 0.55, 1, 1)})
    for party, row in enumerate(axes):
        after, before = (party + 1) % PARTIES, (party - 1) % PARTIES
        words = (*pictures[party], *filters[party], z[party], received[party])
        titles = (_name("x", party), _name("x", after), _name("w", party), _name("w", after))
        titles += (f"{_name('z', party)}, to party {before}", f"{_name('z', after)}, from party {after}")
        for place, (axis, shown, title) in enumerate(zip(row, words, titles, strict=True)):
            axis.imshow(shown / 2.0 ** _bits(shown), cmap="gray", vmin=0, vmax=1)
            image_axis(axis, title, 9)
            axis.set_anchor("C")
            for spine in axis.spines.values():
                spine.set(color=PALETTE[(party, after)[place % 2]], linewidth=3)
        row[0].set_ylabel(f"party {party}", fontsize=10)
    everything = np.concatenate([np.concatenate([np.ravel(part) for part in group]) for group in (pictures, z)])
    low, high = np.quantile(everything / 2.0 ** _bits(everything), (0.1, 0.9))
    return describe(
        figure,
        "For each of three parties six pictures of ring words as grey values: two components of the picture, two of the "
        "filter, what the party sends to the previous party and what it receives from the next. A tenth of the words is "
        f"below {low:.2f} and a tenth above {high:.2f} of the ring's size; of noise it would be 0.10 and 0.90.",
    )


def patch_counts(shape: tuple[int, int], size: int, stride: int = 1) -> np.ndarray:
    """Count the patches [size, size] of a convolution without padding that each pixel is in: [H, W] whole numbers."""
    counts = np.zeros(shape, np.int64)
    rows, columns = ((length - size) // stride + 1 for length in shape)
    for row in range(size):
        for column in range(size):
            counts[row : row + stride * rows : stride, column : column + stride * columns : stride] += 1
    return counts


def patches(shape: tuple[int, int], size: int, stride: int = 1) -> Figure:
    """Draw the `patch_counts` of each pixel, and the words split into digits before and after patches are gathered."""
    counts = patch_counts(shape, size, stride)
    once, often = counts.size, int(counts.sum())
    figure = new_figure(8, 2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    image = left.imshow(counts, cmap="viridis", vmin=0)
    image_axis(left, f"patches of {size} x {size} that a pixel is in")
    figure.colorbar(image, ax=left, shrink=0.85).locator = MaxNLocator(integer=True)
    bars = {"split, then gathered": once, "gathered, then split": often}
    drawn = right.barh(range(len(bars)), list(bars.values()), color=PALETTE[: len(bars)], height=0.55)
    right.bar_label(drawn, fmt=" {:,}")
    right.set_yticks(range(len(bars)), list(bars))
    right.invert_yaxis()
    right.set(xlabel="words split into digits, for one component", xlim=(0, 1.2 * often))
    frameless(right)
    return describe(
        figure,
        f"Left, a picture of {_extents(counts)} pixels; a pixel is in {counts.min()} to {counts.max()} patches of "
        f"{size} x {size}. Right, bars: split before gathering {once:,} words, after it {often:,}.",
    )


def _bits(words: np.ndarray) -> int:
    return 8 * words.dtype.itemsize


def _name(letter: str, index: int) -> str:
    return letter + "\u2080\u2081\u2082"[index]


def _extents(array: np.ndarray) -> str:
    return " x ".join(str(extent) for extent in array.shape)


def digit_table(form: Format, numbers: Sequence[int]) -> pd.DataFrame:
    """Table with a row per number of the ring: its digits, the lowest first, and their sum in the ring, read with its sign."""
    words = np.array([number % (1 << 64) for number in numbers], np.uint64)
    digits = form.split(words).astype(np.int64)
    columns = [f"B^{place}" if place else "1" for place in range(form.count)]
    table = pd.DataFrame(digits.T, index=[f"{number:,}" for number in numbers], columns=columns)
    table["sum"] = [f"{_joined(form, row):,}" for row in digits.T]
    return table


def _joined(form: Format, digits: np.ndarray) -> int:
    """Join digits to their number, with Python's integers."""
    word = sum(int(digit) << form.base * place for place, digit in enumerate(digits)) % (1 << form.bits)
    return word - (word >> form.bits - 1 << form.bits)


def digit_pairs(forms: Sequence[Format]) -> Figure:
    """Draw the products of two digits that a product of two words needs, a square of pairs per form.

    Pairs with one sum of places have one colour and are one matrix product. Grey pairs are multiples of the ring's size.
    """
    figure = new_figure(0.5 + 3.9 * len(forms), 4.1)
    axes = figure.subplots(1, len(forms), squeeze=False, width_ratios=[form.count + 1.5 for form in forms])
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
    """Draw a square for each pair of digits, with the sum of their places; returns the number of pairs that are needed."""
    kept = 0
    for row, column in np.ndindex(form.count, form.count):
        place = row + column
        needed = place < form.count
        kept += needed
        colour = PALETTE[place % len(PALETTE)] if needed else "#dddddd"
        axis.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, color=colour))
        if needed:
            ink = "black" if colour in PALETTE[4:7] else "white"  # which are light
            axis.text(column, row, str(place), ha="center", va="center", color=ink, fontsize=10)
    return kept
