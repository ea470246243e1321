"""Calibration for FAST: fits of every layer at each timestep, from what the model carries on public noise and prompts."""

from collections.abc import Callable
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from ..approximations import exact
from ..errors import CipherDMError, check_whole, refuse
from ..models.blocks import GROUP_NORM_EPS
from ..models.config import DiTConfig, UNetConditionConfig, UNetConfig
from ..models.layout import unet_blocks
from ..models.unet import UNet
from ..progress import Progress
from ..schedules import Schedule
from .fits import (
    fit_even,
    fit_exponential,
    fit_inverse_root,
    fit_reciprocal,
    fit_with_cubic,
    newton_start,
    widened_ends,
)
from .observe import Layers, Observation, observe, one_hot_labels

SAMPLES = 3000  # values of a channel that an activation is fitted to
ROWS = 600  # rows of scores taken at each step
EXTREMES = 50  # and where layers are not fitted by class, rows at either end of all sums
MAX_NEWTON = 9  # Newton steps for an inverse root; a normalisation that needs more is refused
LOWEST = -12.0  # lowest score below its row's maximum that is kept: its exponential is 6e-6
_ACTIVATIONS = {"silu": ("even", fit_even), "mish": ("cubic", partial(fit_with_cubic, exact.mish))}  # "quad" is exact
_EXP_ERROR = 0.05  # relative, of the exponential; the fewest squarings that stay below it are taken
_BELOW_ERROR = 0.01  # the same for scores below their maximum, which is worth its cost only if accurate
_INVERSE_ERROR = 0.003
_LARGEST_SCORE = 18.0  # SPU's products can hold its exponential
_SUM_MARGIN = 1.5  # factor by which sums of rows may leave the range that was met, where scores are below their maximum
_DIT_MARGIN = 2.0  # the same for DiTs: some rows are far from the others, and other images have other such rows
SPREAD = 1.3  # factor by which variances may leave the range that was met, on either side
# Relative, of inverse roots at the ends of that range and in its middle. Each Newton step adds messages; what this error
# leaves of the images' likeness is in prompts_sd-mini.json.
_ROOT_ERROR = 0.05


