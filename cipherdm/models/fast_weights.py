"""The owner's preparation for FAST: what calibration fitted, folded into weights that are ready to be shared."""

from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..errors import CipherDMError
from ..protocols.fast import FEATURE_BITS, GAIN_BITS, MIXED_BITS, POWER_BITS, SLOPE_BITS, VALUE_BITS, WEIGHT_BITS
from ..protocols.knuth import adapt_quartic
from .calibration import Observation, attention_blocks, load_calibration, norm_layers, observe
from .fits import fit_even, fit_exponential, fit_inverse_root, fit_reciprocal, fit_with_cubic, mish, silu, widened_ends
from .layout import unet_blocks
from .prepared import PreparedWeights, time_terms, without_time_blocks
from .unet import UNet

SAMPLES = 3000  # of a channel, to fit an activation
_SQUARINGS = (0, 1, 2, 3, 4)
_EXP_ERROR = 0.05  # relative, of the exponential; the fewest squarings that stay below are taken
_INVERSE_ERROR = 0.003
_ATTENTION_BITS = {
    "h": FEATURE_BITS,
    "c": 2 * VALUE_BITS,
    "constant": 2 * VALUE_BITS,
    "r0": MIXED_BITS,
    "r1": 2 * MIXED_BITS,
}
_SLOPE_UNIT = 2.0**-SLOPE_BITS
# Of Knuth's constants a to d: as the sums that they are in have.
_CONSTANT_BITS = (2 * POWER_BITS, POWER_BITS, 2 * POWER_BITS, 3 * POWER_BITS)


def calibrate(
    unet: UNet, schedule, *, images_per_class: int = 24, seed: int = 0, progress: bool = True
) -> dict[str, np.ndarray]:
    """Fit every layer at each timestep of a schedule; the arrays that `save_calibration` stores.

    - "timesteps" [steps].
    - "NORM.center" and "NORM.typical" [classes, steps, groups]: the mean, and the geometric mean of the mean square about it.
    - "NORM.rstd" [classes, steps, groups, 2]: (p, q) with 1/sqrt(variance + eps) ~ p - q x, x the mean square about the centre.
    - "NORM.even" [steps, C, 5]: SiLU for what each channel carries after the normalisation, as `fit_even` has it. Or, for
      Mish, "NORM.cubic" [steps, C, 7], as `fit_with_cubic`.
    - "NORM.range" [steps, C, 2]: the ends of the range that it was fitted on.
    - "NORM.pixels" [1]: values of one channel.
    - "ATTENTION.exp" [steps, 3]: (alpha, beta, gamma) of `fit_exponential`, scaled so that rows sum to about 1.
    - "ATTENTION.key" [steps, heads * d]: the mean key.
    - "ATTENTION.sum" [steps, 2]: (r0, r1) with 1/x ~ (x + r0)^2 + r1 for the sums of the rows.
    - "ATTENTION.counts" [2]: squarings, and Newton iterations for the inverse.
    """
    recorder = _Recorder(unet, images_per_class, seed)
    with tqdm(total=schedule.steps, desc="calibrate", unit="step", disable=not progress) as bar, threadpool_limits(1):

        def visit(step: int, seen: Observation) -> None:
            recorder.visit(seen)
            bar.update()

        observe(
            unet, schedule.timesteps, schedule.coefficients, images_per_class=images_per_class, seed=seed, visit=visit
        )
    return recorder.arrays() | {"timesteps": np.asarray(schedule.timesteps, np.float32)}


