"""The owner's preparation for FAST: fits to what calibration measured, folded into shares-ready weights."""

from collections.abc import Callable

import numpy as np
from scipy.interpolate import interp1d
from scipy.special import expit, softmax
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..protocols.fast import SQUARINGS
from ..protocols.knuth import adapt_sextic
from .calibration import Observation, attention_blocks, load_calibration, norm_layers, observe
from .layout import unet_blocks
from .prepared import PreparedWeights, time_terms, without_time_blocks
from .unet import UNet

_SMALLEST_SEXTIC = 1e-5  # leading coefficient; below it the constants of Knuth's form grow out of proportion
_LARGEST_POWER = 2.0**11  # of the exponential that attention computes; sums of a row stay far below 2^27
_ULP = 2.0**-18


def calibrate(unet: UNet, schedule, *, images_per_class: int = 24, seed: int = 0, progress: bool = True) -> dict:
    """Fit every layer at each timestep of a schedule; the arrays that `save_calibration` stores.

    - "NORM.rstd" [classes, steps, groups, 2]: (p, q) with 1/sqrt(v + eps) ~ p - q v.
    - "NORM.sextic" [steps, C, 7]: coefficients of 1 to x^6, for what each channel carries after the normalisation.
    - "ATTENTION.exp" [steps, 3]: (alpha, beta, gamma) with exp(s) ~ (alpha s^2 + beta s + gamma)^(2^SQUARINGS).
    - "ATTENTION.key" [steps, heads * d]: the mean key.
    - "NORM.pixels" [1] and "timesteps" [steps].
    """
    named = {"silu": _silu, "swish": _silu, "mish": _mish}[unet.config.act_fn]
    activations = dict.fromkeys(norm_layers(unet), named) | {"conv_norm_out": _silu}
    pixels: dict[str, np.ndarray] = {}
    rows: dict[str, list[np.ndarray]] = {}
    classes = unet.config.num_class_embeds or 1
    labels = np.arange(classes * images_per_class) % classes
    generator = np.random.default_rng(seed)

    def visit(step: int, seen: Observation) -> None:
        for name, function in activations.items():
            pixels[name] = np.int32(seen.normalised[name][0, 0].size)
            rows.setdefault(f"{name}.rstd", []).append(_fit_rstd(seen.variances[name], labels, unet.config.norm_eps))
            if not name.endswith("group_norm"):
                channels = np.moveaxis(seen.normalised[name], 1, 0).reshape(seen.normalised[name].shape[1], -1)
                fits = [_fit_sextic(function, generator.choice(c, min(4000, c.size))) for c in channels]
                rows.setdefault(f"{name}.sextic", []).append(np.stack(fits))
        for name in attention_blocks(unet):
            centred = seen.scores[name] - seen.scores[name].mean(-1, keepdims=True)
            rows.setdefault(f"{name}.exp", []).append(_fit_exp(centred, SQUARINGS, generator))
            keys = seen.keys[name].mean(axis=(0, 3)).reshape(-1)
            rows.setdefault(f"{name}.key", []).append(keys)
        bar.update()

    bar = tqdm(total=schedule.steps, desc="calibrate", unit="step", disable=not progress)
    with bar, threadpool_limits(1):  # thousands of small least-squares problems, which threads only slow down
        observe(
            unet, schedule.timesteps, schedule.coefficients, images_per_class=images_per_class, seed=seed, visit=visit
        )
    arrays = {name: np.stack(values).astype(np.float32) for name, values in rows.items()}
    for name in arrays:
        if name.endswith(".rstd"):
            arrays[name] = np.moveaxis(arrays[name], 0, 1)
    counts = {f"{name}.pixels": np.asarray([count]) for name, count in pixels.items()}
    return arrays | counts | {"timesteps": np.asarray(schedule.timesteps, np.float32)}