def calibrate(
    unet: UNet,
    schedule: Schedule,
    *,
    images_per_class: int = 24,
    embeddings: np.ndarray | None = None,
    guided: bool = False,
    hints: np.ndarray | None = None,
    reuse: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Fit every layer at each timestep of a schedule, and return the arrays that `save_calibration` stores.

    For all models:
    - "timesteps" [steps].
    - "NORM.even" [steps, C, 5]: SiLU for what each channel carries after a GroupNorm, as `fit_even` has it. For Mish
      "NORM.cubic" [steps, C, 7], as `fit_with_cubic`. Nothing for "quad", which is exact.
    - "ATTENTION.exp" [steps, 3]: (alpha, beta, gamma) of `fit_exponential`, scaled so that rows sum to about 1.
    - "ATTENTION.sum" [steps, 2]: (r0, r1) with 1/x ~ (x + r0)^2 + r1 for the sums of the rows.
    - "ATTENTION.counts" [2]: squarings, and Newton iterations for the inverse.
    - "ATTENTION.peak" [1]: the largest exponential in these units.
    - "ATTENTION.floor" [1], where scores are taken below their row's maximum: the lowest that is kept.

    For U-Nets with labels:
    - "NORM.center" and "NORM.typical" [classes, steps, groups]: the mean, and the geometric mean of the mean square about it.
    - "NORM.rstd" [classes, steps, groups, 2]: (p, q) with 1/sqrt(variance + eps) ~ p - q x, x the mean square about the centre.
    - "NORM.range" [steps, C, 2]: the ends of the range that the activation is fitted on.
    - "NORM.pixels" [1]: number of values of one channel.
    - "ATTENTION.key" [steps, heads * d]: the mean key.

    For models with prompts, and DiTs:
    - "NORM.spread" [steps, groups, 2]: the lowest and the highest variance plus eps of each group, widened; for a LayerNorm
      [steps, 1, 2], over all tokens.
    - "NORM.count" [1]: number of values that are normalised together.
    - "NORM.newton" [1]: number of Newton steps that make 1/sqrt right on that range.
    - "GATE.even" [C, 5]: GELU for what each channel carries at any step, of a gate or between two layers; SiLU between those
      of a hint's encoder.

    Args:
        unet: the model.
        schedule: DDIM without fresh noise; its coefficients are guided if there are two branches.
        images_per_class: number of images of each class, for models with labels.
        embeddings: embeddings of prompts as `embed_prompts` makes them, for models with prompts; one image each.
        guided: True if the embeddings are of two branches.
        hints: [B, C, H, W] in [0, 1], one for each image, for a model with a ControlNet.
        reuse: as in `cipherdm.sample`.
        seed: seed of the noise.
        progress: called as progress(done, steps, "calibrate") after each step.

    Raises:
        CipherDMError: FAST does not compute the model, a number is out of its range, or embeddings are given to a model without
            prompts or not given to one with prompts.
    """
    check_whole("the seed", seed, 0)
    check_computed_by_fast(unet)
    if embeddings is not None and not isinstance(unet.config, UNetConditionConfig):
        raise CipherDMError("A UNet2DModel attends to no prompt; leave embeddings out.")
    conditions = one_hot_labels(unet, images_per_class) if embeddings is None else np.float32(embeddings)
    recorder = _Recorder(unet, conditions, schedule.steps, seed)

    def visit(step: int, seen: Observation) -> None:
        recorder.visit(seen)
        if progress is not None:
            progress(step + 1, schedule.steps, "calibrate")

    with threadpool_limits(1):  # the fits are small: more threads would only wait for each other
        observe(unet, schedule, conditions, guided=guided, hints=hints, seed=seed, visit=visit, reuse=reuse)
    return recorder.arrays() | {"timesteps": np.asarray(schedule.timesteps, np.float32)}


def check_computed_by_fast(unet: UNet) -> None:
    """Raise CipherDMError if FAST does not compute a layer of the model."""
    config = unet.config
    if isinstance(config, DiTConfig):
        return
    attention = [block for block in unet_blocks(config) if block.kind == "attention"]
    problems = {
        "resnet_time_scale_shift='scale_shift'": config.resnet_time_scale_shift == "scale_shift",
        f"mid_block_scale_factor={config.mid_block_scale_factor}": config.mid_block_scale_factor != 1,
        "act_fn='gelu' in residual blocks": config.act_fn == "gelu",
        "attention without normalisation": any(dict(block.static)["groups"] is None for block in attention),
    }
    refuse(problems, "FAST does not compute ", ", which this model has; choose another set.")


class _Recorder:
    """Collects the fits of one step after the other.

    Draws from the generator come in the order of the layers: activations, attentions, gates.
    """

    def __init__(self, unet: UNet, conditions: np.ndarray, steps: int, seed: int):
        self.layers = Layers.of(unet)
        # The class of each image, where layers are fitted by class.
        self.labels = conditions.argmax(1) if isinstance(unet.config, UNetConfig) else None
        affine = {name: unet.params.get(f"{name}.weight") for name in self.layers.token_norms}
        self.widths = {name: unet.config.width if weight is None else weight.size for name, weight in affine.items()}
        inner = [name for name, act_fn in self.layers.inner.items() if act_fn != "gelu_quad"]  # which is exact
        self.eps = unet.config.norm_eps
        self.margin = _DIT_MARGIN if isinstance(unet.config, DiTConfig) else 1.0
        self.steps = steps
        self.generator = np.random.default_rng(seed)
        self.rows: dict[str, list[np.ndarray]] = {}  # by name, one row a step
        self.scores: dict[str, list[np.ndarray]] = {name: [] for name in self.layers.attentions}
        self.gates: dict[str, list[np.ndarray]] = {name: [] for name in (*self.layers.gates, *inner)}
        self.constants: dict[str, np.ndarray] = {}

    def visit(self, seen: Observation) -> None:
        for name, groups in self.layers.group_norms.items():
            self._group_norm(name, groups, seen)
        for name, eps in self.layers.token_norms.items():
            self._spread(name, seen.variances[name].reshape(-1, 1) + eps, self.widths[name])
        for name, scores in seen.scores.items():
            rows = scores.reshape(-1, scores.shape[-1])
            some = self._some(len(rows), ROWS)
            if self.labels is None:
                some = with_extremes(rows - rows.mean(1, keepdims=True), some)
            rows = rows[some].astype(np.float64)
            self.scores[name].append(rows - rows.mean(1, keepdims=True))
            if self.labels is not None:
                self._row(f"{name}.key", seen.keys[name].mean(axis=(0, 3)).reshape(-1))
        for name in self.gates:
            channels = _by_channel(seen.gates[name])
            # The ends are among the samples, so that the range is that of all values.
            ends = np.stack([channels.min(1), channels.max(1)], axis=1)
            chosen = channels[:, self._some(channels.shape[1], -(-SAMPLES // self.steps))]
            self.gates[name].append(np.concatenate([ends, chosen], axis=1))

    def _group_norm(self, name: str, groups: int, seen: Observation) -> None:
        channels, activation = _by_channel(seen.normalised[name]), self.layers.activations.get(name)
        ends = widened_ends(channels)
        if self.labels is None:
            eps = self.eps if activation else GROUP_NORM_EPS
            self._spread(name, seen.variances[name] + eps, seen.normalised[name][0].size // groups)
        else:
            for leaf, values in self._lines(seen.means[name], seen.variances[name] + self.eps).items():
                self._row(f"{name}.{leaf}", values)
            self._row(f"{name}.range", ends)
            self.constants[f"{name}.pixels"] = np.asarray([seen.normalised[name][0, 0].size], np.int32)
        if activation in _ACTIVATIONS:
            leaf, fit = _ACTIVATIONS[activation]
            self._row(f"{name}.{leaf}", fit(channels[:, self._some(channels.shape[1], SAMPLES)], ends))

    def _lines(self, means: np.ndarray, variances: np.ndarray) -> dict[str, np.ndarray]:
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

    def _spread(self, name: str, variances: np.ndarray, count: int) -> None:
        low, high = variances.min(0) / SPREAD, variances.max(0) * SPREAD
        self._row(f"{name}.spread", np.stack([low, high], axis=1))
        self.constants[f"{name}.count"] = np.asarray([count], np.int32)

    def _some(self, total: int, count: int) -> np.ndarray:
        return self.generator.choice(total, min(count, total), replace=False)

    def _row(self, name: str, values: np.ndarray) -> None:
        self.rows.setdefault(name, []).append(values)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.stack(values) for name, values in self.rows.items()}
        for name in arrays:
            if name.endswith((".center", ".typical", ".rstd")):
                arrays[name] = np.moveaxis(arrays[name], 0, 1)  # classes first
        for name, scores in self.scores.items():
            found = fit_attention(scores, margin=self.margin)
            arrays |= {f"{name}.{leaf}": values for leaf, values in found.items()}
        for name, gates in self.gates.items():
            samples = np.concatenate(gates, axis=1)
            function = exact.silu if self.layers.inner.get(name) == "silu" else exact.gelu
            arrays[f"{name}.even"] = fit_even(samples, widened_ends(samples), function)
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        newton = {
            name.replace(".spread", ".newton"): np.asarray([newton_steps(array)], np.int32)
            for name, array in arrays.items()
            if name.endswith(".spread")
        }
        return arrays | newton | self.constants


def with_extremes(rows: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Return numbers of rows of centred scores [rows, N]: `some`, and those at either end of the range that is inverted."""
    order = np.nanmean(np.exp(rows), 1).argsort()
    return np.unique(np.concatenate([some, order[:EXTREMES], order[-EXTREMES:]]))


def _by_channel(values: np.ndarray) -> np.ndarray:
    """[B, C, ...] to [C, B ...]."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


def newton_steps(spread: np.ndarray) -> int:
    """Number of Newton steps needed on the widest of the ranges [..., 2], at most MAX_NEWTON."""
    ratio = float((spread[..., 1] / spread[..., 0]).max())
    return next((n for n in range(MAX_NEWTON) if newton_start(1, ratio, n)[2] < _ROOT_ERROR), MAX_NEWTON)


def fit_attention(scores: list[np.ndarray], total: Callable = np.sum, margin: float = 1.0) -> dict[str, np.ndarray]:
    """Return exp, sum, counts and peak of an attention module from its centred scores [rows, N] of each step.

    `total` is what the parties invert of a row's exponentials: their sum, or, with what is no score NaN, np.nanmean. Totals
    may leave the range that was met by a factor of `margin`.

    Scores too far apart for one exponential about their row's mean are taken below their row's maximum, and no lower than
    LOWEST. Then there is also "floor" [1], and no scores are out of range; it costs a maximum and a comparison on shares.
    """
    fitted = _fit_exponentials(scores, _EXP_ERROR)
    floor = {}
    if fitted is None:
        scores = [np.maximum(rows - np.nanmax(rows, 1, keepdims=True), LOWEST) for rows in scores]
        fitted = _fit_exponentials(scores, _BELOW_ERROR, (LOWEST, 0.0))
        floor = {"floor": np.array([LOWEST])}
    fits, squarings = fitted
    powers = [np.polyval(fit, rows) ** 2**squarings for fit, rows in zip(fits, scores, strict=True)]
    sums = [total(part, axis=1) for part in powers]
    if margin > 1:
        sums = [np.array([found.min() / margin, found.max() * margin]) for found in sums]
    if floor:
        # Prompts that were not calibrated with have other sums: of N exponentials, of which one is 1, they are 1 to N.
        ends = [(found.min() / _SUM_MARGIN, found.max() * _SUM_MARGIN) for found in sums]
        limits = [total(np.eye(1, rows.shape[1]), axis=1)[0] * np.array([1, rows.shape[1]]) for rows in scores]
        sums = [np.clip(pair, *limit) for pair, limit in zip(ends, limits, strict=True)]
    inverses, errors = zip(*(fit_reciprocal(total) for total in sums), strict=True)
    newton = 0
    while max(errors) ** 2**newton > _INVERSE_ERROR:  # each iteration squares the error
        newton += 1
    inverses = np.stack(inverses)
    peak = max(np.nanmax(part) * unit for part, unit in zip(powers, inverses[:, 0], strict=True))
    return {
        "exp": np.stack(fits) * inverses[:, :1] ** (0.5**squarings),
        "sum": inverses[:, 1:],
        "counts": np.array([squarings, newton]),
        "peak": np.array([peak]),
    } | floor


def _fit_exponentials(
    scores: list[np.ndarray], tolerance: float, ends: tuple[float, float] | None = None
) -> tuple[tuple[np.ndarray, ...], int] | None:
    """`fit_exponential` of each step with the fewest squarings that are right at all of them, and the number of these."""
    if max(np.nanmax(rows) for rows in scores) > _LARGEST_SCORE:
        return None
    for squarings in range(6):
        fits, errors = zip(*(fit_exponential(rows, squarings, ends) for rows in scores), strict=True)
        if max(errors) < tolerance:
            return fits, squarings
    return None
