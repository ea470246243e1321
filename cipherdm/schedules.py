"""Schedules and guidance as rows of coefficients.

A step of DDPM (Ho et al., arXiv 2006.11239, eq. 7) or DDIM (Song et al., arXiv 2010.02502, eq. 12) is linear in the sample,
the model's output and fresh noise. So are the steps of few-step models, LCM (Luo et al., arXiv 2310.04378) and TCD (Zheng et
al., arXiv 2402.19159), and those of Euler, Euler ancestral and EDM (Karras et al., arXiv 2206.00364) and of consistency models
(Song et al., arXiv 2303.01469). A step of DPM-Solver++ (2M; Lu et al., arXiv 2211.01095, algorithm 2) is also linear in the
sample and output of the step before, so 10 to 15 steps suffice. Classifier-free guidance (Ho and Salimans, arXiv 2207.12598)
is linear in two outputs. The coefficients depend on nothing secret, so a schedule is a public table, computed here from the
betas of a diffusers scheduler. The same table drives plaintext and secure sampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CipherDMError, check_whole, refuse
from .schedule_rows import PRECONDITIONED, SCALED, dpmsolver, onestep

_CLASSES = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "dpmsolver++": "DPMSolverMultistep",
    "euler": "EulerDiscrete",
    "euler-ancestral": "EulerAncestralDiscrete",
    "lcm": "LCM",
    "tcd": "TCD",
    "edm": "EDMEuler",
    "consistency": "CMStochasticIterative",
}
SCHEDULERS = tuple(_CLASSES)
# diffusers' classes whose noise levels come from betas, and that leave the model's output as it is: for a model made for one of
# them any scheduler of SCHEDULERS can be taken but EDM's and that of consistency models, which go with models of their own.
# Flow matching and score SDEs are other families.
_NAMES = (
    "DDIM DDIMParallel DDPM DDPMParallel PNDM DPMSolverMultistep DPMSolverSinglestep DPMSolverSDE DEISMultistep UniPCMultistep "
    "LMSDiscrete EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete LCM TCD"
)
BETA_CLASSES = tuple(f"{name}Scheduler" for name in _NAMES.split())
_OWN_CLASSES = {f"{_CLASSES[name]}Scheduler": name for name in PRECONDITIONED}
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
        timesteps: [steps] int64, descending, as the model is told them; float64 where they may lie between whole ones.
        coefficients: [steps, 3] float32, or [steps, 5] for a multistep schedule.
        prediction: [steps, 2] float32, the predicted image as a combination of sample and model output.
        clip: largest absolute value of the predicted image, or None for no clipping, which needs no comparison.
        signal: share of the image in the sample that the first step takes; that of noise is sqrt(1 - signal^2), where noise
            levels come from betas.
        deviation: standard deviation of a first sample of noise alone: 1, but for Euler, EDM and consistency models.
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
            "euler" or "euler-ancestral" (with Karras' noise levels if the configuration asks for them), "lcm" or "tcd"; or, for
            models made for them alone, "edm" (Euler) or "consistency".
        steps: denoising steps, 1 to num_train_timesteps. Numbers are refused for which diffusers' spacing takes others.
        eta: share of fresh noise of DDIM, and of TCD (its gamma), 0 to 1. The others have their own and ignore this.
        clip: clip the predicted image to the configured clip_sample_range at every step, and derive the noise again from
            the clipped image (diffusers' use_clipped_model_output). The configuration's clip_sample is ignored: clipping
            shares needs two comparisons per pixel, so it happens only if asked for here.
        start: number of first steps to leave out, because sampling begins with an image under less noise.

    Raises:
        CipherDMError: an unknown scheduler or prediction type, noise levels of another family than the scheduler's, or a number
            out of its range.
    """
    if name not in SCHEDULERS:
        raise CipherDMError(f"unknown scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}.")
    check_levels(config, name)
    scheduler = _scheduler(config, name, steps)
    timesteps = scheduler.timesteps.numpy()
    taken, longest = len(timesteps), scheduler.config.num_train_timesteps
    spacing = (
        f"timestep_spacing {scheduler.config.get('timestep_spacing')!r}, steps_offset {config.get('steps_offset', 0)}"
    )
    beyond = f"{steps} steps begin at timestep {timesteps.max()}, and the model knows 0 to {longest - 1}"
    problems = {
        "dpmsolver++ remembers unclipped predictions: leave clip out, or choose ddim": name == "dpmsolver++" and clip,
        "dynamic thresholding needs a quantile of secret values: set thresholding to false": scheduler.config.get(
            "thresholding"
        ),
        f"eta must be between 0 (no fresh noise) and 1; got {eta}": not 0.0 <= eta <= 1.0,
        f"of {steps} steps the first {start} cannot be left out: at least one must remain": not 0 <= start < steps,
        f"{name} begins with noise alone: leave start out": start > 0 and name in PRECONDITIONED,
        f"diffusers takes {taken} steps when asked for {steps} ({spacing}): take another number": taken != steps,
        f"{beyond} ({spacing}): take fewer steps": timesteps.max() >= longest and name not in PRECONDITIONED,
    }
    refuse(problems)
    with np.errstate(all="ignore"):  # what is not finite in the end is refused
        rows = dpmsolver(scheduler, start) if name == "dpmsolver++" else onestep(scheduler, name, eta, clip)
    made = Schedule(
        name=name,
        timesteps=timesteps[start:].astype(np.float64 if name in SCALED else np.int64),
        coefficients=rows.coefficients[start:].astype(np.float32),
        prediction=rows.prediction[start:].astype(np.float32),
        clip=float(scheduler.config.get("clip_sample_range", 1.0)) if clip else None,
        signal=float(rows.signal[start]),
        deviation=float(scheduler.init_noise_sigma * rows.signal[0]) if name in SCALED and not start else 1.0,
    )
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


def exploring_scheduler(config: Mapping[str, Any] | None) -> str:
    """Return the scheduler whose steps show what a model meets under all that it can be sampled by: DDIM, if it can take it."""
    return _OWN_CLASSES.get((config or {}).get("_class_name"), "ddim")


def check_levels(config: Mapping[str, Any] | None, name: str | None = None) -> None:
    """Raise CipherDMError unless a scheduler, or the one of that name, takes the noise levels of a scheduler's configuration.

    They come from betas that it states, or are those of EDM or of a consistency model.
    """
    if config is None:
        raise CipherDMError(f"this model has no scheduler: put its {_FILE} beside its config.json.")
    kind = config.get("_class_name")
    own = _OWN_CLASSES.get(kind)
    refuse({f"this model's scheduler is a {kind}: choose {own}, which alone takes it": own and name not in (own, None)})
    if own:
        return
    refuse({f"{name} is for models made for it, and this one has a {kind}: choose another": name in PRECONDITIONED})
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
        longest = scheduler.config.num_train_timesteps
        count = longest if name in PRECONDITIONED else len(scheduler.betas)
        check_whole("steps", steps, 1, longest)
        refuse({f"{_FILE} has {count} trained_betas for {longest} num_train_timesteps": count != longest})
        scheduler.set_timesteps(steps)
    except (NotImplementedError, ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CipherDMError(f"diffusers does not compute the noise levels of this {_FILE}: {error}") from error
    return scheduler


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
