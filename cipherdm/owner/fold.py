"""The owner's preparation: weights and calibrated fits folded into the arrays that are shared, by what a protocol set needs."""

import math
from collections.abc import Collection, Mapping

import numpy as np

from ..errors import CipherDMError, refuse
from ..models.config import DiTConfig, UNetConfig
from ..models.unet import UNet
from ..protocols import Protocols
from ..protocols.fast import CONSTANT_BITS, POWER_BITS, VALUE_BITS, WEIGHT_BITS
from ..protocols.fast_attention import FEATURE_BITS, MIXED_BITS, SHARE_BITS, token_shift
from .calibrate import check_computed_by_fast
from .fold_norms import Fits, fold_line_norm, fold_modulated_norm, fold_newton_norm, fold_polynomial, fold_token_norm
from .observe import Layers, load_calibration
from .prepared import PreparedWeights, time_terms, without_time_blocks

# Each step doubles the right digits of a start that is off by nearly 1, so 10 are for sums that differ by a factor of some
# hundred. Beyond, the smallest sums have no digits left.
_MOST_INVERSE_STEPS = 10
_PEAK_MARGIN = 2.0  # factor by which exponentials may become larger than calibration met

# Of attention's constants: each is added to numbers with these bits, or multiplied at them.
ATTENTION_BITS = {
    "h": FEATURE_BITS,
    "c": 2 * VALUE_BITS,
    "constant": 2 * VALUE_BITS,
    "r0": MIXED_BITS,
    "r1": 2 * MIXED_BITS,
}


