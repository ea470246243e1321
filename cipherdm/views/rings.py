"""Figures of inner products in two rings: where the smaller one overflows, and what fraction bits cost in precision."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.figure import Figure

from .style import GREY, PALETTE, describe, new_figure, plot_right_and_wrong
from .widgets import explorer, slider

SPREAD = 0.1  # standard deviation of the weights; that of the values is 1
SIDE = 12  # rows and columns of each product, so that there are 144 inner products
FRACTION_BITS = tuple(range(4, 16))
SMALL, LARGE = np.uint32, np.uint64


@dataclass(frozen=True)
class Products:
    """Inner products of random vectors, in float64 and in both rings.

    Attributes:
        fraction_bits: fraction bits of both operands.
        true: [144] products in float64, of the numbers before they were rounded.
        large: [144] products in the ring of 64 bits.
        small: [144] products in the ring of 32 bits.
    """

    fraction_bits: int
    true: np.ndarray
    large: np.ndarray
    small: np.ndarray

    @property
    def edge(self) -> float:
        """Size from which products leave the small ring."""
        return small_ring_edge(self.fraction_bits)

    @property
    def overflowed(self) -> np.ndarray:
        """Mark where the small ring has another result than the large one from the same words, [144] booleans."""
        return self.small != self.large


def small_ring_edge(fraction_bits: int) -> float:
    """Size from which a product of two numbers with so many fraction bits each leaves the ring of 32 bits."""
    return 2.0 ** (31 - 2 * fraction_bits)


def inner_products(inner: int, fraction_bits: int) -> Products:
    """Compute 144 inner products of `inner` normal values, of deviation 1, and as many weights, of deviation SPREAD."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(SIDE, inner))
    weights = generator.normal(0, SPREAD, size=(inner, SIDE))
    words = [np.round(numbers * 2.0**fraction_bits).astype(np.int64).astype(LARGE) for numbers in (values, weights)]
    results = {}
    for word, signed in ((LARGE, np.int64), (SMALL, np.int32)):
        product = np.matmul(*(matrix.astype(word) for matrix in words))  # whose sums wrap around
        results[word] = product.view(signed).ravel() / 2.0 ** (2 * fraction_bits)
    return Products(fraction_bits, (values @ weights).ravel(), results[LARGE], results[SMALL])


@lru_cache(maxsize=32)
def largest_errors(inner: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the largest errors of `inner_products` for each of FRACTION_BITS, in the large and in the small ring."""
    found = [inner_products(inner, bits) for bits in FRACTION_BITS]
    errors = [[np.abs(part - each.true).max() for part in (each.large, each.small)] for each in found]
    large, small = np.transpose(errors)
    return large, small


def two_rings(fraction_bits: int, inner: int) -> Figure:
    """Draw inner products in the ring of 32 bits against the truth, and the largest error by fraction bits in both rings.

    Args:
        fraction_bits: fraction bits of both operands, one of FRACTION_BITS.
        inner: inner dimension.
    """
    products = inner_products(inner, fraction_bits)
    wrong = products.overflowed
    figure = new_figure(8.6, 3.4)
    figure.set_layout_engine("none")
    left, right = figure.add_axes((0.075, 0.17, 0.4, 0.7)), figure.add_axes((0.575, 0.17, 0.41, 0.7))
    _scatter(left, products, wrong)
    large, small = largest_errors(inner)
    right.semilogy(FRACTION_BITS, small, "o-", color=PALETTE[1], label="32 bits")
    right.semilogy(FRACTION_BITS, large, "s-", color=PALETTE[0], markersize=4, label="64 bits")
    right.axvline(fraction_bits, color=GREY, linestyle="--", linewidth=1)
    right.set(xlabel="fraction bits of both operands", ylabel="largest error", ylim=(1e-5, 1e4))
    right.set_xticks(FRACTION_BITS[::2])
    right.set_title(f"inner dimension {inner:,}", fontsize=10)
    right.legend(loc="upper left", frameon=False, fontsize=9)
    place = FRACTION_BITS.index(fraction_bits)
    return describe(
        figure,
        f"Inner products of {inner:,} terms with {fraction_bits} fraction bits, which leave the ring of 32 bits from "
        f"{products.edge:,.10g} on: {wrong.sum()} of {wrong.size} are wrong there. The largest error is {small[place]:.2g} "
        f"with 32 bits and {large[place]:.2g} with 64.",
    )


def _scatter(axis, products: Products, wrong: np.ndarray) -> None:
    reach = 1.05 * np.abs(products.true).max()
    axis.plot([-reach, reach], [-reach, reach], color=GREY, linewidth=0.8)
    plot_right_and_wrong(axis, products.true, products.small, wrong)
    if products.edge < reach:
        for edge in (-products.edge, products.edge):
            axis.axvline(edge, color="black", linestyle="--", linewidth=1)
    axis.set(xlim=(-reach, reach), xlabel="true inner product", ylabel="in the ring of 32 bits")
    axis.set_ylim(-1.25 * reach, 1.25 * reach)
    axis.set_title(f"{products.fraction_bits} fraction bits: right below {products.edge:,.10g}", fontsize=10)
    axis.legend(loc="upper left", frameon=False, fontsize=9)


def two_rings_explorer():
    """`two_rings` under sliders for the fraction bits and for the inner dimension, in powers of two."""

    def draw(fraction_bits: int, inner: int) -> Figure:
        return two_rings(fraction_bits, 2**inner)

    return explorer(
        draw,
        fraction_bits=slider("fraction bits", 12, FRACTION_BITS[0], FRACTION_BITS[-1]),
        inner=slider("inner dimension, 2 to the power", 8, 4, 11),
    )