class _Recorder:
    """Collects the fits of one step after the other."""

    def __init__(self, unet: UNet, images_per_class: int, seed: int):
        named = {"silu": silu, "swish": silu, "mish": mish}[unet.config.act_fn]
        self.activations = dict.fromkeys(norm_layers(unet), named) | {"conv_norm_out": silu}
        self.eps = unet.config.norm_eps
        self.attentions = attention_blocks(unet)
        self.labels = np.tile(np.arange(unet.config.num_class_embeds or 1), images_per_class)
        self.generator = np.random.default_rng(seed)
        self.rows: dict[str, list[np.ndarray]] = {}
        self.scores: dict[str, list[np.ndarray]] = {name: [] for name in self.attentions}
        self.constants: dict[str, np.ndarray] = {}

    def visit(self, seen: Observation) -> None:
        for name, function in self.activations.items():
            for leaf, values in self._norm(seen.means[name], seen.variances[name] + self.eps).items():
                self.rows.setdefault(f"{name}.{leaf}", []).append(values)
            carried = seen.normalised[name]
            self.constants[f"{name}.pixels"] = np.asarray([carried[0, 0].size], np.int32)
            channels = np.moveaxis(carried, 1, 0).reshape(carried.shape[1], -1)
            ends = widened_ends(channels)
            self.rows.setdefault(f"{name}.range", []).append(ends)
            if not name.endswith("group_norm"):
                chosen = self.generator.choice(channels.shape[1], min(SAMPLES, channels.shape[1]), replace=False)
                leaf, fit = ("even", fit_even) if function is silu else ("cubic", partial(fit_with_cubic, function))
                self.rows.setdefault(f"{name}.{leaf}", []).append(fit(channels[:, chosen], ends))
        for name in self.attentions:
            scores = seen.scores[name].reshape(-1, seen.scores[name].shape[-1]).astype(np.float64)
            scores = scores[self.generator.choice(len(scores), min(600, len(scores)), replace=False)]
            self.scores[name].append(scores - scores.mean(1, keepdims=True))
            self.rows.setdefault(f"{name}.key", []).append(seen.keys[name].mean(axis=(0, 3)).reshape(-1))

    def _norm(self, means: np.ndarray, variances: np.ndarray) -> dict[str, np.ndarray]:
        """center, typical and rstd of one normalisation at one step, [classes, groups, ...]."""
        classes, groups = self.labels.max() + 1, means.shape[1]
        center, typical, rstd = np.empty((classes, groups)), np.empty((classes, groups)), np.empty((classes, groups, 2))
        for label in range(classes):
            for group in range(groups):
                mean, variance = (x[self.labels == label, group].astype(np.float64) for x in (means, variances))
                center[label, group] = mean.mean()
                squares = variance + np.square(mean - mean.mean())
                typical[label, group] = np.exp(np.log(squares).mean())
                rstd[label, group] = fit_inverse_root(squares, variance)
        return {"center": center, "typical": typical, "rstd": rstd}

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.stack(values) for name, values in self.rows.items()}
        for name in arrays:
            if name.endswith((".center", ".typical", ".rstd")):
                arrays[name] = np.moveaxis(arrays[name], 0, 1)
        for name, scores in self.scores.items():
            arrays |= {f"{name}.{leaf}": values for leaf, values in _fit_attention(name, scores).items()}
        return {name: array.astype(np.float32) for name, array in arrays.items()} | self.constants


def _fit_attention(name: str, scores: list[np.ndarray]) -> dict[str, np.ndarray]:
    """exp, sum and counts of an attention block from its centred scores [rows, N] of each step.

    Raises CipherDMError for scores that are too large.
    """
    for squarings in _SQUARINGS:
        fits, errors = zip(*(fit_exponential(rows, squarings) for rows in scores), strict=True)
        if max(errors) < _EXP_ERROR:
            break
    else:
        largest = max(np.abs(rows).max() for rows in scores)
        raise CipherDMError(
            f"The attention scores of {name} reach {largest:.1f} about their row's mean, which is too much for FAST's "
            "exponential. Train the model with a penalty on its scores (score_weight), or choose another set of protocols."
        )
    powers = [np.polyval(fit, rows) ** 2**squarings for fit, rows in zip(fits, scores, strict=True)]
    sums = [power.sum(1) for power in powers]
    inverses, errors = zip(*(fit_reciprocal(total) for total in sums), strict=True)
    newton = 0
    while max(errors) ** 2**newton > _INVERSE_ERROR:
        newton += 1
    inverses = np.stack(inverses)
    return {
        "exp": np.stack(fits) * inverses[:, :1] ** (0.5**squarings),
        "sum": inverses[:, 1:],
        "counts": np.array([squarings, newton]),
    }


def prepare_fast(unet: UNet, timesteps: np.ndarray, *, guarded: bool = False) -> PreparedWeights:
    """Weights for `protocols.fast`: time terms in the clear, the fits nearest to `timesteps` folded into gains and constants.

    With `guarded` each normalisation also gets the ends of the range that it met, for FAST_GUARDED.

    Raises:
        CipherDMError: the model is not calibrated, or has layers that FAST does not compute.
    """
    _check_supported(unet)
    stored = load_calibration(unet)
    nearest = np.abs(stored["timesteps"][None, :] - np.asarray(timesteps)[:, None]).argmin(1)
    weights = PreparedWeights(without_time_blocks(unet), {}, time_terms(unet, timesteps), {}, {})
    for name, groups in norm_layers(unet).items():
        scale = _prepare_norm(weights, stored, nearest, name, groups)
        if guarded:
            ends = stored[f"{name}.range"][nearest] * scale[..., None]
            weights.by_step.update({f"{name}.low": ends[..., 0], f"{name}.high": ends[..., 1]})
            weights.bits.update(dict.fromkeys((f"{name}.low", f"{name}.high"), GAIN_BITS + VALUE_BITS))
    for name in attention_blocks(unet):
        size = next(dict(block.static)["head_channels"] for block in unet_blocks(unet.config) if block.name == name)
        _prepare_attention(weights, stored, nearest, name, size)
    for name in (*weights.constant, *weights.by_step):
        if name.endswith(".bias"):
            weights.bits.setdefault(name, VALUE_BITS + WEIGHT_BITS)
    return weights


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


