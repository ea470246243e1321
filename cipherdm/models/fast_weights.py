"""The owner's preparation for FAST: what calibration fitted, folded into weights that are ready to be shared."""

import numpy as np

from ..errors import CipherDMError
from ..protocols.fast import (
    CONSTANT_BITS,
    FEATURE_BITS,
    GAIN_BITS,
    MIXED_BITS,
    POWER_BITS,
    SLOPE_BITS,
    VALUE_BITS,
    WEIGHT_BITS,
    token_shift,
)
from ..protocols.knuth import adapt_quartic
from ..protocols.small_ring import SMALL_BITS, WORD_BITS
from .calibration import load_calibration, norm_layers, softmax_blocks
from .layout import unet_blocks
from .prepared import PreparedWeights, time_terms, without_time_blocks
from .rings import products_from_arrays, small_ring_layers
from .unet import UNet

ATTENTION_BITS = {
    "h": FEATURE_BITS,
    "c": 2 * VALUE_BITS,
    "constant": 2 * VALUE_BITS,
    "r0": MIXED_BITS,
    "r1": 2 * MIXED_BITS,
}
_SLOPE_UNIT = 2.0**-SLOPE_BITS


def prepare_fast(unet: UNet, timesteps: np.ndarray, *, guarded: bool = False, mixed: bool = False) -> PreparedWeights:
    """Weights for `protocols.fast`: time terms in the clear, the fits nearest to `timesteps` folded into gains and constants.

    With `guarded` each normalisation also gets the ends of the range that it met, for FAST_GUARDED. With `mixed` the layers
    that `small_ring_layers` chooses get SMALL_BITS for their weights and the public number "ring", for FAST_MIXED.

    Raises:
        CipherDMError: the model is not calibrated, with `mixed` also not for products, or has layers that FAST does not
            compute.
    """
    _check_supported(unet)
    stored = load_calibration(unet)
    nearest = np.abs(stored["timesteps"][None, :] - np.asarray(timesteps)[:, None]).argmin(1)
    weights = PreparedWeights(without_time_blocks(unet), {}, time_terms(unet, timesteps), {}, {})
    for name, groups in norm_layers(unet).items():
        quad = unet.config.act_fn == "quad" and not name.endswith("group_norm")
        scale, offset = _prepare_norm(weights, stored, nearest, name, groups, quad)
        if guarded:
            ends = stored[f"{name}.range"][nearest] * scale[..., None] + offset
            weights.by_step.update({f"{name}.low": ends[..., 0], f"{name}.high": ends[..., 1]})
            weights.bits.update(dict.fromkeys((f"{name}.low", f"{name}.high"), GAIN_BITS + VALUE_BITS))
    for block in unet_blocks(unet.config):
        if block.kind == "attention":
            size = dict(block.static)["head_channels"]
            if block.name in softmax_blocks(unet):
                _prepare_attention(weights, stored, nearest, block.name, size)
            else:
                _prepare_linear_attention(weights, block.name, size, int(stored[f"{block.name}.group_norm.pixels"][0]))
    fill_bias_bits(weights)
    if mixed:
        for name in small_ring_layers(products_from_arrays(stored, unet.folder)):
            weights.bits[f"{name}.weight"], weights.static[f"{name}.ring"] = SMALL_BITS, WORD_BITS
    return weights


def fill_bias_bits(weights: PreparedWeights) -> None:
    """Biases have the bits of the products that they are added to, where nothing else was said."""
    for name in (*weights.constant, *weights.by_step):
        if name.endswith(".bias"):
            weights.bits.setdefault(name, VALUE_BITS + WEIGHT_BITS)


