"""The choice of linear layers that FAST_MIXED computes over Z_2^32: those whose products fit, and that gain by it.

`cipherdm calibrate --products` measures products and stores them with the calibration. The choice is public: that a layer is
computed in the small ring tells that its products are small, and nothing else about the weights.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import numpy as np

from ..errors import CipherDMError
from ..protocols.small_ring import SMALL_BITS, product_limit

MARGIN = 4  # the largest product that calibration met, times this, must be within the ring

# Bytes of all parties together: of a truncation of one number, and saved by the message of one result, 3 x 4 instead of 3 x 8.
TRUNCATION_BYTES = 40
SAVED_BYTES = 12

# Multiply-adds for each number of the input, from which their time pays for its truncation whatever the bytes are. A guess for
# layers larger than those of the models here, which none of them reaches; it is not measured.
LEAST_MULTIPLY_ADDS = 4096
_PROJECTIONS = ("to_q", "to_k", "to_v")  # of an attention block, which are one product
_LEAVES = (".product", ".product_sizes")


@dataclass(frozen=True)
class LayerProduct:
    """Measurements of a layer's product, without the bias, for the weights that the owner shares.

    Attributes:
        largest: the largest size of a number in it.
        input_bits: fraction bits of the input as FAST multiplies it.
        inputs: count of numbers in the input of one image.
        outputs: count of numbers in the product of one image.
        multiply_adds: count of multiply-adds for one image.
    """

    largest: float
    input_bits: int
    inputs: int
    outputs: int
    multiply_adds: int

    @property
    def fits(self) -> bool:
        """True if the product is within the ring of 32 bits, with MARGIN."""
        return self.largest * MARGIN < product_limit()

    @property
    def pays(self) -> bool:
        """True if the small ring saves more than the input's truncation costs, in bytes or, for many multiply-adds, in time."""
        if self.input_bits <= SMALL_BITS:
            return True
        saves_bytes = SAVED_BYTES * self.outputs > TRUNCATION_BYTES * self.inputs
        return saves_bytes or self.multiply_adds >= LEAST_MULTIPLY_ADDS * self.inputs


def small_ring_layers(products: Mapping[str, LayerProduct]) -> tuple[str, ...]:
    """Return the names of the layers that go to the small ring, in order. Projections of one block go together or stay."""
    blocks: dict[str, list[str]] = {}
    for name in products:
        block, _, leaf = name.rpartition(".")
        blocks.setdefault(f"{block}.projections" if leaf in _PROJECTIONS else name, []).append(name)
    chosen = (names for names in blocks.values() if _goes([products[name] for name in names]))
    return tuple(name for names in chosen for name in names)


def _goes(members: list[LayerProduct]) -> bool:
    """Return True if layers with one input, which are one product, go to the small ring."""
    first = members[0]
    together = LayerProduct(
        max(member.largest for member in members),
        first.input_bits,
        first.inputs,
        sum(member.outputs for member in members),
        sum(member.multiply_adds for member in members),
    )
    return together.fits and together.pays


def products_to_arrays(products: Mapping[str, LayerProduct]) -> dict[str, np.ndarray]:
    """Return the arrays that a calibration stores: "LAYER.product", float32 [1], and "LAYER.product_sizes", int64 [4]."""
    arrays = {}
    for name, product in products.items():
        largest, *sizes = astuple(product)
        arrays[name + _LEAVES[0]] = np.array([largest], np.float32)
        arrays[name + _LEAVES[1]] = np.array(sizes, np.int64)
    return arrays


def products_from_arrays(calibration: Mapping[str, np.ndarray], model: object) -> dict[str, LayerProduct]:
    """Return the products that a calibration has. Raises CipherDMError, with the command for `model`, if it has none."""
    names = sorted(name.removesuffix(_LEAVES[0]) for name in calibration if name.endswith(_LEAVES[0]))
    if not names:
        raise CipherDMError(
            f"The calibration of {model} says nothing of products, which fast-mixed chooses layers by: run "
            f"`cipherdm calibrate {model} --products` first."
        )
    return {
        name: LayerProduct(float(calibration[name + _LEAVES[0]][0]), *map(int, calibration[name + _LEAVES[1]]))
        for name in names
    }


def without_products(calibration: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a calibration without its products."""
    return {name: array for name, array in calibration.items() if not name.endswith(_LEAVES)}
