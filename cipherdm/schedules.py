"""Schedules as rows of coefficients.

A step of DDPM (Ho et al., arXiv 2006.11239, eq. 7) or DDIM (Song et al., arXiv 2010.02502, eq. 12) is linear in the sample,
the model's output and fresh noise, and one of DPM-Solver++ (`dpmsolver`) also in those of the step before. The coefficients
depend on nothing secret, so a schedule is a public table, computed here from the betas of a diffusers scheduler; the same
table drives plaintext and secure sampling.
"""

# FROM cipherdm.sampling.dpmsolver:
# DPM-Solver++ (2M): a step that also remembers the one before it, so that 10 to 15 steps suffice.
#
# Lu et al., arXiv 2211.01095, algorithm 2: with lambda = log(alpha / sigma), h the step in lambda from s to t, and h' the step
# before it, the predicted image is extrapolated,
#
#     D = (1 + h / (2 h')) x0_s - h / (2 h') x0_s',
#     x_t = (sigma_t / sigma_s) x_s - alpha_t (exp(-h) - 1) D,
#
# and the first step, as the last one of a short schedule, takes D = x0_s. A predicted image is linear in the sample and the
# model's output that it came from, so that all is one row of five factors. Remembering those two and not the image
# keeps the factors small: a predicted image at high noise is a difference of numbers a hundred times its size.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np

from .errors import CipherDMError

SCHEDULERS = ("ddpm", "ddim", "dpmsolver++")


@dataclass(frozen=True, eq=False)
class Schedule:
    """A sampler's steps.

    With `clip` None, a step is

        sample <- coefficients[i] @ [sample, output, noise]

    and with a number r, the predicted image is clipped to [-r, r] on the way:

        x0 = clip(prediction[i] @ [sample, output], -r, r)
        sample <- coefficients[i] @ [sample, x0, noise]

    A multistep schedule has two factors more, of the sample and the output of the step before.

    Attributes:
        name: one of SCHEDULERS.
        timesteps: [steps] int64, descending: what the model is told.
        coefficients: [steps, 3] float32, or [steps, 5] of a multistep schedule.
        prediction: [steps, 2] float32: the predicted image as a combination of sample and model output.
        clip: the range of the predicted image, or None for no clipping, which costs no comparison.
    """

    name: str
    timesteps: np.ndarray
    coefficients: np.ndarray
    prediction: np.ndarray
    clip: float | None

    @property
    def steps(self) -> int:
        """The number of calls of the model."""
        return len(self.timesteps)

    @property
    def noisy(self) -> bool:
        """Whether any step adds fresh noise."""
        return bool(self.coefficients[:, 2].any())

    @property
    def multistep(self) -> bool:
        """Whether a step needs the one before."""
        return self.coefficients.shape[1] == 5


