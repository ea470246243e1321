"""Whether the products of a model's linear layers fit into the ring of 32 bits: a check in plaintext, by the model's owner.

A product of numbers with f and g fraction bits is a word of f + g fraction bits, and is right modulo 2^32 as long as it is
from -2^31 to 2^31 - 1. Only the product matters: operands may be larger than the ring, and partial sums too, since what
wraps around on the way wraps back. A bias is added afterwards, in the ring of 64 bits.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import CipherDMError
from ..protocols import DIRECT, direct
from ..sampling import make_schedule
from .calibration import walk
from .layout import unet_blocks
from .ranges import LayerRange
from .unet import TIME_KINDS, UNet, run_blocks

WORD_BITS = 32


def ring_limit(fraction_bits: int) -> float:
    """The size from which a product with so many fraction bits, those of both operands together, leaves the ring."""
    return 2.0 ** (WORD_BITS - 1 - fraction_bits)


def check_small_ring(
    unet: UNet,
    *,
    value_bits: int = 10,
    weight_bits: int = 12,
    steps: int = 20,
    per_class: int = 4,
    seed: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[LayerRange]:
    """Sample with the exact model by DDIM, and compare the product of each linear layer with what the ring of 32 bits holds.

    Layers are convolutions and linear layers, without their biases, and in attention with softmax the scores and the mixed
    values, which are products of two values. Time embeddings are left out: their owner computes them in plaintext. The
    weights are the model's own; where a preparation of the owner's folds factors into them, products change by these.

    Args:
        value_bits: fraction bits of the values that a layer takes.
        weight_bits: fraction bits of its weights.
        steps: denoising steps.
        per_class: pictures of each class.
        seed: of the initial noise, which is public.
        progress: called as progress(done, steps, "check") after each step.

    Returns:
        One entry for every product, those with the largest fraction outside first, then those that come nearest to an end of
        the ring.

    Raises:
        CipherDMError: a number is below 1, operands have more fraction bits than the ring has bits, or the model has no
            scheduler or takes prompts.
    """
    if min(steps, per_class, value_bits, weight_bits) < 1 or 2 * max(value_bits, weight_bits) >= WORD_BITS:
        raise CipherDMError(
            f"there must be at least 1 picture of each class, and from 1 to {WORD_BITS // 2 - 1} fraction bits, not "
            f"{per_class} pictures, {value_bits} bits for values and {weight_bits} for weights."
        )
    if unet.scheduler_config is None:
        raise CipherDMError("this model has no scheduler: put its scheduler_config.json beside its config.json.")
    schedule = make_schedule(unet.scheduler_config, "ddim", steps)
    limits = {"weights": ring_limit(value_bits + weight_bits), "values": ring_limit(2 * value_bits)}
    seen: dict[tuple[str, str], list[np.ndarray]] = {}

    def visit(step: int, records) -> None:
        for key, record in records.items():
            seen.setdefault(key, []).append(np.asarray(record, np.float64))
        if progress is not None:
            progress(step + 1, schedule.steps, "check")

    call = jax.jit(_recorded_call(unet, limits))
    walk(unet, call, schedule.timesteps, schedule.coefficients, images_per_class=per_class, seed=seed, visit=visit)
    found = [_summed(*key, np.array(records), limits) for key, records in seen.items()]
    return sorted(found, key=lambda entry: (-entry.outside, -max(-entry.lowest, entry.highest) / entry.allowed[1]))


def _summed(layer: str, function: str, records: np.ndarray, limits: dict[str, float]) -> LayerRange:
    """The entry of one product, from records [steps, 3] of `_record`."""
    lowest, highest, outside = records.T
    limit = limits[_KINDS[function]]
    excess = max(-limit - lowest.min(), highest.max() - limit, 0.0)
    return LayerRange(
        layer=layer,
        function=function,
        lowest=float(lowest.min()),
        highest=float(highest.max()),
        allowed=(-limit, limit),
        outside=float(outside.mean()),
        step=int(np.argmax(outside)) if outside.any() else None,
        excess=float(excess) if outside.any() else 0.0,
    )


_KINDS = {"conv2d": "weights", "linear": "weights", "scores": "values", "mixed values": "values"}


def _record(product: jnp.ndarray, limit: float) -> jnp.ndarray:
    """[lowest, highest, fraction outside] of a product; what is not a number is outside."""
    inside = (product >= -limit) & (product < limit)
    return jnp.stack([jnp.min(product), jnp.max(product), jnp.mean(~inside, dtype=jnp.float32)])


def _recorded_call(unet: UNet, limits: dict[str, float]):
    """A function of (params, sample, timestep, onehot) to eps and the records by layer and function."""
    blocks = unet_blocks(unet.config)
    time = [block for block in blocks if block.kind in TIME_KINDS]
    rest = [block for block in blocks if block.kind not in TIME_KINDS]

    def call(params, sample, timestep, onehot):
        names = {id(array): name for name, array in params.items()}  # a layer gets the very arrays of the state dict
        records = {}

        def note(layer: str, function: str, product) -> None:
            records[layer, function] = _record(product, limits[_KINDS[function]])

        def conv2d(local, x, **geometry):
            product = direct.conv2d({"weight": local["weight"]}, x, **geometry)
            note(names[id(local["weight"])].removesuffix(".weight"), "conv2d", product)
            return direct.conv2d(local, x, **geometry)

        def linear(local, x):
            note(
                names[id(local["weight"])].removesuffix(".weight"),
                "linear",
                direct.linear({"weight": local["weight"]}, x),
            )
            return direct.linear(local, x)

        def attention(local, q, k, v, *, scale, softmax):
            layer = names[id(local["to_q.weight"])].removesuffix(".to_q.weight")
            note(layer, "scores", jnp.einsum("bhdn,bhdm->bhnm", q * jnp.float32(scale), k))
            mixed = direct.attention(local, q, k, v, scale=scale, softmax=softmax)
            note(layer, "mixed values", mixed)
            return mixed

        values = {"sample": sample, "timestep": timestep, "class_onehot": onehot}
        values = run_blocks(time, params, values, protocols=DIRECT)
        recording = replace(DIRECT, conv2d=conv2d, linear=linear, attention=attention)
        return run_blocks(rest, params, values, protocols=recording)["eps"], records

    return call