def _prepare_norm(weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str, groups: int) -> np.ndarray:
    """Gains, shifts and constants of one normalisation and its activation, in units in which its input has variance about 1.

    Returns the scales [steps, C] by which the result is larger than the normalised values.
    """
    weight, bias = weights.constant.pop(f"{name}.weight"), weights.constant.pop(f"{name}.bias")
    fits = {leaf: stored[f"{name}.{leaf}"][:, nearest].astype(np.float64) for leaf in ("center", "typical", "rstd")}
    unit = _take_unit(weights, name, np.exp(np.log(fits["typical"]).mean() / 2))
    p, q = fits["rstd"][..., 0] * unit, fits["rstd"][..., 1] * unit**3
    center, typical = fits["center"] / unit, fits["typical"] / unit**2
    width = len(weight) // groups
    p, q, typical = (np.repeat(x, width, axis=2) for x in (p, q, typical))  # [classes, steps, C]

    scale = np.broadcast_to(_prepare_activation(weights, stored, nearest, name), (len(nearest), len(weight)))
    gain = scale * weight  # [steps, C]
    # The layer sums squares, where a variance is their mean.
    count = int(stored[f"{name}.pixels"][0]) * width
    slope = np.round(gain * q / count / _SLOPE_UNIT) * _SLOPE_UNIT
    # The slope is rounded to the ring, and the intercept makes up for it at the typical square.
    fixed_gain = gain * (p - q * typical)  # [classes, steps, C]
    weights.by_class[f"{name}.gain0"] = fixed_gain + slope * typical * count
    weights.by_class[f"{name}.slopes"] = np.stack([-slope, -fixed_gain / count], axis=2)
    weights.by_step[f"{name}.shift"] = scale * bias
    weights.bits.update({f"{name}.gain0": GAIN_BITS, f"{name}.shift": GAIN_BITS, f"{name}.slopes": SLOPE_BITS})
    if not _take_center(weights, name, np.repeat(center, width, axis=2)):
        weights.by_class[f"{name}.center"] = center
        weights.bits[f"{name}.center"] = VALUE_BITS
    return scale


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


def _prepare_attention(weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str, size: int) -> None:
    alpha, beta, gamma = stored[f"{name}.exp"][nearest].astype(np.float64).T
    stretch = np.sqrt(alpha)
    for leaf in ("weight", "bias"):
        fixed = weights.constant.pop(f"{name}.to_q.{leaf}") * size**-0.5
        weights.by_step[f"{name}.to_q.{leaf}"] = stretch.reshape(-1, *[1] * fixed.ndim) * fixed
    weights.by_step[f"{name}.to_q.h"] = beta / (2 * stretch)
    weights.by_step[f"{name}.to_q.c"] = gamma - (beta / (2 * stretch)) ** 2
    weights.by_step[f"{name}.to_q.constant"] = gamma
    weights.by_step[f"{name}.to_k.bias"] = weights.constant.pop(f"{name}.to_k.bias") - stored[f"{name}.key"][nearest]
    for leaf, values in zip(("r0", "r1"), stored[f"{name}.sum"][nearest].T, strict=True):
        weights.by_step[f"{name}.to_q.{leaf}"] = values
    weights.bits.update({f"{name}.to_q.{leaf}": bits for leaf, bits in _ATTENTION_BITS.items()})
    weights.bits[f"{name}.to_out.0.bias"] = 3 * MIXED_BITS + WEIGHT_BITS
    for leaf, count in zip(("squarings", "newton"), stored[f"{name}.counts"], strict=True):
        weights.static[f"{name}.to_q.{leaf}"] = int(count)


def _prepare_activation(weights: PreparedWeights, stored: dict, nearest: np.ndarray, name: str) -> np.ndarray | float:
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
        weights.bits[f"{name}.{letter}"] = _CONSTANT_BITS[index]
    block, _, leaf = name.rpartition(".")
    # What the convolution after it adds is at the bits of its product.
    after = {"norm1": "time_term", "norm2": "conv2.bias", "conv_norm_out": "conv_out.bias"}[leaf]
    weights.bits[f"{block}.{after}".removeprefix(".")] = _CONSTANT_BITS[3] + WEIGHT_BITS
    return scale