def make_schedule(
    config: Mapping[str, Any], name: str, steps: int, *, eta: float = 0.0, clip: bool = False, start: int = 0
) -> Schedule:
    """The coefficient rows of `steps` denoising steps, or of the last `steps - start` of them.

    Args:
        config: a diffusers scheduler's configuration (`scheduler_config.json`): betas, spacing, prediction type.
        name: "ddpm" (ancestral, with the configured variance_type), "ddim", or "dpmsolver++" (2M, midpoint).
        steps: denoising steps, 1 to num_train_timesteps.
        eta: DDIM's share of fresh noise, 0 to 1; DDPM has its own and ignores this.
        clip: clip the predicted image to the configured clip_sample_range at every step, and derive the noise again from
            the clipped image (diffusers' use_clipped_model_output). The configuration's clip_sample is not consulted,
            because clipping under MPC costs two comparisons a pixel: it happens only if asked for here.
        start: how many of the first steps are left out, because sampling begins with a picture under less noise.

    Raises:
        CipherDMError: an unknown scheduler or prediction type, or a number out of its range.
    """
    if name not in SCHEDULERS:
        raise CipherDMError(f"unknown scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}.")
    if name == "dpmsolver++" and clip:
        raise CipherDMError("dpmsolver++ remembers unclipped predictions; leave clip out, or choose ddim.")
    scheduler_class = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}.get(
        name, diffusers.DPMSolverMultistepScheduler
    )
    scheduler = scheduler_class.from_config(dict(config))
    longest = scheduler.config.num_train_timesteps
    if not 1 <= steps <= longest:
        raise CipherDMError(
            f"steps must be between 1 and {longest}, the number that the model was trained on; got {steps}."
        )
    if not 0.0 <= eta <= 1.0:
        raise CipherDMError(f"eta must be between 0 (no fresh noise) and 1; got {eta}.")
    if scheduler.config.thresholding:
        raise CipherDMError("dynamic thresholding needs a quantile of secret values; set thresholding to false.")
    if not 0 <= start < steps:
        raise CipherDMError(f"of {steps} steps the first {start} cannot be left out; at least one must remain.")
    if name == "dpmsolver++":
        timesteps, rows, prediction = dpmsolver_rows(config, steps, start)
        return Schedule(name, timesteps, rows.astype(np.float32), prediction.astype(np.float32), None)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.numpy().astype(np.int64)
    now, before = _signal_levels(scheduler, name, timesteps)
    timesteps, now, before = timesteps[start:], now[start:], before[start:]

    x0, eps = _predictions(scheduler.config.prediction_type, now)
    if name == "ddpm":
        sample, image, noise = _ddpm(scheduler.config.variance_type, now, before, timesteps)
        output = np.zeros_like(image)
    else:
        sample, image, output, noise = _ddim(eta, now, before)
    if clip:
        # Noise as (sample - sqrt(now) x0) / sqrt(1 - now), from the clipped image.
        sample = sample + output / np.sqrt(1 - now)
        image = image - output * np.sqrt(now / (1 - now))
        rows = [sample, image, noise]
    else:
        rows = [sample + image * x0[0] + output * eps[0], image * x0[1] + output * eps[1], noise]
    return Schedule(
        name=name,
        timesteps=timesteps,
        coefficients=np.stack(rows, axis=1).astype(np.float32),
        prediction=np.stack(x0, axis=1).astype(np.float32),
        clip=float(scheduler.config.clip_sample_range) if clip else None,
    )


