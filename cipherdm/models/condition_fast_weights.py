"""The owner's preparation of a U-Net with cross-attention for FAST: calibrated fits, folded into weights to be shared."""

from collections.abc import Collection, Mapping

import numpy as np

from ..errors import CipherDMError
from ..protocols.fast import CONSTANT_BITS, GAIN_BITS, POWER_BITS
from ..protocols.fast_moments import FACTOR_BITS, WEIGHT_BITS
from ..protocols.knuth import adapt_quartic
from .calibration import load_calibration
from .condition_blocks import GROUP_NORM_EPS, LAYER_NORM_EPS
from .condition_calibration import MAX_NEWTON
from .condition_observation import Layers
from .fast_weights import (
    fill_bias_bits,
    prepare_activation,
    prepare_exponential,
    take_unit,
)
from .fits import newton_start
from .prepared import PreparedWeights, time_terms, without_time_blocks
from .unet import UNet

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
    _check_supported(unet, guarded)
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


def _check_supported(unet: UNet, guarded: bool) -> None:
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
    weights.bits.update({f"{name}.weight": WEIGHT_BITS, f"{name}.shift": GAIN_BITS})


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
