"""Rows of coefficients of samplers' steps, from diffusers' schedulers that are set to a number of steps.

diffusers' Euler, EDM and consistency steps take samples x = image + sigma noise, and the model c x, where c is
1 / sqrt(sigma^2 + 1), or 1 / sqrt(sigma^2 + sigma_data^2) with EDM's preconditioning (Karras et al., arXiv 2206.00364, table
1). Here all samples are what the model takes: signal * image + level * noise. The last one is the image.
"""

from typing import NamedTuple

import numpy as np

from .errors import CipherDMError

PRECONDITIONED = ("edm", "consistency")
SCALED = ("euler", "euler-ancestral", *PRECONDITIONED)
"""Schedulers whose samples are scaled at each step, and whose timesteps need not be whole numbers."""


class Rows(NamedTuple):
    """What `schedules.Schedule` is made of, in float64: coefficients [steps, 3 or 5], prediction [steps, 2], signal [steps]."""

    coefficients: np.ndarray
    prediction: np.ndarray
    signal: np.ndarray


# Factors of the sample, the predicted image, the predicted noise and fresh noise, each [steps].
_Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_Factors = tuple[np.ndarray, np.ndarray]  # of the sample and of the model's output, each [steps]


def onestep(scheduler, name: str, eta: float, clip: bool) -> Rows:
    """Return the rows of steps that need nothing of those before; with `clip`, of the sample, the clipped image and noise."""
    if name in SCALED:
        sigmas = scheduler.sigmas.numpy().astype(np.float64)
        data = scheduler.config.sigma_data if name in PRECONDITIONED else 1.0
        scales = 1 / np.sqrt(sigmas**2 + data**2)
        signal, noisy = scales[:-1], (scales * sigmas)[:-1]
        step = _scaled(scheduler, name, sigmas, np.append(scales[1:-1], 1.0))
    else:
        levels, step = _discrete(scheduler, name, eta)
        signal, noisy = np.sqrt(levels), np.sqrt(1 - levels)
    if name in PRECONDITIONED:
        x0 = _preconditioned(scheduler, name, sigmas[:-1], signal)
    else:
        x0 = _predicted(scheduler.config.prediction_type, signal, noisy)
    sample, image, output, noise = step
    # The predicted noise is (sample - signal x0) / noisy, where x0 may be clipped.
    sample, image = sample + output / noisy, image - output * signal / noisy
    if not clip:
        sample, image = sample + image * x0[0], image * x0[1]
    return Rows(np.stack([sample, image, noise], axis=1), np.stack(x0, axis=1), signal)


def _scaled(scheduler, name: str, sigmas: np.ndarray, scales: np.ndarray) -> _Step:
    """Steps of samples x = image + sigma noise from each level to the next, times the scale of that one."""
    now, later = sigmas[:-1], sigmas[1:]
    fresh = np.zeros_like(now)
    if name == "euler-ancestral":
        fresh = later * np.sqrt(1 - (later / now) ** 2)  # sigma_up
    kept = np.sqrt(np.maximum(later**2 - fresh**2, 0.0))
    if name == "consistency":  # all noise is new, and the lowest level counts as none
        kept, fresh = np.zeros_like(now), scheduler.config.s_noise * np.sqrt(later**2 - later[-1] ** 2)
    return np.zeros_like(now), scales, scales * kept, scales * fresh


def _preconditioned(scheduler, name: str, sigmas: np.ndarray, scales: np.ndarray) -> _Factors:
    """The predicted image c_skip x + c_out output of EDM, or of a consistency model (Song et al., arXiv 2303.01469, app. C)."""
    config = scheduler.config
    kind, least = config.get("prediction_type", "epsilon"), config.sigma_min if name == "consistency" else 0.0
    if kind not in ("epsilon", "v_prediction"):
        raise CipherDMError(f"unsupported prediction_type {kind!r} of {name}: choose epsilon or v_prediction.")
    above = sigmas - least
    skip = config.sigma_data**2 / (above**2 + config.sigma_data**2)
    out = above * config.sigma_data * scales
    return skip / scales, -out if kind == "v_prediction" else out


def _discrete(scheduler, name: str, eta: float) -> tuple[np.ndarray, _Step]:
    """`alphas_cumprod` at whole timesteps, and the factors of the steps from each to the next."""
    timesteps = scheduler.timesteps.numpy().astype(np.int64)
    levels = scheduler.alphas_cumprod.numpy().astype(np.float64)
    now, later, last = levels[timesteps], np.append(timesteps[1:], 0), 1.0
    if name == "lcm":
        return now, _lcm(scheduler.config.timestep_scaling, timesteps, levels[later])
    if name == "tcd":
        return now, _tcd(eta, levels, later)
    if name == "ddpm":
        later = np.array([scheduler.previous_timestep(t) for t in timesteps])
    else:
        later = timesteps - scheduler.config.num_train_timesteps // len(timesteps)
        last = float(scheduler.final_alpha_cumprod)
    before = np.where(later >= 0, levels[np.maximum(later, 0)], last)
    if name == "ddpm":
        return now, _ddpm(scheduler.config.variance_type, now, before, timesteps)
    return now, _ddim(eta, now, before)


