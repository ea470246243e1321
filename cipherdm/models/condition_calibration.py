"""Calibration of a U-Net with cross-attention for FAST: fits of every layer, from what it carries on public prompts."""

from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from .condition_blocks import GROUP_NORM_EPS, LAYER_NORM_EPS
from .condition_observation import Layers, PromptedObservation, observe_prompted
from .fast_calibration import SAMPLES, fit_attention
from .fits import fit_even, fit_with_cubic, gelu, mish, newton_start, widened_ends
from .unet import UNet

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
    recorder = _Recorder(unet, schedule.steps, seed)
    with tqdm(total=schedule.steps, desc="calibrate", unit="step", disable=not progress) as bar, threadpool_limits(1):

        def visit(_: int, seen: PromptedObservation) -> None:
            recorder.visit(seen)
            bar.update()

        observe_prompted(
            unet, embeddings, schedule.timesteps, schedule.coefficients, guided=guided, seed=seed, visit=visit
        )
    return recorder.arrays() | {"timesteps": np.asarray(schedule.timesteps, np.float32)}


class _Recorder:
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
