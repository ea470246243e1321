"""Normalisations and activations for FAST: calibrated fits, folded into gains, shifts and constants to be shared."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..approximations.knuth import adapt_quartic
from ..errors import CipherDMError
from ..models.blocks import GROUP_NORM_EPS, LAYER_NORM_EPS
from ..protocols.fast import CONSTANT_BITS, GAIN_BITS, POWER_BITS, SLOPE_BITS, VALUE_BITS, WEIGHT_BITS
from ..protocols.fast_norms import FACTOR_BITS, SCALE_BITS
from ..protocols.fast_norms import WEIGHT_BITS as NORM_WEIGHT_BITS
from .calibrate import MAX_NEWTON
from .fits import newton_start
from .prepared import PreparedWeights

_SLOPE_UNIT = 2.0**-SLOPE_BITS
_LARGEST = 24.0  # largest u in `inverse_root`, and its inverse: the numbers there hold up to 32

# Linear layers that read the result of a transformer's LayerNorm.
_READERS = {
    "norm1": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "norm2": ("attn2.to_q",),
    "norm3": ("ff.net.0.proj",),
    "norm": ("pooler", "lm_head"),  # BERT has one, and GPT-2 the other
}

# Value that the convolution after an activation adds to its product.
_ADDED_AFTER = {"norm1": "time_term", "norm2": "conv2.bias", "conv_norm_out": "conv_out.bias"}


@dataclass(frozen=True, eq=False)
class Fits:
    """A calibration's fits at the timesteps of a schedule."""

    stored: Mapping[str, np.ndarray]
    nearest: np.ndarray  # [steps], the index of the calibrated timestep nearest to each step's

    @classmethod
    def at(cls, stored: Mapping[str, np.ndarray], timesteps: np.ndarray) -> "Fits":
        """Return the fits for timesteps [steps]."""
        return cls(stored, np.abs(stored["timesteps"][None, :] - np.asarray(timesteps)[:, None]).argmin(1))

    def rows(self, name: str) -> np.ndarray:
        """Fits [steps, ...] of one name, float32 as stored."""
        return self.stored[name][self.nearest]


def fold_line_norm(
    weights: PreparedWeights, fits: Fits, name: str, groups: int, activation: str | None, *, guarded: bool
) -> None:
    """Fold a normalisation by class lines, and its activation, in units in which its input has variance about 1.

    With `guarded` it also gets the ends of the range that calibration met.
    """
    weight, bias = weights.constant.pop(f"{name}.weight"), weights.constant.pop(f"{name}.bias")
    center, typical, rstd = (
        fits.stored[f"{name}.{leaf}"][:, fits.nearest].astype(np.float64) for leaf in ("center", "typical", "rstd")
    )
    unit = _take_unit(weights, name, np.exp(np.log(typical).mean() / 2))
    p, q = rstd[..., 0] * unit, rstd[..., 1] * unit**3
    center, typical = center / unit, typical / unit**2
    width = len(weight) // groups
    p, q, typical = (np.repeat(x, width, axis=2) for x in (p, q, typical))  # [classes, steps, C]

    scale, offset = fold_activation(weights, fits, name, activation)
    scale = np.broadcast_to(scale, (len(fits.nearest), len(weight)))
    gain = scale * weight  # [steps, C]
    # The layer sums squares, where a variance is their mean.
    count = int(fits.stored[f"{name}.pixels"][0]) * width
    # The slope is rounded to the ring, and the intercept makes up for it at the typical square.
    slope = np.round(gain * q / count / _SLOPE_UNIT) * _SLOPE_UNIT
    fixed_gain = gain * (p - q * typical)  # [classes, steps, C]
    weights.by_class[f"{name}.gain0"] = fixed_gain + slope * typical * count
    weights.by_class[f"{name}.slopes"] = np.stack([-slope, -fixed_gain / count], axis=2)
    weights.by_step[f"{name}.shift"] = scale * bias + offset
    weights.bits.update({f"{name}.gain0": GAIN_BITS, f"{name}.shift": GAIN_BITS, f"{name}.slopes": SLOPE_BITS})
    if not _take_center(weights, name, np.repeat(center, width, axis=2)):
        weights.by_class[f"{name}.center"] = center
        weights.bits[f"{name}.center"] = VALUE_BITS
    if guarded:
        ends = fits.rows(f"{name}.range") * scale[..., None] + offset
        weights.by_step.update({f"{name}.low": ends[..., 0], f"{name}.high": ends[..., 1]})
        # They are compared with a product of gain and value.
        weights.bits.update(dict.fromkeys((f"{name}.low", f"{name}.high"), GAIN_BITS + VALUE_BITS))