def _check_supported(unet: UNet) -> None:
    config = unet.config
    problems = {
        "resnet_time_scale_shift='scale_shift'": config.resnet_time_scale_shift == "scale_shift",
        f"mid_block_scale_factor={config.mid_block_scale_factor}": config.mid_block_scale_factor != 1,
        "attention without normalisation": any(
            block.kind == "attention" and dict(block.static)["groups"] is None for block in unet_blocks(config)
        ),
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise CipherDMError(f"FAST does not compute {', '.join(found)}, which this model has; choose another set.")


def _prepare_norm(
    weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str, groups: int, quad: bool
) -> tuple[np.ndarray, float]:
    """Gains, shifts and constants of one normalisation and its activation, in units in which its input has variance about 1.

    Returns the scales [steps, C] and the offset that make the result of the normalised values.
    """
    weight, bias = weights.constant.pop(f"{name}.weight"), weights.constant.pop(f"{name}.bias")
    fits = {leaf: stored[f"{name}.{leaf}"][:, nearest].astype(np.float64) for leaf in ("center", "typical", "rstd")}
    unit = take_unit(weights, name, np.exp(np.log(fits["typical"]).mean() / 2))
    p, q = fits["rstd"][..., 0] * unit, fits["rstd"][..., 1] * unit**3
    center, typical = fits["center"] / unit, fits["typical"] / unit**2
    width = len(weight) // groups
    p, q, typical = (np.repeat(x, width, axis=2) for x in (p, q, typical))  # [classes, steps, C]

    if quad:  # ((x + 1) / 2)^2 - 1/4
        scale, offset = 0.5, 0.5
        _set_bits_after(weights, name, 2 * POWER_BITS)
    else:
        scale, offset = prepare_activation(weights, stored, nearest, name), 0.0
    scale = np.broadcast_to(scale, (len(nearest), len(weight)))
    gain = scale * weight  # [steps, C]
    # The layer sums squares, where a variance is their mean.
    count = int(stored[f"{name}.pixels"][0]) * width
    slope = np.round(gain * q / count / _SLOPE_UNIT) * _SLOPE_UNIT
    # The slope is rounded to the ring, and the intercept makes up for it at the typical square.
    fixed_gain = gain * (p - q * typical)  # [classes, steps, C]
    weights.by_class[f"{name}.gain0"] = fixed_gain + slope * typical * count
    weights.by_class[f"{name}.slopes"] = np.stack([-slope, -fixed_gain / count], axis=2)
    weights.by_step[f"{name}.shift"] = scale * bias + offset
    weights.bits.update({f"{name}.gain0": GAIN_BITS, f"{name}.shift": GAIN_BITS, f"{name}.slopes": SLOPE_BITS})
    if not _take_center(weights, name, np.repeat(center, width, axis=2)):
        weights.by_class[f"{name}.center"] = center
        weights.bits[f"{name}.center"] = VALUE_BITS
    return scale, offset


def take_unit(weights: PreparedWeights, name: str, deviation: float) -> float:
    """Divide the input of a residual block's second normalisation by its typical deviation, where it is made; exact.

    Nothing else reads it. Other normalisations read the stream between blocks, whose unit stays.
    """
    block, _, leaf = name.rpartition(".")
    if leaf != "norm2":
        return 1.0
    for values in (f"{block}.conv1.weight", f"{block}.conv1.bias"):
        weights.constant[values] = weights.constant[values] / deviation
    weights.by_class[f"{block}.time_term"] = weights.by_class[f"{block}.time_term"] / deviation
    return deviation


def _take_center(weights: PreparedWeights, name: str, center: np.ndarray) -> bool:
    """Subtract the center [classes, steps, C] from the input of a residual block's second normalisation, where it is made.

    The time term takes it in, and the first convolution's bias too. False for other normalisations.
    """
    block, _, leaf = name.rpartition(".")
    if leaf != "norm2":
        return False
    weights.by_class[f"{block}.time_term"] = (
        weights.by_class[f"{block}.time_term"] + weights.constant.pop(f"{block}.conv1.bias") - center
    )
    return True


def prepare_exponential(weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str, size: int) -> None:
    """The constants of `fast.attention` with heads of `size`, and what the query's projection takes in."""
    alpha, beta, gamma = stored[f"{name}.exp"][nearest].astype(np.float64).T
    squarings, newton = (int(count) for count in stored[f"{name}.counts"])
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
    if f"{name}.floor" in stored:
        weights.by_step[f"{query}.floor"] = stored[f"{name}.floor"] * stretch
        weights.bits[f"{query}.floor"] = 2 * VALUE_BITS
    for leaf, values in zip(("r0", "r1"), stored[f"{name}.sum"][nearest].T, strict=True):
        weights.by_step[f"{query}.{leaf}"] = values
    weights.bits.update({f"{query}.{leaf}": bits for leaf, bits in ATTENTION_BITS.items()})
    weights.static.update({f"{query}.squarings": squarings, f"{query}.newton": newton})


def _prepare_attention(weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str, size: int) -> None:
    prepare_exponential(weights, stored, nearest, name, size)
    weights.by_step[f"{name}.to_k.bias"] = weights.constant.pop(f"{name}.to_k.bias") - stored[f"{name}.key"][nearest]
    weights.bits[f"{name}.to_out.0.bias"] = 3 * MIXED_BITS + WEIGHT_BITS


def _prepare_linear_attention(weights: PreparedWeights, name: str, size: int, tokens: int) -> None:
    """Fold the factors that `fast.linear_attention` leaves out into the projections beside it; exact."""
    for leaf in ("weight", "bias"):
        weights.constant[f"{name}.to_q.{leaf}"] = weights.constant[f"{name}.to_q.{leaf}"] * np.float32(size**-0.5)
    factor = np.float32(2.0 ** token_shift(tokens) / tokens)
    weights.constant[f"{name}.to_out.0.weight"] = weights.constant[f"{name}.to_out.0.weight"] * factor
    weights.bits[f"{name}.to_out.0.bias"] = POWER_BITS + VALUE_BITS + WEIGHT_BITS


def prepare_activation(weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str) -> np.ndarray | float:
    """Knuth's constants for the activation after a normalisation; returns the scale of its input, [steps, C] or 1."""
    found = [leaf for leaf in ("even", "cubic") if f"{name}.{leaf}" in stored]
    if not found:
        return 1.0
    fits = stored[f"{name}.{found[0]}"][nearest].astype(np.float64)
    odd, even = fits[..., :-5], fits[..., -5:]
    scale = (-even[..., -1]) ** (1 / 8)
    weights.static[f"{name}.cubic"] = int(odd.shape[-1] > 0)
    if odd.shape[-1]:
        weights.by_step[f"{name}.linear"], weights.by_step[f"{name}.third"] = (
            odd[..., 0] / scale,
            odd[..., 1] / scale**3,
        )
        weights.bits.update({f"{name}.linear": POWER_BITS, f"{name}.third": 2 * POWER_BITS})
    else:
        weights.by_step[f"{name}.linear"] = 1 / (2 * scale)
        weights.bits[f"{name}.linear"] = 2 * POWER_BITS
    quartics = -even / scale[..., None] ** np.arange(0, 10, 2)
    constants = np.apply_along_axis(adapt_quartic, 2, quartics) * [1, 1, 1, -1]
    for index, letter in enumerate("abcd"):
        weights.by_step[f"{name}.{letter}"] = constants[..., index]
        weights.bits[f"{name}.{letter}"] = CONSTANT_BITS[index]
    _set_bits_after(weights, name, CONSTANT_BITS[3])
    return scale


def _set_bits_after(weights: PreparedWeights, name: str, bits: int) -> None:
    """What the convolution after an activation adds is at the bits of its product; those of the activation are given."""
    block, _, leaf = name.rpartition(".")
    after = {"norm1": "time_term", "norm2": "conv2.bias", "conv_norm_out": "conv_out.bias"}[leaf]
    weights.bits[f"{block}.{after}".removeprefix(".")] = bits + WEIGHT_BITS
