"""Calibration for FAST: fits of every layer at each timestep, from what the model carries on public noise."""

# FROM cipherdm.models.condition_calibration:
# Calibration of a U-Net with cross-attention for FAST: fits of every layer, from what it carries on public prompts.

from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..models.blocks import GROUP_NORM_EPS, LAYER_NORM_EPS
from ..models.unet import UNet
from .fits import (
    fit_even,
    fit_exponential,
    fit_inverse_root,
    fit_reciprocal,
    fit_with_cubic,
    gelu,
    mish,
    newton_start,
    silu,
    widened_ends,
)
from .observe import Layers, Observation, PromptedObservation, norm_layers, observe, observe_prompted, softmax_blocks

SAMPLES = 3000  # of a channel, to fit an activation

_SQUARINGS = (0, 1, 2, 3, 4, 5)

_EXP_ERROR = 0.05  # relative, of the exponential; the fewest squarings that stay below are taken

_BELOW_ERROR = 0.01  # the same where scores are below their maximum, which pays for its price by being right

_INVERSE_ERROR = 0.003

_LARGEST_SCORE = 18.0  # whose exponential SPU's products can hold

LOWEST = -12.0  # of scores below their row's maximum, of which exp is 6e-6

_SUM_MARGIN = 1.5  # how far sums of rows may leave the range that was met, where scores are below their maximum


