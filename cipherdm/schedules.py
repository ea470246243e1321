"""Schedules and guidance as rows of coefficients.

A step of DDPM (Ho et al., arXiv 2006.11239, eq. 7) or DDIM (Song et al., arXiv 2010.02502, eq. 12) is linear in the sample,
the model's output and fresh noise. So are the steps of few-step models, LCM (Luo et al., arXiv 2310.04378) and TCD (Zheng et
al., arXiv 2402.19159), and those of Euler and Euler ancestral (Karras et al., arXiv 2206.00364). A step of DPM-Solver++ (2M; Lu
et al., arXiv 2211.01095, algorithm 2) is also linear in the sample and output of the step before, so 10 to 15 steps suffice.
Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) is linear in two outputs. The coefficients depend on nothing
secret, so a schedule is a public table, computed here from the betas of a diffusers scheduler. The same table drives plaintext
and secure sampling.

diffusers' Euler steps take samples x = image + sigma noise, and the model x / sqrt(sigma^2 + 1). Here all samples are what the
model takes: signal * image + noise level * noise, with squares that add up to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CipherDMError, check_whole, refuse

_CLASSES = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "dpmsolver++": "DPMSolverMultistep",
    "euler": "EulerDiscrete",
    "euler-ancestral": "EulerAncestralDiscrete",
    "lcm": "LCM",
    "tcd": "TCD",
}
SCHEDULERS = tuple(_CLASSES)
# diffusers' classes whose noise levels come from betas, and that leave the model's output as it is: for a model made for one of
# them any scheduler of SCHEDULERS can be taken. Flow matching, EDM, consistency and score SDEs are other families.
_NAMES = (
    "DDIM DDIMParallel DDPM DDPMParallel PNDM DPMSolverMultistep DPMSolverSinglestep DPMSolverSDE DEISMultistep UniPCMultistep "
    "LMSDiscrete EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete LCM TCD"
)
BETA_CLASSES = tuple(f"{name}Scheduler" for name in _NAMES.split())
# Values of other fields that say that the noise levels do not come from the betas.
_OTHER_LEVELS = {"use_flow_sigmas": True, "timestep_type": "continuous", "prediction_type": "flow_prediction"}
_FILE = "scheduler_config.json"
_BETAS = ("beta_start", "beta_end", "beta_schedule")
# Named where coefficients are not finite.
_LEVEL_FIELDS = (*_BETAS, "rescale_betas_zero_snr", "prediction_type", "timestep_spacing")
BRANCHES = 2  # outputs per step with guidance: without the prompt (or with the negative one), and with it


@dataclass(frozen=True, eq=False)
class Schedule:
    """Steps of a sampler.

    With `clip` None, a step is

        sample <- coefficients[i] @ [sample, output, noise]

    and with a number r, the predicted image is clipped to [-r, r] on the way:

        x0 = clip(prediction[i] @ [sample, output], -r, r)
        sample <- coefficients[i] @ [sample, x0, noise]

    A multistep schedule has two more factors, for the sample and the output of the step before.

    Attributes:
        name: one of SCHEDULERS.
        timesteps: [steps] int64, descending, as the model is told them; float64 of Euler's, which may lie between whole ones.
        coefficients: [steps, 3] float32, or [steps, 5] for a multistep schedule.
        prediction: [steps, 2] float32, the predicted image as a combination of sample and model output.
        clip: largest absolute value of the predicted image, or None for no clipping, which needs no comparison.
        signal: share of the image in the sample that the first step takes; that of noise is sqrt(1 - signal^2).
        deviation: standard deviation of a first sample of noise alone. It is 1, but of Euler's schedules.
    """

    name: str
    timesteps: np.ndarray
    coefficients: np.ndarray
    prediction: np.ndarray
    clip: float | None
    signal: float
    deviation: float = 1.0

    @property
    def steps(self) -> int:
        """Number of calls of the model."""
        return len(self.timesteps)

    @property
    def noisy(self) -> bool:
        """True if any step adds fresh noise."""
        return bool(self.coefficients[:, 2].any())

    @property
    def multistep(self) -> bool:
        """True if a step needs the one before."""
        return self.coefficients.shape[1] == 5


def make_schedule(
    config: Mapping[str, Any] | None, name: str, steps: int, *, eta: float = 0.0, clip: bool = False, start: int = 0
) -> Schedule:
    """Return the coefficient rows of `steps` denoising steps, or of the last `steps - start` of them.

    Args:
        config: configuration of a diffusers scheduler (`scheduler_config.json`): betas, spacing, prediction type. None, as
            models without one have it, is an error.
        name: one of SCHEDULERS: "ddpm" (ancestral, with the configured variance_type), "ddim", "dpmsolver++" (2M, midpoint),
            "euler" or "euler-ancestral" (with Karras' noise levels if the configuration asks for them), "lcm" or "tcd".
        steps: denoising steps, 1 to num_train_timesteps. Numbers are refused for which diffusers' spacing takes others.
        eta: share of fresh noise of DDIM, and of TCD (its gamma), 0 to 1. The others have their own and ignore this.
        clip: clip the predicted image to the configured clip_sample_range at every step, and derive the noise again from
            the clipped image (diffusers' use_clipped_model_output). The configuration's clip_sample is ignored: clipping
            shares needs two comparisons per pixel, so it happens only if asked for here.
        start: number of first steps to leave out, because sampling begins with an image under less noise.

    Raises:
        CipherDMError: an unknown scheduler or prediction type, noise levels that do not come from the configuration's betas, or
            a number out of its range.
    """
    if name not in SCHEDULERS:
        raise CipherDMError(f"unknown scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}.")
    check_levels(config)
    scheduler = _scheduler(config, name, steps)
    timesteps = scheduler.timesteps.numpy()
    taken, longest = len(timesteps), scheduler.config.num_train_timesteps
    spacing = f"timestep_spacing {scheduler.config.timestep_spacing!r}, steps_offset {config.get('steps_offset', 0)}"
    beyond = f"{steps} steps begin at timestep {timesteps.max()}, and the model knows 0 to {longest - 1}"
    problems = {
        "dpmsolver++ remembers unclipped predictions: leave clip out, or choose ddim": name == "dpmsolver++" and clip,
        "dynamic thresholding needs a quantile of secret values: set thresholding to false": scheduler.config.get(
            "thresholding"
        ),
        f"eta must be between 0 (no fresh noise) and 1; got {eta}": not 0.0 <= eta <= 1.0,
        f"of {steps} steps the first {start} cannot be left out: at least one must remain": not 0 <= start < steps,
        f"diffusers takes {taken} steps when asked for {steps} ({spacing}): take another number": taken != steps,
        f"{beyond} ({spacing}): take fewer steps": timesteps.max() >= longest,
    }
    refuse(problems)
    with np.errstate(all="ignore"):  # what is not finite in the end is refused
        if name == "dpmsolver++":
            made = _dpmsolver(scheduler, steps, start)
        else:
            made = _onestep(scheduler, name, start, eta, clip)
    if not (np.isfinite(made.coefficients).all() and np.isfinite(made.prediction).all()):
        found = ", ".join(f"{field} {config[field]!r}" for field in _LEVEL_FIELDS if config.get(field) is not None)
        raise CipherDMError(
            f"{name} with {steps} steps has no finite coefficients for this {_FILE}: {found}. Noise without any signal "
            "(rescale_betas_zero_snr) needs v_prediction or sample, betas must lie between 0 and 1, and each step needs a "
            "timestep of its own."
        )
    return made


def whole_steps(steps: int, reuse: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `steps` steps call the whole U-Net, bool [steps], and weights [steps, 2], float32, for those between.

    Whole are the first step, the last, and every reuse-th counted from the last. The steps between take deep features from
    the line through the last two whole steps before them: the first weight is that of the last one, the second that of the
    one before, if there is one (DeepCache, Ma et al., arXiv 2312.00858, which keeps the last one as it is).
    """
    numbers = np.arange(steps)
    whole = ((steps - 1 - numbers) % reuse == 0) | (numbers == 0)
    at = np.flatnonzero(whole)
    last = np.searchsorted(at, numbers, "right") - 1
    apart = at[last] - at[np.maximum(last - 1, 0)]
    ahead = np.where(apart > 0, numbers - at[last], 0) / np.maximum(apart, 1)
    return whole, np.stack([1 + ahead, -ahead], axis=1).astype(np.float32)


def scheduler_of(config: Mapping[str, Any] | None) -> str:
    """Return the name in SCHEDULERS of a scheduler's class; "ddim" for classes that are not there, and for DDPM.

    DDPM needs a thousand steps for what DDIM draws in some twenty, from the same noise levels.
    """
    names = {f"{kind}Scheduler": name for name, kind in _CLASSES.items() if name != "ddpm"}
    return names.get((config or {}).get("_class_name"), "ddim")


def check_levels(config: Mapping[str, Any] | None) -> None:
    """Raise CipherDMError unless there is a scheduler's configuration whose noise levels come from betas that it states."""
    if config is None:
        raise CipherDMError(f"this model has no scheduler: put its {_FILE} beside its config.json.")
    kind = config.get("_class_name")
    others = {f"is a {kind}": kind not in (*BETA_CLASSES, None)}
    others |= {f"has {field}={value!r}": config.get(field) == value for field, value in _OTHER_LEVELS.items()}
    ours = f", and only noise levels that come from betas are supported: those of {', '.join(BETA_CLASSES)}."
    refuse(others, "the scheduler ", ours)
    missing = [field for field in _BETAS if field not in config]
    if missing and config.get("trained_betas") is None:
        raise CipherDMError(f"the scheduler's configuration lacks {', '.join(missing)}: complete {_FILE}.")


def _scheduler(config: Mapping[str, Any], name: str, steps: int):
    """Return diffusers' scheduler of that name for a configuration, set to so many steps."""
    import diffusers  # which brings PyTorch: importing this module should not take seconds

    # diffusers takes its class's own default for each field listed here, instead of the value that is there.
    config = {field: value for field, value in config.items() if field != "_use_default_values"}
    try:
        if config.get("beta_schedule") in ("sigmoid", "laplace"):  # which diffusers computes for DDPM only
            unscaled = diffusers.DDPMScheduler.from_config(config | {"rescale_betas_zero_snr": False})
            config |= {"trained_betas": unscaled.betas.tolist()}
        scheduler = getattr(diffusers, f"{_CLASSES[name]}Scheduler").from_config(config)
        count, longest = len(scheduler.betas), scheduler.config.num_train_timesteps
        check_whole("steps", steps, 1, longest)
        refuse({f"{_FILE} has {count} trained_betas for {longest} num_train_timesteps": count != longest})
        scheduler.set_timesteps(steps)
    except (NotImplementedError, ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CipherDMError(f"diffusers does not compute the noise levels of this {_FILE}: {error}") from error
    return scheduler


def _onestep(scheduler, name: str, start: int, eta: float, clip: bool) -> Schedule:
    """A schedule whose steps need nothing of those before, from the step numbered `start` on."""
    euler = name.startswith("euler")
    steps = _euler(scheduler, name == "euler-ancestral") if euler else _discrete(scheduler, name, eta)
    levels, (sample, image, output, noise) = steps
    signal, noisy = np.sqrt(levels), np.sqrt(1 - levels)
    x0, eps = _predictions(scheduler.config.prediction_type, signal, noisy)
    if clip:
        # The noise is (sample - sqrt(levels) x0) / sqrt(1 - levels), where x0 is known only once it is clipped.
        rows = [sample + output / noisy, image - output * signal / noisy, noise]
    else:
        rows = [sample + image * x0[0] + output * eps[0], image * x0[1] + output * eps[1], noise]
    return Schedule(
        name=name,
        timesteps=scheduler.timesteps.numpy()[start:].astype(np.float64 if euler else np.int64),
        coefficients=np.stack(rows, axis=1)[start:].astype(np.float32),
        prediction=np.stack(x0, axis=1)[start:].astype(np.float32),
        clip=float(scheduler.config.get("clip_sample_range", 1.0)) if clip else None,
        signal=float(signal[start]),
        deviation=float(scheduler.init_noise_sigma * signal[0]) if euler and not start else 1.0,
    )


# Factors of the sample, the predicted image, the predicted noise and fresh noise, each [steps].
_Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


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


def _euler(scheduler, ancestral: bool) -> tuple[np.ndarray, _Step]:
    """Euler's noise levels, as `alphas_cumprod`, and the factors of its steps, which are those of DDIM between such levels."""
    sigmas = scheduler.sigmas.numpy().astype(np.float64)
    now, later = sigmas[:-1], sigmas[1:]
    fresh = np.zeros_like(now)
    if ancestral:
        fresh = later * np.sqrt(1 - (later / now) ** 2)  # sigma_up
    signal = 1 / np.sqrt(later**2 + 1)
    kept = np.sqrt(np.maximum(later**2 - fresh**2, 0.0))
    return 1 / (now**2 + 1), (np.zeros_like(now), signal, signal * kept, signal * fresh)


_Factors = tuple[np.ndarray, np.ndarray]  # of the sample and of the model's output, each [steps]


def _predictions(kind: str, signal: np.ndarray, noise: np.ndarray) -> tuple[_Factors, _Factors]:
    """The predicted image and the predicted noise, where the sample is signal * image + noise * predicted noise."""
    one, zero = np.ones_like(signal), np.zeros_like(signal)
    if kind == "epsilon":
        return (1 / signal, -noise / signal), (zero, one)
    if kind == "v_prediction":
        return (signal, -noise), (noise, signal)
    if kind == "sample":
        return (zero, one), (1 / noise, -signal / noise)
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


def _dpmsolver(scheduler, steps: int, start: int) -> Schedule:
    """DPM-Solver++ (2M) from the step numbered `start` on.

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
    ratio = scheduler.sigmas.numpy().astype(np.float64)  # sigma / alpha, [steps + 1]
    alpha = 1 / np.sqrt(ratio**2 + 1)
    sigma = ratio * alpha
    (image, output), _ = _predictions(scheduler.config.prediction_type, alpha[:-1], sigma[:-1])

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
    return Schedule(
        name="dpmsolver++",
        timesteps=scheduler.timesteps.numpy().astype(np.int64)[start:],
        coefficients=rows[start:].astype(np.float32),
        prediction=np.stack([image, output], axis=1)[start:].astype(np.float32),
        clip=None,
        signal=float(alpha[start]),
    )


def guided_coefficients(coefficients: np.ndarray, guidance_scale: float) -> np.ndarray:
    """Split the output's column of rows [steps, 3] or [steps, 5] in two: [steps, 4] or [steps, 7], float32.

    Guidance takes eps = eps_without + w (eps_with - eps_without), w the guidance scale. The output without the prompt
    comes first, as in diffusers, with 1 - w times the factor of the output; the other has w times that factor.
    """
    shares = np.array([1 - guidance_scale, guidance_scale])
    columns = [coefficients[:, index : index + 1] for index in range(coefficients.shape[1])]
    for index in (1, 4):  # the output, and that of the step before
        if index < len(columns):
            columns[index] = columns[index] * shares
    return np.concatenate(columns, axis=1).astype(np.float32)