def prepare_weights(
    unet: UNet,
    timesteps: np.ndarray,
    protocols: Protocols,
    *,
    blocks: Collection[str] | None = None,
    calibration: Mapping[str, np.ndarray] | None = None,
) -> PreparedWeights:
    """Return what the owner shares for a schedule's timesteps [steps]: all weights, or time terms instead of the time blocks.

    For FAST, the fits nearest to the timesteps are folded into gains and constants. Each block is prepared on its own.

    Args:
        unet: the model.
        timesteps: timesteps of the schedule.
        protocols: the protocol set that the weights are for.
        blocks: names of the blocks whose weights are wanted, all by default.
        calibration: the fits, for callers that prepare block after block; read from the model's folder by default.

    Raises:
        CipherDMError: the protocol set needs a calibration that the model's folder lacks, or does not compute the model's
            layers.
    """
    small = protocols.small_bits is not None and not isinstance(unet.config, DiTConfig)
    refuse({f"{protocols.name} computes transformers alone; choose another set": small})
    if protocols.time_embedding == "inside":
        return PreparedWeights(dict(unet.params), {}, {})
    if protocols.prepare is None:
        weights = PreparedWeights(without_time_blocks(unet, blocks), {}, time_terms(unet, timesteps, blocks))
        if protocols.small_bits is not None:
            prepare_small(weights, Layers.of(unet, blocks), protocols.small_bits)
        return weights
    by_class, guarded = isinstance(unet.config, UNetConfig), protocols.prepare == "fast-guarded"
    check_computed_by_fast(unet)
    if guarded and not by_class:
        raise CipherDMError("fast-guarded computes UNet2DModels alone; choose fast.")
    stored = load_calibration(unet) if calibration is None else calibration
    fits, layers = Fits.at(stored, timesteps), Layers.of(unet, blocks)
    weights = PreparedWeights(without_time_blocks(unet, blocks), {}, time_terms(unet, timesteps, blocks))
    for name, groups in layers.group_norms.items():
        activation = layers.activations.get(name)
        if by_class:
            fold_line_norm(weights, fits, name, groups, activation, guarded=guarded)
        else:
            fold_newton_norm(weights, fits, name, groups, activation, unet.config.norm_eps)
    for name, eps in layers.token_norms.items():
        fold = fold_token_norm if f"{name}.weight" in weights.constant else fold_modulated_norm
        fold(weights, fits, name, eps=eps)
    for name, heads in layers.attentions.items():
        fold_exponential(weights, fits, name, len(weights.constant[f"{name}.to_q.weight"]) // heads)
        if not by_class:
            weights.static[f"{name}.to_q.centred"] = int(f"{name}.floor" not in stored)
        else:
            # Subtracting the mean key moves the scores of each row about 0, where the exponential was fitted.
            bias = weights.constant.pop(f"{name}.to_k.bias")
            weights.by_step[f"{name}.to_k.bias"] = bias - fits.rows(f"{name}.key")
            weights.bits[f"{name}.to_out.0.bias"] = 3 * MIXED_BITS + WEIGHT_BITS
    for name, heads in layers.linear_attentions.items():
        _fold_linear_attention(weights, name, heads, int(stored[f"{name}.group_norm.pixels"][0]))
    for name, act_fn in {**dict.fromkeys(layers.gates, "gelu"), **layers.inner}.items():
        fold_inner(weights, stored, name, act_fn, gated=name in layers.gates)
    for name in (*weights.constant, *weights.by_step):
        if name.endswith(".bias"):  # the bits of the product that it is added to
            weights.bits.setdefault(name, VALUE_BITS + WEIGHT_BITS)
    return weights


def prepare_small(weights: PreparedWeights, layers: Layers, bits: int) -> None:
    """Give linear layers the fraction bits of the ring of 32 bits, and queries the scale of the scores."""
    for name, heads in layers.attentions.items():
        for leaf in ("weight", "bias"):
            query = f"{name}.to_q.{leaf}"
            weights.constant[query] = weights.constant[query] * np.float32(
                (len(weights.constant[query]) // heads) ** -0.5
            )
    linear = [
        name for name, array in weights.constant.items() if array.ndim == 2 and not name.startswith("embeddings.")
    ]
    weights.bits.update(dict.fromkeys(linear, bits))
    weights.bits.update({f"{name.removesuffix('weight')}bias": 2 * bits for name in linear})


def fold_exponential(weights: PreparedWeights, fits: Fits, name: str, size: int) -> None:
    """Fold the constants of `fast_attention.attention` with heads of `size`, and scale the query's projection for them."""
    alpha, beta, gamma = fits.rows(f"{name}.exp").astype(np.float64).T
    squarings, newton = (int(count) for count in fits.stored[f"{name}.counts"])
    if newton > _MOST_INVERSE_STEPS:
        raise CipherDMError(
            f"The sums that {name} divides by are so far apart that their inverse takes {newton} Newton steps, where "
            f"{_MOST_INVERSE_STEPS} have room for their digits: choose another protocol set, or a model whose attention scores "
            "are nearer to their row's mean."
        )
    stretch = np.sqrt(alpha)
    query = f"{name}.to_q"
    # 2^squarings times as large as needed, for as many more fraction bits of the scores.
    factor = stretch * size**-0.5 * 2**squarings
    for leaf in ("weight", "bias"):
        fixed = weights.constant.pop(f"{query}.{leaf}")
        weights.by_step[f"{query}.{leaf}"] = factor.reshape(-1, *[1] * fixed.ndim) * fixed
    weights.by_step[f"{query}.h"] = beta / (2 * stretch)
    weights.by_step[f"{query}.c"] = gamma - (beta / (2 * stretch)) ** 2
    weights.by_step[f"{query}.constant"] = gamma
    if f"{name}.floor" in fits.stored:
        weights.by_step[f"{query}.floor"] = fits.stored[f"{name}.floor"] * stretch
        weights.bits[f"{query}.floor"] = 2 * VALUE_BITS
    for leaf, values in zip(("r0", "r1"), fits.rows(f"{name}.sum").T, strict=True):
        weights.by_step[f"{query}.{leaf}"] = values
    weights.bits.update({f"{query}.{leaf}": bits for leaf, bits in ATTENTION_BITS.items()})
    weights.static.update({f"{query}.squarings": squarings, f"{query}.newton": newton})
    if (peak := float(fits.stored.get(f"{name}.peak", [0])[0])) * _PEAK_MARGIN > 2.0 ** (18 - SHARE_BITS):
        weights.static[f"{query}.bits"] = 18 - math.ceil(math.log2(peak * _PEAK_MARGIN))


def _fold_linear_attention(weights: PreparedWeights, name: str, heads: int, tokens: int) -> None:
    """Fold the factors that `fast_attention.linear_attention` leaves out into the projections beside it; exact."""
    size = len(weights.constant[f"{name}.to_q.weight"]) // heads
    for leaf in ("weight", "bias"):
        weights.constant[f"{name}.to_q.{leaf}"] = weights.constant[f"{name}.to_q.{leaf}"] * np.float32(size**-0.5)
    # The layer divides sums over tokens by a power of two; the rest of the division by their number is here.
    factor = np.float32(2.0 ** token_shift(tokens) / tokens)
    weights.constant[f"{name}.to_out.0.weight"] = weights.constant[f"{name}.to_out.0.weight"] * factor
    weights.bits[f"{name}.to_out.0.bias"] = POWER_BITS + VALUE_BITS + WEIGHT_BITS


def fold_inner(
    weights: PreparedWeights, stored: Mapping[str, np.ndarray], name: str, act_fn: str, *, gated: bool = False
) -> None:
    """Fold an activation after a linear layer or convolution called `name`, into which its scale, and shift, go.

    If it is `gated` (`fast_norms.geglu`), they go into that layer's second half alone.
    """
    bits, offset = CONSTANT_BITS[3], 0.0
    if act_fn == "gelu_quad":  # ((x + 1) / sqrt 8)^2 + 3/8
        scale, offset, bits = np.array([8**-0.5]), 8**-0.5, 2 * POWER_BITS
    else:
        fitted = next(stored[f"{name}.{leaf}"] for leaf in ("even", "cubic") if f"{name}.{leaf}" in stored)
        scale = fold_polynomial(weights, weights.constant, name, fitted.reshape(-1, fitted.shape[-1]))
    if gated:
        scale = np.concatenate([np.ones_like(scale), scale])
    elif after := _layer_after(name):  # what is added to products of the result
        weights.bits[f"{after}.bias"] = bits + WEIGHT_BITS
    weight = weights.constant[f"{name}.weight"]
    weights.constant[f"{name}.weight"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    weights.constant[f"{name}.bias"] = weights.constant[f"{name}.bias"] * scale + offset


def _layer_after(name: str) -> str | None:
    """The linear layer that reads an activation of what another one returns, if it is in the same block."""
    after = {"ff.net.0.proj": "ff.net.2", "pooler": "classifier"}
    leaf = next((leaf for leaf in after if name.endswith(leaf)), None)
    return None if leaf is None else name.removesuffix(leaf) + after[leaf]