def _signal_levels(scheduler, name: str, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alphas_cumprod at each timestep and at the one that follows it in sampling."""
    levels = scheduler.alphas_cumprod.numpy().astype(np.float64)
    if name == "ddpm":
        previous, last = np.array([scheduler.previous_timestep(t) for t in timesteps]), 1.0
    else:
        stride = scheduler.config.num_train_timesteps // len(timesteps)
        previous, last = timesteps - stride, float(scheduler.final_alpha_cumprod)
    return levels[timesteps], np.where(previous >= 0, levels[np.maximum(previous, 0)], last)


def _predictions(kind: str, now: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The predicted image and the predicted noise, each as factors of (sample, model output)."""
    signal, noise = np.sqrt(now), np.sqrt(1 - now)
    one, zero = np.ones_like(now), np.zeros_like(now)
    if kind == "epsilon":
        return (1 / signal, -noise / signal), (zero, one)
    if kind == "v_prediction":
        return (signal, -noise), (noise, signal)
    if kind == "sample":
        return (zero, one), (1 / noise, -signal / noise)
    raise CipherDMError(f"unsupported prediction_type {kind!r}: choose epsilon, v_prediction or sample.")


def _ddpm(
    variance_type: str, now: np.ndarray, before: np.ndarray, timesteps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors of the sample, the predicted image and the noise: the posterior's mean and standard deviation."""
    alpha = now / before
    small = np.maximum((1 - before) / (1 - now) * (1 - alpha), 1e-20)
    if variance_type in ("fixed_small", "fixed_small_log"):
        variance = small
    elif variance_type in ("fixed_large", "fixed_large_log"):
        variance = 1 - alpha
    else:
        raise CipherDMError(f"unsupported variance_type {variance_type!r}: choose fixed_small or fixed_large.")
    sample = np.sqrt(alpha) * (1 - before) / (1 - now)
    image = np.sqrt(before) * (1 - alpha) / (1 - now)
    return sample, image, np.where(timesteps > 0, np.sqrt(variance), 0.0)


def _ddim(eta: float, now: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Factors of the sample, the predicted image, the predicted noise and fresh noise."""
    deviation = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    direction = np.sqrt(np.maximum(1 - before - deviation**2, 0.0))
    return np.zeros_like(now), np.sqrt(before), direction, deviation


BRANCHES = 2  # without the prompt (or with the negative one), and with it


def guided_coefficients(coefficients: np.ndarray, guidance_scale: float) -> np.ndarray:
    """A schedule's rows [steps, 3] or [steps, 5] with the output's column in two: [steps, 4] or [steps, 7], float32.

    The first of the two is for the output without the prompt, as diffusers puts it. With w the guidance scale their
    factors are 1 - w and w times that of the output.
    """
    shares = np.array([1 - guidance_scale, guidance_scale])
    columns = [coefficients[:, index : index + 1] for index in range(coefficients.shape[1])]
    for index in (1, 4):  # the output, and that of the step before
        if index < len(columns):
            columns[index] = columns[index] * shares
    return np.concatenate(columns, axis=1).astype(np.float32)


def dpmsolver_rows(config: Mapping[str, Any], steps: int, start: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a schedule, float64, for a diffusers scheduler's configuration, from the step numbered `start` on.

    Returns:
        timesteps [n] int64 for the n = steps - start steps; factors [n, 5] of the sample, the output, fresh noise (0), the
        sample of the step before and its output; and the predicted image's factors [n, 2] of sample and output.

    Raises:
        CipherDMError: a variant of the solver that is not this one.
    """
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(dict(config))
    for field, supported in {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}.items():
        if scheduler.config[field] != supported:
            raise CipherDMError(
                f"dpmsolver++ with {field}={scheduler.config[field]!r} is not supported; set {supported!r}."
            )
    scheduler.set_timesteps(steps)
    ratio = scheduler.sigmas.numpy().astype(np.float64)  # sigma / alpha, [steps + 1]
    alpha = 1 / np.sqrt(ratio**2 + 1)
    sigma = ratio * alpha
    image, output = _predicted_image(scheduler.config.prediction_type, alpha[:-1], sigma[:-1])

    decay = ratio[1:] / ratio[:-1]  # exp(-h)
    toward = alpha[1:] * (1 - decay)
    first_order = np.zeros(steps, bool)
    first_order[start] = True  # the first step that is taken has none before it
    first_order[-1] |= _ends_in_first_order(scheduler, steps)
    with np.errstate(divide="ignore"):
        h = -np.log(decay)
    share = np.zeros(steps)
    share[1:] = np.where(first_order[1:], 0.0, h[1:] / (2 * h[:-1]))

    rows = np.zeros((steps, 5))
    rows[:, 0] = sigma[1:] / sigma[:-1] + toward * (1 + share) * image
    rows[:, 1] = toward * (1 + share) * output
    rows[1:, 3] = -(toward * share)[1:] * image[:-1]
    rows[1:, 4] = -(toward * share)[1:] * output[:-1]
    prediction = np.stack([image, output], axis=1)
    return scheduler.timesteps.numpy().astype(np.int64)[start:], rows[start:], prediction[start:]


def _ends_in_first_order(scheduler, steps: int) -> bool:
    """As diffusers decides for the last step: it goes to sigma = 0, where the second order has no value, or is one of few."""
    config = scheduler.config
    return config.euler_at_final or (config.lower_order_final and steps < 15) or config.final_sigmas_type == "zero"


def _predicted_image(kind: str, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted image's factors of sample and model output."""
    if kind == "epsilon":
        return 1 / alpha, -sigma / alpha
    if kind == "v_prediction":
        return alpha, -sigma
    if kind == "sample":
        return np.zeros_like(alpha), np.ones_like(alpha)
    raise CipherDMError(f"unsupported prediction_type {kind!r}: choose epsilon, v_prediction or sample.")
