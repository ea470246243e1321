"""The owner's preparation for FAST: what calibration fitted, folded into weights that are ready to be shared."""

# FROM cipherdm.models.condition_fast_weights:
# The owner's preparation of a U-Net with cross-attention for FAST: calibrated fits, folded into weights to be shared.

from collections.abc import Collection, Mapping

import numpy as np

from ..approximations.knuth import adapt_quartic
from ..errors import CipherDMError
from ..models.blocks import GROUP_NORM_EPS, LAYER_NORM_EPS
from ..models.config import UNetConditionConfig
from ..models.layout import unet_blocks
from ..models.unet import UNet
from ..protocols import Protocols
from ..protocols.fast import CONSTANT_BITS, GAIN_BITS, POWER_BITS, SLOPE_BITS, VALUE_BITS, WEIGHT_BITS
from ..protocols.fast_attention import FEATURE_BITS, MIXED_BITS, token_shift
from ..protocols.fast_norms import FACTOR_BITS
from ..protocols.fast_norms import WEIGHT_BITS as NORM_WEIGHT_BITS
from ..protocols.small_ring import SMALL_BITS, WORD_BITS
from .calibrate import MAX_NEWTON
from .fits import newton_start
from .observe import Layers, load_calibration, norm_layers, softmax_blocks
from .prepared import PreparedWeights, time_terms, without_time_blocks
from .rings import products_from_arrays, small_ring_layers


def prepare_weights(
    unet: UNet,
    timesteps: np.ndarray,
    protocols: Protocols,
    *,
    blocks: Collection[str] | None = None,
    calibration: Mapping[str, np.ndarray] | None = None,
) -> PreparedWeights:
    """What the owner shares for a schedule's timesteps [steps]: all weights, or time terms in place of the time blocks.

    Args:
        unet: the model.
        timesteps: of the schedule.
        protocols: what the weights are for.
        blocks: names of the blocks whose weights are wanted, for a U-Net that takes prompts; all by default.
        calibration: what `load_calibration` gives, for those who prepare block after block; read from the folder by default.

    Raises:
        CipherDMError: the protocols need a calibration that the model's folder lacks, or do not compute the model's layers.
    """
    if protocols.prepare is not None:
        guarded, mixed = protocols.prepare == "fast-guarded", protocols.prepare == "fast-mixed"
        if isinstance(unet.config, UNetConditionConfig):
            if mixed:
                raise CipherDMError("fast-mixed does not compute models that take a prompt; choose fast-kernels.")
            return prepare_prompted(unet, timesteps, guarded=guarded, blocks=blocks, calibration=calibration)
        return prepare_fast(unet, timesteps, guarded=guarded, mixed=mixed)
    if protocols.time_embedding == "inside":
        return PreparedWeights(dict(unet.params), {}, {})
    return PreparedWeights(without_time_blocks(unet, blocks), {}, time_terms(unet, timesteps, blocks))


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
            size = len(unet.params[f"{block.name}.to_q.weight"]) // dict(block.static)["heads"]
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


_LARGEST = 24.0  # of u in `inverse_root`, and its inverse: up to 32 its numbers hold

# The linear layers that read what a transformer's LayerNorm gives.
_READERS = {"norm1": ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "norm2": ("attn2.to_q",), "norm3": ("ff.net.0.proj",)}


def prepare_prompted(
    unet: UNet,
    timesteps: np.ndarray,
    *,
    guarded: bool = False,
    blocks: Collection[str] | None = None,
    calibration: Mapping[str, np.ndarray] | None = None,
) -> PreparedWeights:
    """Weights for `protocols.fast_moments` and `protocols.fast`, as `fast_weights.prepare_fast` for other U-Nets.

    Nothing is moved from one block to another, so that blocks can be prepared one by one: `blocks` has the names of those that
    are wanted, and `calibration` what was read before.

    Raises:
        CipherDMError: the model is not calibrated, or has layers that FAST does not compute; or it is to be guarded.
    """
    _check_prompted_supported(unet, guarded)
    stored = load_calibration(unet) if calibration is None else calibration
    layers = Layers.of(unet, blocks)
    nearest = np.abs(stored["timesteps"][None, :] - np.asarray(timesteps)[:, None]).argmin(1)
    weights = PreparedWeights(without_time_blocks(unet, blocks), {}, time_terms(unet, timesteps, blocks), {}, {})
    for name, groups in layers.group_norms.items():
        activated = not name.endswith(".norm")
        _prepare_group_norm(
            weights, stored, nearest, name, groups, unet.config.norm_eps if activated else GROUP_NORM_EPS
        )
    for name in layers.token_norms:
        _prepare_token_norm(weights, stored, nearest, name)
    for name, heads in layers.attentions.items():
        size = len(weights.constant[f"{name}.to_q.weight"]) // heads
        prepare_exponential(weights, stored, nearest, name, size)
        weights.static[f"{name}.to_q.centred"] = int(f"{name}.floor" not in stored)
    for name in layers.gates:
        _prepare_gate(weights, stored, name)
    fill_bias_bits(weights)
    return weights