def _predicted(kind: str, signal: np.ndarray, noise: np.ndarray) -> _Factors:
    """The predicted image, where the sample is signal * image + noise * predicted noise."""
    if kind == "epsilon":
        return 1 / signal, -noise / signal
    if kind == "v_prediction":
        return signal, -noise
    if kind == "sample":
        return np.zeros_like(signal), np.ones_like(signal)
    raise CipherDMError(f"unsupported prediction_type {kind!r}: choose epsilon, v_prediction or sample.")


def _ddpm(variance_type: str, now: np.ndarray, before: np.ndarray, timesteps: np.ndarray) -> _Step:
    """The posterior's mean and standard deviation."""
    alpha = now / before
    small = np.maximum((1 - before) / (1 - now) * (1 - alpha), 1e-20)
    if variance_type in ("fixed_small", "fixed_small_log", None):  # schedulers without a variance save None
        variance = small
    elif variance_type in ("fixed_large", "fixed_large_log"):
        variance = 1 - alpha
    else:
        raise CipherDMError(f"unsupported variance_type {variance_type!r}: choose fixed_small or fixed_large.")
    sample = np.sqrt(alpha) * (1 - before) / (1 - now)
    image = np.sqrt(before) * (1 - alpha) / (1 - now)
    return sample, image, np.zeros_like(image), np.where(timesteps > 0, np.sqrt(variance), 0.0)


def _ddim(eta: float, now: np.ndarray, before: np.ndarray) -> _Step:
    deviation = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
    direction = np.sqrt(np.maximum(1 - before - deviation**2, 0.0))
    return np.zeros_like(now), np.sqrt(before), direction, deviation


def _lcm(scaling: float, timesteps: np.ndarray, before: np.ndarray) -> _Step:
    """The consistency function c_skip sample + c_out image, and fresh noise of the next level; the last step adds none."""
    data, scaled = 0.5, timesteps * scaling  # diffusers' sigma_data
    skip, out = data**2 / (scaled**2 + data**2), scaled / np.sqrt(scaled**2 + data**2)
    before = np.append(before[:-1], 1.0)
    return np.sqrt(before) * skip, np.sqrt(before) * out, np.zeros_like(before), np.sqrt(1 - before)


def _tcd(eta: float, levels: np.ndarray, later: np.ndarray) -> _Step:
    """A step to the level of (1 - eta) times the next timestep, and fresh noise up to the level of that; the last adds none."""
    before, between = levels[later], levels[np.floor((1 - eta) * later).astype(np.int64)]
    up = np.append(np.sqrt(before / between)[:-1], 1.0)
    return np.zeros_like(before), up * np.sqrt(between), up * np.sqrt(1 - between), np.sqrt(1 - up**2)


def dpmsolver(scheduler, start: int) -> Rows:
    """Return the rows of DPM-Solver++ (2M), if the step numbered `start` is the first.

    With lambda = log(alpha / sigma), h the step in lambda from s to t, and h' the step before it, the predicted image is
    extrapolated,

        D = (1 + h / (2 h')) x0_s - h / (2 h') x0_s',
        x_t = (sigma_t / sigma_s) x_s - alpha_t (exp(-h) - 1) D,

    and the first step, like the last one of a short schedule, takes D = x0_s. The row of a step has factors of the sample,
    the output, fresh noise (0), and the sample and the output of the step before. Remembering those two instead of the
    image keeps factors small: a predicted image at high noise is a difference of numbers a hundred times its size.
    """
    for field, supported in {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}.items():
        if scheduler.config[field] != supported:
            raise CipherDMError(
                f"dpmsolver++ with {field}={scheduler.config[field]!r} is not supported; set {supported!r}."
            )
    steps = len(scheduler.timesteps)
    ratio = scheduler.sigmas.numpy().astype(np.float64)  # sigma / alpha, [steps + 1]
    alpha = 1 / np.sqrt(ratio**2 + 1)
    sigma = ratio * alpha
    image, output = _predicted(scheduler.config.prediction_type, alpha[:-1], sigma[:-1])

    decay = ratio[1:] / ratio[:-1]  # exp(-h)
    toward = alpha[1:] * (1 - decay)
    first_order = np.zeros(steps, bool)
    first_order[start] = True  # the first step that is taken has none before it
    # As in diffusers, so is the last one if it goes to sigma = 0, or is one of few.
    config = scheduler.config
    few = config.lower_order_final and steps < 15
    first_order[-1] |= few or config.euler_at_final or config.final_sigmas_type == "zero"
    with np.errstate(divide="ignore"):  # the last sigma may be 0, and that step is of first order
        h = -np.log(decay)
    share = np.zeros(steps)
    share[1:] = np.where(first_order[1:], 0.0, h[1:] / (2 * h[:-1]))

    rows = np.zeros((steps, 5))
    rows[:, 0] = sigma[1:] / sigma[:-1] + toward * (1 + share) * image
    rows[:, 1] = toward * (1 + share) * output
    rows[1:, 3] = -(toward * share)[1:] * image[:-1]
    rows[1:, 4] = -(toward * share)[1:] * output[:-1]
    return Rows(rows, np.stack([image, output], axis=1), alpha[:-1])
