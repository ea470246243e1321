"""`cipherdm calibrate MODEL --products`: the sizes of a model's products, added to its calibration."""

from collections.abc import Callable
from pathlib import Path

from .models import load_unet
from .models.calibration import load_calibration, save_calibration
from .models.rings import products_to_arrays, small_ring_layers, without_products
from .sampling.products import measure_products


def add_products(
    folder: Path, *, steps: int, per_class: int, seed: int, progress: Callable[[int, int, str], None] | None = None
) -> str:
    """Measure products and store them, in the place of earlier ones; nothing else in the calibration changes.

    Args:
        folder: of the model.
        steps, per_class, seed, progress: as `measure_products` has them.

    Returns:
        What to print.

    Raises:
        CipherDMError: as `measure_products` and `load_calibration`.
    """
    unet = load_unet(folder)
    stored = without_products(load_calibration(unet))
    products = measure_products(unet, steps=steps, per_class=per_class, seed=seed, progress=progress)
    path = save_calibration(stored | products_to_arrays(products), unet)
    chosen = small_ring_layers(products)
    return f"Wrote {path}: {len(chosen)} of {len(products)} linear layers go to the ring of 32 bits."