def prepare_fast(unet: UNet, timesteps: np.ndarray) -> PreparedWeights:
    """Weights for `protocols.fast`: time terms in the clear, fits at `timesteps` folded into gains, shifts and constants."""
    stored = load_calibration(unet)
    grid = stored.pop("timesteps")
    constant = without_time_blocks(unet)
    by_step: dict[str, np.ndarray] = {}
    by_class = time_terms(unet, timesteps)
    for name, groups in norm_layers(unet).items():
        weight, bias = constant.pop(f"{name}.weight"), constant.pop(f"{name}.bias")
        scale = np.ones((len(timesteps), len(weight)))
        if f"{name}.sextic" in stored:
            scale, constants = _monic(_at(stored[f"{name}.sextic"], grid, timesteps, axis=0))
            by_step |= {f"{name}.{letter}": values for letter, values in zip("abcdef", constants, strict=True)}
        line = _at(stored[f"{name}.rstd"], grid, timesteps, axis=1)  # [classes, steps, groups, 2]
        line = np.repeat(line, len(weight) // groups, axis=2)
        gain = scale * weight  # [steps, C]
        # Elements of a group: the layer sums squares, where a variance is their mean.
        count = int(stored[f"{name}.pixels"][0]) * len(weight) // groups
        slope = np.round(gain * line[..., 1] / count / _ULP) * _ULP
        # The slope is rounded to the ring; the intercept makes up for it at the variance where the line crosses 1/sqrt(v).
        typical = _crossing(line)
        by_class[f"{name}.gain0"] = gain * (line[..., 0] - line[..., 1] * typical) + slope * typical * count
        by_class[f"{name}.gain1"] = slope
        by_step[f"{name}.shift"] = scale * bias
    for name in attention_blocks(unet):
        _prepare_attention(unet, name, stored, grid, timesteps, constant, by_step)
    return PreparedWeights(constant, by_step, by_class)


def _prepare_attention(unet, name, stored, grid, timesteps, constant, by_step) -> None:
    size = next(dict(block.static)["head_channels"] for block in unet_blocks(unet.config) if block.name == name)
    alpha, beta, gamma = np.moveaxis(_at(stored[f"{name}.exp"], grid, timesteps, axis=0), 1, 0)
    stretch = np.sqrt(alpha)
    for leaf in ("weight", "bias"):
        fixed = constant.pop(f"{name}.to_q.{leaf}") * size**-0.5
        by_step[f"{name}.to_q.{leaf}"] = stretch.reshape(-1, *[1] * fixed.ndim) * fixed
    by_step[f"{name}.to_q.h"] = beta / (2 * stretch)
    by_step[f"{name}.to_q.c"] = gamma - (beta / (2 * stretch)) ** 2
    by_step[f"{name}.to_k.bias"] = constant.pop(f"{name}.to_k.bias") - _at(
        stored[f"{name}.key"], grid, timesteps, axis=0
    )


def _crossing(line: np.ndarray) -> np.ndarray:
    """A variance at which p - q v is about 1/sqrt(v): where the tangent with the same ratio would touch."""
    # A tangent at v0 has p = 1.5 / sqrt(v0) and q = 0.5 v0^-1.5, so p / q = 3 v0.
    return line[..., 0] / (3 * line[..., 1])


def _fit_rstd(variances: np.ndarray, labels: np.ndarray, eps: float) -> np.ndarray:
    """(p, q) [classes, groups, 2]: the line p - q v nearest to 1/sqrt(v + eps) in relative error.

    Fitted to the variances of each class, and at a lower weight to the range that they span and a fifth on either side.
    """
    fits = np.empty((labels.max() + 1, variances.shape[1], 2))
    for label in range(len(fits)):
        for group in range(fits.shape[1]):
            seen = variances[labels == label, group].astype(np.float64) + eps
            span = np.geomspace(seen.min() / 1.2, seen.max() * 1.2, 50)
            points = np.concatenate([seen, span])
            weight = np.sqrt(np.concatenate([np.full(len(seen), 1 / len(seen)), np.full(50, 0.3 / 50)]))
            # Relative error: (p - q v) sqrt(v) against 1.
            design = np.stack([np.sqrt(points), -(points**1.5)], axis=1) * weight[:, None]
            p, q = np.linalg.lstsq(design, weight, rcond=None)[0]
            fits[label, group] = p - q * eps, q
    return fits


def _fit_sextic(function: Callable, samples: np.ndarray) -> np.ndarray:
    """Coefficients of 1 to x^6, least squares on samples and, at a tenth of the weight, on their whole range.

    The leading coefficient is kept above _SMALLEST_SEXTIC: it becomes 1 by scaling x.
    """
    low, high = float(samples.min()) - 0.3, float(samples.max()) + 0.3
    points = np.concatenate([samples.astype(np.float64), np.linspace(low, high, 200)])
    weight = np.sqrt(np.concatenate([np.full(len(samples), 1 / len(samples)), np.full(200, 0.1 / 200)]))
    powers = np.vander(points, 7, increasing=True) * weight[:, None]
    target = function(points) * weight
    fit = np.linalg.lstsq(powers, target, rcond=None)[0]
    if fit[6] < _SMALLEST_SEXTIC:
        rest = np.linalg.lstsq(powers[:, :6], target - _SMALLEST_SEXTIC * powers[:, 6], rcond=None)[0]
        fit = np.append(rest, _SMALLEST_SEXTIC)
    return fit


def _fit_exp(scores: np.ndarray, squarings: int, generator: np.random.Generator) -> np.ndarray:
    """(alpha, beta, gamma) with exp(s / 2^squarings) ~ alpha s^2 + beta s + gamma, for scores [..., N] about zero in each row.

    Up to a common factor, which cancels in softmax and is chosen so that the largest power is _LARGEST_POWER.
    """
    rows = scores.reshape(-1, scores.shape[-1]).astype(np.float64)
    rows = rows[generator.choice(len(rows), min(400, len(rows)), replace=False)]
    span = np.linspace(rows.min(), rows.max(), 200)
    points = np.concatenate([rows.reshape(-1), span])
    # What softmax makes small need not be exact.
    chosen = softmax(rows, axis=1).reshape(-1)
    weight = np.sqrt(np.concatenate([chosen / chosen.sum(), np.full(200, 0.1 / 200)]))
    target = np.exp(points / 2**squarings)
    design = np.vander(points, 3) * (weight / target)[:, None]
    fit = np.linalg.lstsq(design, weight, rcond=None)[0]
    if fit[0] < 1e-4:
        rest = np.linalg.lstsq(design[:, 1:], weight - 1e-4 * design[:, 0], rcond=None)[0]
        fit = np.append(1e-4, rest)
    return fit * (_LARGEST_POWER / np.polyval(fit, span).max() ** 2**squarings) ** (0.5**squarings)


def _monic(sextic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales s [steps, C] and Knuth's constants [6, steps, C] of sextics [steps, C, 7], monic in z = s x."""
    scale = sextic[..., 6] ** (1 / 6)
    monic = sextic / scale[..., None] ** np.arange(7)
    return scale, np.apply_along_axis(adapt_sextic, 2, monic).transpose(2, 0, 1)


def _at(values: np.ndarray, grid: np.ndarray, timesteps: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along an axis of timesteps, constant beyond its ends."""
    order = np.argsort(grid)
    return interp1d(
        grid[order],
        np.take(values, order, axis=axis).astype(np.float64),
        axis=axis,
        bounds_error=False,
        fill_value=tuple(np.take(values, index, axis=axis) for index in (order[0], order[-1])),
    )(timesteps)


def _silu(x: np.ndarray) -> np.ndarray:
    return x * expit(x)


def _mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.logaddexp(0, x))