def _check_prompted_supported(unet: UNet, guarded: bool) -> None:
    config = unet.config
    problems = {
        "resnet_time_scale_shift='scale_shift'": config.resnet_time_scale_shift == "scale_shift",
        f"mid_block_scale_factor={config.mid_block_scale_factor}": config.mid_block_scale_factor != 1,
        "act_fn='gelu' in residual blocks": config.act_fn == "gelu",
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise CipherDMError(f"FAST does not compute {', '.join(found)}, which this model has; choose another set.")
    if guarded:
        raise CipherDMError("fast-guarded does not compute models that take a prompt; choose fast.")


def _prepare_group_norm(
    weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str, groups: int, eps: float
) -> None:
    """The constants of `fast_moments.group_norm` and of the activation after it."""
    weight, bias = weights.constant.pop(f"{name}.weight"), weights.constant.pop(f"{name}.bias")
    unit = take_unit(weights, name, _typical(stored, name).mean() ** 0.5)
    typical = _prepare_root(weights, stored, nearest, name, eps, unit)
    scale = np.broadcast_to(prepare_activation(weights, stored, nearest, name), (len(nearest), len(weight)))
    weights.by_step[f"{name}.weight"] = scale * weight / np.sqrt(np.repeat(typical, len(weight) // groups))
    weights.by_step[f"{name}.shift"] = scale * bias
    weights.bits.update({f"{name}.weight": NORM_WEIGHT_BITS, f"{name}.shift": GAIN_BITS})


def _prepare_token_norm(weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str) -> None:
    """The constants of `fast_moments.layer_norm`; weight and bias go to the layers that read it, exactly."""
    weight, bias = weights.constant.pop(f"{name}.weight"), weights.constant.pop(f"{name}.bias")
    gain = weight / np.sqrt(_prepare_root(weights, stored, nearest, name, LAYER_NORM_EPS))
    path, _, leaf = name.rpartition(".")
    for reader in _READERS[leaf]:
        full = weights.constant[f"{path}.{reader}.weight"]
        before = weights.constant.get(f"{path}.{reader}.bias", 0.0)
        weights.constant[f"{path}.{reader}.weight"] = full * gain
        weights.constant[f"{path}.{reader}.bias"] = full @ bias + before


def _typical(stored: dict, name: str) -> np.ndarray:
    """The middle of the variances of each group [groups], over all steps and on a logarithmic scale."""
    spread = stored[f"{name}.spread"].astype(np.float64)
    return np.sqrt(spread[..., 0].min(0) * spread[..., 1].max(0))


def _prepare_root(
    weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str, eps: float, unit: float = 1.0
) -> np.ndarray:
    """The constants of `fast_moments.inverse_root`, for an input in units of `unit`; returns what variances are divided by."""
    typical = _typical(stored, name) / unit**2
    ranges = stored[f"{name}.spread"][nearest].astype(np.float64) / unit**2 / typical[:, None]  # [steps, groups, 2]
    newton = int(stored[f"{name}.newton"][0])
    low, high = (float(end) for end in (ranges.min(), ranges.max()))
    if high > _LARGEST or newton >= MAX_NEWTON:  # the lowest is the inverse of the highest
        raise CipherDMError(
            f"The variances that {name} divides by differ by a factor of {high / low:.0f}, which is too much for FAST; choose "
            "another set of protocols."
        )
    lines = np.array([[newton_start(*ends, newton)[:2] for ends in row] for row in ranges])
    offset, slope = lines[..., 0], lines[..., 1]
    count = int(stored[f"{name}.count"][0])
    tiny = np.broadcast_to(eps / unit**2 / typical, slope.shape)
    half = np.broadcast_to(1 / (2 * typical), slope.shape)
    weights.by_step[f"{name}.factors"] = np.stack([half, -slope / typical], axis=1) / count
    weights.by_step[f"{name}.offsets"] = np.stack([tiny / 2, offset - slope * tiny], axis=1)
    weights.bits.update({f"{name}.factors": FACTOR_BITS, f"{name}.offsets": FACTOR_BITS})
    weights.static[f"{name}.newton"] = newton
    return typical


def _prepare_gate(weights: PreparedWeights, stored: dict, name: str) -> None:
    """The constants of `fast_moments.geglu`, whose scale goes into the second half of the layer before."""
    even = stored[f"{name}.even"].astype(np.float64)
    scale = (-even[:, -1]) ** (1 / 8)
    factors = np.concatenate([np.ones_like(scale), scale])
    weights.constant[f"{name}.weight"] = weights.constant[f"{name}.weight"] * factors[:, None]
    weights.constant[f"{name}.bias"] = weights.constant[f"{name}.bias"] * factors
    constants = np.array([adapt_quartic(row) for row in -even / scale[:, None] ** np.arange(0, 10, 2)]) * [1, 1, 1, -1]
    for index, letter in enumerate("abcd"):
        weights.constant[f"{name}.{letter}"] = constants[:, index]
        weights.bits[f"{name}.{letter}"] = CONSTANT_BITS[index]
    weights.constant[f"{name}.linear"] = 1 / (2 * scale)
    weights.bits[f"{name}.linear"] = 2 * POWER_BITS
