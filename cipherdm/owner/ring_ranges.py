"""Check in plaintext, by the model's owner, that the products fit which FAST_MIXED computes over Z_2^32.

A product of numbers with f and g fraction bits is a word of f + g fraction bits, and is right modulo 2^32 as long as it is
from -2^31 to 2^31 - 1. Only the product matters: operands may be larger than the ring, and partial sums too, since what
wraps around on the way wraps back. A bias is added afterwards, in the ring of 64 bits.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from ..errors import CipherDMError
from ..models.layout import unet_blocks
from ..models.unet import TIME_KINDS, UNet, run_blocks
from ..progress import Progress
from ..protocols import DIRECT, FAST_MIXED, direct
from ..protocols.fixed import encode
from ..protocols.small_ring import SMALL_BITS, WORD_BITS, product_limit
from ..schedules import make_schedule
from .fold import prepare_weights
from .observe import observe, one_hot_labels
from .prepared import PreparedWeights
from .ranges import LayerRange

LIMIT = product_limit()


def check_small_ring(
    unet: UNet,
    *,
    steps: int = 20,
    per_class: int = 4,
    seed: int = 1,
    progress: Progress | None = None,
) -> list[LayerRange]:
    """Sample with the exact model by DDIM, and compare products with what the ring of 32 bits holds.

    Products are those of the layers that FAST_MIXED computes there, of the exact model's values with the weights that the
    owner prepares for it, without biases.

    Args:
        steps: number of denoising steps.
        per_class: number of images of each class.
        seed: seed of the initial noise, which is public.
        progress: called as progress(done, steps, "check") after each step.

    Returns:
        One entry for every layer in the small ring, those with the largest fraction outside first, then those that come nearest
        to an end of the ring.

    Raises:
        CipherDMError: a number is below 1, the model has no scheduler or takes prompts, or it is not calibrated for products.
    """
    if min(steps, per_class) < 1:
        raise CipherDMError(f"there must be at least 1 step and 1 image of each class, not {steps} and {per_class}.")
    if unet.scheduler_config is None:
        raise CipherDMError("this model has no scheduler: put its scheduler_config.json beside its config.json.")
    schedule = make_schedule(unet.scheduler_config, "ddim", steps)
    weights = prepare_weights(unet, schedule.timesteps, FAST_MIXED)
    seen: dict[tuple[str, str], list[np.ndarray]] = {}

    def visit(step: int, records) -> None:
        for key, record in records.items():
            seen.setdefault(key, []).append(np.asarray(record, np.float64))
        if progress is not None:
            progress(step + 1, schedule.steps, "check")

    call = _recorded_call(unet, _in_small_ring(weights), schedule.timesteps)
    observe(unet, schedule, one_hot_labels(unet, per_class), seed=seed, visit=visit, call=call)
    found = [_summed(*key, np.array(records)) for key, records in seen.items()]
    return sorted(found, key=lambda entry: (-entry.outside, -max(-entry.lowest, entry.highest)))


def _in_small_ring(weights: PreparedWeights) -> dict[str, np.ndarray]:
    """The weights of the layers that are computed there, as rounded for it, each [steps, ...] or [1, ...]."""
    layers = [
        name.removesuffix(".ring")
        for name, ring in weights.static.items()
        if name.endswith(".ring") and ring == WORD_BITS
    ]
    names = [f"{layer}.weight" for layer in layers]
    rows = [weights.by_step[name] if name in weights.by_step else weights.constant[name][None] for name in names]
    return {name: encode(row, SMALL_BITS, ring=False) for name, row in zip(names, rows, strict=True)}


def _summed(layer: str, function: str, records: np.ndarray) -> LayerRange:
    """The entry of one product, from records [steps, 3] of `_record`."""
    lowest, highest, outside = records.T
    excess = max(-LIMIT - lowest.min(), highest.max() - LIMIT, 0.0)
    return LayerRange(
        layer=layer,
        function=function,
        lowest=float(lowest.min()),
        highest=float(highest.max()),
        allowed=(-LIMIT, LIMIT),
        outside=float(outside.mean()),
        step=int(np.argmax(outside)) if outside.any() else None,
        excess=float(excess) if outside.any() else 0.0,
    )


def _record(product: jnp.ndarray) -> jnp.ndarray:
    """[lowest, highest, fraction outside] of a product; NaN is outside."""
    inside = (product >= -LIMIT) & (product < LIMIT)
    return jnp.stack([jnp.min(product), jnp.max(product), jnp.mean(~inside, dtype=jnp.float32)])


def _recorded_call(unet: UNet, weights: dict[str, np.ndarray], timesteps: np.ndarray):
    """A function of (params, sample, timestep, onehot) to eps and the records by layer and function."""
    blocks = unet_blocks(unet.config)
    time = [block for block in blocks if block.kind in TIME_KINDS]
    rest = [block for block in blocks if block.kind not in TIME_KINDS]

    def call(params, sample, timestep, onehot):
        names = {id(array): name for name, array in params.items()}  # a layer gets the very arrays of the state dict
        step = jnp.argmin(jnp.abs(jnp.asarray(timesteps, jnp.float32) - timestep))
        records = {}

        def recording(function: str):
            exact = getattr(direct, function)

            def layer(local, x, **geometry):
                name = names[id(local["weight"])]
                if name in weights:
                    rows = jnp.asarray(weights[name])
                    product = exact({"weight": rows[step if len(rows) > 1 else 0]}, x, **geometry)
                    records[name.removesuffix(".weight"), function] = _record(product)
                return exact(local, x, **geometry)

            return layer

        values = {"sample": sample, "timestep": timestep, "class_onehot": onehot}
        values = run_blocks(time, params, values, protocols=DIRECT)
        protocols = replace(DIRECT, conv2d=recording("conv2d"), linear=recording("linear"))
        return run_blocks(rest, params, values, protocols=protocols)["eps"], records

    return call