def fold_newton_norm(
    weights: PreparedWeights, fits: Fits, name: str, groups: int, activation: str | None, eps: float
) -> None:
    """Fold a GroupNorm into the constants of `fast_norms.group_norm` and of the activation after it."""
    weight, bias = weights.constant.pop(f"{name}.weight"), weights.constant.pop(f"{name}.bias")
    unit = _take_unit(weights, name, typical_variances(fits, name).mean() ** 0.5)
    typical = typical_variances(fits, name) / unit**2
    _fold_root(weights, fits, name, eps if activation else GROUP_NORM_EPS, typical, unit)
    scale, offset = fold_activation(weights, fits, name, activation)
    scale = np.broadcast_to(scale, (len(fits.nearest), len(weight)))
    weights.by_step[f"{name}.weight"] = scale * weight / np.sqrt(np.repeat(typical, len(weight) // groups))
    weights.by_step[f"{name}.shift"] = scale * bias + offset
    weights.bits.update({f"{name}.weight": NORM_WEIGHT_BITS, f"{name}.shift": GAIN_BITS})


def fold_token_norm(
    weights: PreparedWeights,
    fits: Fits,
    name: str,
    *,
    eps: float = LAYER_NORM_EPS,
    kept: bool = False,
    unit: float = 1.0,
) -> None:
    """Fold a LayerNorm into the constants of `fast_norms.layer_norm`, for an input in units of `unit`.

    Its weight and bias go to the layers that read it, exactly. If it is `kept`, they are also for `fast_norms.rescaled`.
    """
    weight, bias = weights.constant.pop(f"{name}.weight"), weights.constant.pop(f"{name}.bias")
    typical = typical_variances(fits, name) / unit**2
    _fold_root(weights, fits, name, eps, typical, unit)
    gain = weight / np.sqrt(typical)
    if kept:
        weights.constant.update({f"{name}.weight": gain, f"{name}.bias": bias})
    path, _, leaf = name.rpartition(".")
    for reader in _READERS[leaf]:
        if (full := weights.constant.get(f"{path}.{reader}.weight")) is None:
            continue
        before = weights.constant.get(f"{path}.{reader}.bias", 0.0)
        weights.constant[f"{path}.{reader}.weight"] = full * gain
        weights.constant[f"{path}.{reader}.bias"] = full @ bias + before


def fold_modulated_norm(weights: PreparedWeights, fits: Fits, name: str, *, eps: float) -> None:
    """Fold a LayerNorm without weights of its own, whose scale and shift step and label choose, and the block's gate."""
    ends = fits.rows(f"{name}.spread").astype(np.float64)
    typical = np.sqrt(ends.prod(-1))  # [steps, 1]: each step has its own, since its scale has
    _fold_root(weights, fits, name, eps, typical)
    shift, scale, gate = (f"{name}.{term}.time_term" for term in ("shift", "scale", "gate"))
    weights.by_class[scale] = (1 + weights.by_class[scale]) / np.sqrt(typical)
    weights.bits.update({scale: SCALE_BITS, shift: GAIN_BITS})
    if gate in weights.by_class:
        weights.bits[gate] = WEIGHT_BITS


def fold_activation(
    weights: PreparedWeights, fits: Fits, name: str, activation: str | None
) -> tuple[np.ndarray | float, float]:
    """Fold the activation after a normalisation; return the scale of its input, [steps, C] or a number, and the offset."""
    if activation is None:
        return 1.0, 0.0
    if activation == "quad":  # ((x + 1) / 2)^2 - 1/4, the square of x / 2 + 1 / 2
        _set_bits_after(weights, name, 2 * POWER_BITS)
        return 0.5, 0.5
    fitted = fits.rows(f"{name}.cubic" if f"{name}.cubic" in fits.stored else f"{name}.even")
    scale = fold_polynomial(weights, weights.by_step, name, fitted)
    _set_bits_after(weights, name, CONSTANT_BITS[3])
    return scale, 0.0


def fold_polynomial(weights: PreparedWeights, into: dict[str, np.ndarray], name: str, fitted: np.ndarray) -> np.ndarray:
    """Fold the constants of a polynomial that `fast.activated` evaluates; return the scale of its input, [..., C].

    `into` is where its constants go, and `fitted` [..., C, 5 or 7] are those of `fit_even` or `fit_with_cubic`.
    """
    odd, even = fitted[..., :-5].astype(np.float64), fitted[..., -5:].astype(np.float64)
    cubic = bool(odd.size)
    scale, constants = knuth_constants(even)
    weights.static[f"{name}.cubic"] = int(cubic)
    if cubic:
        into[f"{name}.linear"] = odd[..., 0] / scale
        into[f"{name}.third"] = odd[..., 1] / scale**3
        weights.bits.update({f"{name}.linear": POWER_BITS, f"{name}.third": 2 * POWER_BITS})
    else:
        into[f"{name}.linear"] = 1 / (2 * scale)
        weights.bits[f"{name}.linear"] = 2 * POWER_BITS
    for letter, values, bits in zip("abcd", constants, CONSTANT_BITS, strict=True):
        into[f"{name}.{letter}"] = values
        weights.bits[f"{name}.{letter}"] = bits
    return scale


def knuth_constants(even: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Knuth's form of even polynomials [..., 5] of degree 8, whose last coefficient is negative.

    Returns:
        The scale [...] of x by which that coefficient becomes -1, and the constants a, b, c and d as [4, ...].
    """
    scale = (-even[..., -1]) ** (1 / 8)
    quartics = -even / scale[..., None] ** np.arange(0, 10, 2)
    # FAST subtracts the quartic, hence -even, but adds d, so d's sign is turned.
    constants = np.apply_along_axis(adapt_quartic, -1, quartics) * [1, 1, 1, -1]
    return scale, np.moveaxis(constants, -1, 0)


def _take_unit(weights: PreparedWeights, name: str, deviation: float) -> float:
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
    """Subtract the centre [classes, steps, C] from the input of a residual block's second normalisation, where it is made.

    The time term takes it in, and the first convolution's bias too. False for other normalisations.
    """
    block, _, leaf = name.rpartition(".")
    if leaf != "norm2":
        return False
    weights.by_class[f"{block}.time_term"] = (
        weights.by_class[f"{block}.time_term"] + weights.constant.pop(f"{block}.conv1.bias") - center
    )
    return True


def _set_bits_after(weights: PreparedWeights, name: str, bits: int) -> None:
    """Give what the convolution after an activation adds the bits of its product; `bits` are those of the activation."""
    block, _, leaf = name.rpartition(".")
    weights.bits[f"{block}.{_ADDED_AFTER[leaf]}".removeprefix(".")] = bits + WEIGHT_BITS


def typical_variances(fits: Fits, name: str) -> np.ndarray:
    """The middle of the variances of each group [groups], over all steps and on a logarithmic scale."""
    spread = fits.stored[f"{name}.spread"].astype(np.float64)
    return np.sqrt(spread[..., 0].min(0) * spread[..., 1].max(0))


def _fold_root(
    weights: PreparedWeights, fits: Fits, name: str, eps: float, typical: np.ndarray, unit: float = 1.0
) -> None:
    """Fold the constants of `fast_norms.inverse_root` for an input in units of `unit`.

    `typical` [groups] or [steps, groups] are variances in such units, by which others are divided.
    """
    ranges = fits.rows(f"{name}.spread").astype(np.float64) / unit**2 / typical[..., None]  # [steps, groups, 2]
    newton = int(fits.stored[f"{name}.newton"][0])
    low, high = (float(end) for end in (ranges.min(), ranges.max()))
    if high > _LARGEST or newton >= MAX_NEWTON:  # the lowest is the inverse of the highest
        raise CipherDMError(
            f"The variances that {name} divides by differ by a factor of {high / low:.0f}, which is too much for FAST; choose "
            "another protocol set."
        )
    lines = np.array([[newton_start(*ends, newton)[:2] for ends in row] for row in ranges])
    offset, slope = lines[..., 0], lines[..., 1]
    count = int(fits.stored[f"{name}.count"][0])
    tiny = np.broadcast_to(eps / unit**2 / typical, slope.shape)
    half = np.broadcast_to(1 / (2 * typical), slope.shape)
    weights.by_step[f"{name}.factors"] = np.stack([half, -slope / typical], axis=1) / count
    weights.by_step[f"{name}.offsets"] = np.stack([tiny / 2, offset - slope * tiny], axis=1)
    weights.bits.update({f"{name}.factors": FACTOR_BITS, f"{name}.offsets": FACTOR_BITS})
    weights.static[f"{name}.newton"] = newton