def calibrate(
    unet: UNet, schedule, *, images_per_class: int = 24, seed: int = 0, progress: bool = True
) -> dict[str, np.ndarray]:
    """Fit every layer at each timestep of a schedule; the arrays that `save_calibration` stores.

    - "timesteps" [steps].
    - "NORM.center" and "NORM.typical" [classes, steps, groups]: the mean, and the geometric mean of the mean square about it.
    - "NORM.rstd" [classes, steps, groups, 2]: (p, q) with 1/sqrt(variance + eps) ~ p - q x, x the mean square about the centre.
    - "NORM.even" [steps, C, 5]: SiLU for what each channel carries after the normalisation, as `fit_even` has it. Or, for
      Mish, "NORM.cubic" [steps, C, 7], as `fit_with_cubic`. Nothing for "quad", which is exact.
    - "NORM.range" [steps, C, 2]: the ends of the range that it was fitted on.
    - "NORM.pixels" [1]: values of one channel.
    - "ATTENTION.exp" [steps, 3]: (alpha, beta, gamma) of `fit_exponential`, scaled so that rows sum to about 1.
    - "ATTENTION.key" [steps, heads * d]: the mean key.
    - "ATTENTION.sum" [steps, 2]: (r0, r1) with 1/x ~ (x + r0)^2 + r1 for the sums of the rows.
    - "ATTENTION.counts" [2]: squarings, and Newton iterations for the inverse.
    - "ATTENTION.floor" [1], where scores are taken below their row's maximum: the lowest that is kept.
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
        named = {"silu": silu, "swish": silu, "mish": mish, "quad": None}[unet.config.act_fn]
        self.activations = dict.fromkeys(norm_layers(unet), named) | {"conv_norm_out": named and silu}
        self.eps = unet.config.norm_eps
        self.attentions = softmax_blocks(unet)
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
            if function is not None and not name.endswith("group_norm"):
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
            arrays |= {f"{name}.{leaf}": values for leaf, values in fit_attention(name, scores).items()}
        return {name: array.astype(np.float32) for name, array in arrays.items()} | self.constants


def fit_attention(name: str, scores: list[np.ndarray]) -> dict[str, np.ndarray]:
    """exp, sum and counts of an attention block from its centred scores [rows, N] of each step.

    Scores too far apart for one exponential about their row's mean are taken below their row's maximum, and no lower than
    LOWEST: then there is "floor" [1] too, and any scores are right, for a maximum and a comparison on shares.
    """
    fitted = _fit_exponentials(scores, _EXP_ERROR)
    floor = {}
    if fitted is None:
        scores = [np.maximum(rows - rows.max(1, keepdims=True), LOWEST) for rows in scores]
        fitted = _fit_exponentials(scores, _BELOW_ERROR, (LOWEST, 0.0))
        floor = {"floor": np.array([LOWEST])}
    fits, squarings = fitted
    sums = [(np.polyval(fit, rows) ** 2**squarings).sum(1) for fit, rows in zip(fits, scores, strict=True)]
    if floor:
        sums = [_widened(total, rows.shape[1]) for total, rows in zip(sums, scores, strict=True)]
    inverses, errors = zip(*(fit_reciprocal(total) for total in sums), strict=True)
    newton = 0
    while max(errors) ** 2**newton > _INVERSE_ERROR:
        newton += 1
    inverses = np.stack(inverses)
    return {
        "exp": np.stack(fits) * inverses[:, :1] ** (0.5**squarings),
        "sum": inverses[:, 1:],
        "counts": np.array([squarings, newton]),
    } | floor


def _fit_exponentials(
    scores: list[np.ndarray], tolerance: float, ends: tuple[float, float] | None = None
) -> tuple[tuple[np.ndarray, ...], int] | None:
    """`fit_exponential` of each step with the fewest squarings that are right at all of them, and how many these are."""
    if max(rows.max() for rows in scores) > _LARGEST_SCORE:
        return None
    for squarings in _SQUARINGS:
        fits, errors = zip(*(fit_exponential(rows, squarings, ends) for rows in scores), strict=True)
        if max(errors) < tolerance:
            return fits, squarings
    return None


def _widened(sums: np.ndarray, count: int) -> np.ndarray:
    """The ends of the range of sums of `count` exponentials of which one is 1, for prompts that were not calibrated with."""
    return np.clip([sums.min() / _SUM_MARGIN, sums.max() * _SUM_MARGIN], 1, count)


ROWS = 600  # of scores, at each step

MAX_NEWTON = 9  # steps for an inverse root; one that needs more is refused

_SPREAD = 1.3  # how far variances may leave the range that was met, on either side

# Relative, of inverse roots at the ends of that range and in its middle; each of Newton's steps is 11 messages more. What
# this leaves of the pictures' likeness is in prompts_sd-mini.json.
_ROOT_ERROR = 0.05


def calibrate_prompted(
    unet: UNet, schedule, embeddings: np.ndarray, *, guided: bool, seed: int = 0, progress: bool = True
) -> dict[str, np.ndarray]:
    """Fit every layer at each timestep of a schedule; the arrays that `save_calibration` stores.

    - "timesteps" [steps].
    - "NORM.spread" [steps, groups, 2]: the lowest and the highest variance plus eps of each group, widened; of a LayerNorm
      [steps, 1, 2], over all tokens.
    - "NORM.count" [1]: how many values are normalised together.
    - "NORM.newton" [1]: how many of Newton's steps make 1/sqrt right on that range.
    - "NORM.even" [steps, C, 5] or, for Mish, "NORM.cubic" [steps, C, 7]: the activation for what each channel carries.
    - "ATTENTION.exp" [steps, 3], "ATTENTION.sum" [steps, 2], "ATTENTION.counts" [2], and perhaps "ATTENTION.floor" [1]: as
      `fast_calibration.calibrate` has them.
    - "GATE.even" [C, 5]: GELU for what each channel carries at any step.

    Args:
        unet: a UNet2DConditionModel.
        schedule: of DDIM without fresh noise, its coefficients guided if there are two branches.
        embeddings: of the prompts, as `embed_prompts` makes them; one picture each is drawn.
        guided: whether they are of two branches.
        seed: of the noise.
        progress: whether to show a bar.
    """
    recorder = _PromptedRecorder(unet, schedule.steps, seed)
    with tqdm(total=schedule.steps, desc="calibrate", unit="step", disable=not progress) as bar, threadpool_limits(1):

        def visit(_: int, seen: PromptedObservation) -> None:
            recorder.visit(seen)
            bar.update()

        observe_prompted(
            unet, embeddings, schedule.timesteps, schedule.coefficients, guided=guided, seed=seed, visit=visit
        )
    return recorder.arrays() | {"timesteps": np.asarray(schedule.timesteps, np.float32)}


class _PromptedRecorder:
    """Collects what one step after the other shows."""

    def __init__(self, unet: UNet, steps: int, seed: int):
        self.layers = Layers.of(unet)
        self.widths = {name: unet.params[f"{name}.weight"].size for name in self.layers.token_norms}
        self.eps = unet.config.norm_eps
        self.fit = {"mish": ("cubic", partial(fit_with_cubic, mish))}.get(unet.config.act_fn, ("even", fit_even))
        self.steps = steps
        self.generator = np.random.default_rng(seed)
        self.rows: dict[str, list[np.ndarray]] = {}
        self.scores: dict[str, list[np.ndarray]] = {name: [] for name in self.layers.attentions}
        self.gates: dict[str, list[np.ndarray]] = {name: [] for name in self.layers.gates}
        self.counts: dict[str, np.ndarray] = {}

    def visit(self, seen: PromptedObservation) -> None:
        for name, groups in self.layers.group_norms.items():
            values = seen.normalised[name]
            activated = not name.endswith(".norm")
            eps = self.eps if activated else GROUP_NORM_EPS
            self._spread(name, seen.variances[name] + eps, values[0].size // groups)
            if activated:
                leaf, fit = self.fit
                channels = _by_channel(values)
                self._row(f"{name}.{leaf}", fit(self._some(channels, SAMPLES), widened_ends(channels)))
        for name in self.layers.token_norms:
            self._spread(name, seen.variances[name].reshape(-1, 1) + LAYER_NORM_EPS, self.widths[name])
        for name, scores in seen.scores.items():
            rows = scores.reshape(-1, scores.shape[-1])
            rows = rows[self.generator.choice(len(rows), min(ROWS, len(rows)), replace=False)].astype(np.float64)
            self.scores[name].append(rows - rows.mean(1, keepdims=True))
        for name, gates in seen.gates.items():
            channels = _by_channel(gates)
            # The ends are among the samples, so that the range is that of all values.
            ends = np.stack([channels.min(1), channels.max(1)], axis=1)
            self.gates[name].append(np.concatenate([ends, self._some(channels, -(-SAMPLES // self.steps))], axis=1))

    def _spread(self, name: str, variances: np.ndarray, count: int) -> None:
        low, high = variances.min(0) / _SPREAD, variances.max(0) * _SPREAD
        self._row(f"{name}.spread", np.stack([low, high], axis=1))
        self.counts[f"{name}.count"] = np.asarray([count], np.int32)

    def _some(self, channels: np.ndarray, count: int) -> np.ndarray:
        return channels[:, self.generator.choice(channels.shape[1], min(count, channels.shape[1]), replace=False)]

    def _row(self, name: str, values: np.ndarray) -> None:
        self.rows.setdefault(name, []).append(values)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.stack(values) for name, values in self.rows.items()}
        for name, scores in self.scores.items():
            arrays |= {f"{name}.{leaf}": values for leaf, values in fit_attention(name, scores).items()}
        for name, gates in self.gates.items():
            samples = np.concatenate(gates, axis=1)
            arrays[f"{name}.even"] = fit_even(samples, widened_ends(samples), gelu)
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        newton = {
            name.replace(".spread", ".newton"): np.asarray([_newton_steps(array)], np.int32)
            for name, array in arrays.items()
            if name.endswith(".spread")
        }
        return arrays | newton | self.counts


def _by_channel(values: np.ndarray) -> np.ndarray:
    """[B, C, ...] to [C, B ...]."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)


def _newton_steps(spread: np.ndarray) -> int:
    """How many are needed on every one of the ranges [..., 2], at most MAX_NEWTON."""
    ratio = float((spread[..., 1] / spread[..., 0]).max())
    errors = (newton_start(1, ratio, steps)[2] for steps in range(MAX_NEWTON))
    return next((steps for steps, error in enumerate(errors) if error < _ROOT_ERROR), MAX_NEWTON)
