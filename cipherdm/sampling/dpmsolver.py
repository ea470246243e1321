"""DPM-Solver++ (2M): a step that also remembers the one before it, so that 10 to 15 steps suffice.

Lu et al., arXiv 2211.01095, algorithm 2: with lambda = log(alpha / sigma), h the step in lambda from s to t, and h' the step
before it, the predicted image is extrapolated,

    D = (1 + h / (2 h')) x0_s - h / (2 h') x0_s',
    x_t = (sigma_t / sigma_s) x_s - alpha_t (exp(-h) - 1) D,

and the first step, as the last one of a short schedule, takes D = x0_s. A predicted image is linear in the sample and the
model's output that it came from, so that all is one row of five factors. Remembering those two and not the image
keeps the factors small: a predicted image at high noise is a difference of numbers a hundred times its size.
"""

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np

from ..errors import CipherDMError


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
