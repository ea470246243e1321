"""Check in plaintext that a model's layers stay in the ranges on which the functions of a protocol set are right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import numpy as np

from ..approximations.softmax import ShiftedSoftmax
from ..errors import CipherDMError, check_whole
from ..models.blocks import GROUP_NORM_EPS
from ..models.config import UNetConfig
from ..models.transformer import Transformer
from ..models.unet import UNet
from ..progress import Progress
from ..protocols import FAST, Protocols
from ..schedules import Schedule
from .observe import Layers, Observation, load_calibration, observe, one_hot_labels
from .transformers import layers_of, observed

TOLERANCE = 0.1  # relative error beyond which an inverse, an inverse root or a sum of exponentials counts as wrong


@dataclass(frozen=True)
class LayerRange:
    """Values that one function of a protocol set would get in one layer, over all images and steps, and its range.

    Attributes:
        layer: diffusers' name of the normalisation or the attention block.
        function: name of the function that is applied there.
        lowest, highest: ends of the values met.
        allowed: the lowest lower end and the highest upper end, where channels, images and steps have ranges of their own.
        outside: the fraction of the values that lie outside of their own range, 0 to 1. NaN is outside.
        step: the step with the largest such fraction, counted from 0; None if no value is outside.
        excess: the largest distance of a value from its own range, in the values' unit; 0 if none is outside.
    """

    layer: str
    function: str
    lowest: float
    highest: float
    allowed: tuple[float, float]
    outside: float
    step: int | None
    excess: float


# Values of one layer at one step, the lower and upper ends of their ranges, and their distances from them, which are 0 or less
# within the range; arrays that broadcast.
_Met = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_Rules = dict[tuple[str, str], Callable[[int, Observation], _Met]]  # by layer and function, from step and observation


def check_ranges(
    unet: UNet,
    schedule: Schedule,
    protocols: Protocols = FAST,
    *,
    per_class: int = 4,
    embeddings: np.ndarray | None = None,
    guided: bool = False,
    hints: np.ndarray | None = None,
    seed: int = 1,
    progress: Progress | None = None,
) -> list[LayerRange]:
    """Sample with the exact model, and compare what every layer carries with the ranges of the set's functions.

    - Activations, of sets on float32 arrays: the normalised values against the function's `domain`.
    - Softmax of such sets: the scores, less the row's maximum if the softmax subtracts it, against the exponential's `domain`.
      If the exponential has negative values there, also the sum of each row's exponentials as a share of the right sum:
      1 within TOLERANCE, after a factor common to all exponentials is divided out.
    - FAST, activations: the normalised values against "NORM.range" of the calibration, by channel and nearest timestep.
      FAST_GUARDED limits the values before attention too, so they are compared as well.
    - FAST, normalisations of a model with prompts: the variances with eps against the calibrated range of Newton's iteration;
      of others: against the range in which the line of `fit_inverse_root` gives
      1/sqrt(variance) within TOLERANCE. With d the distance of an image's mean from the calibrated centre, the line sees
      x = variance + d^2, so its range depends on d.
    - FAST, attention: the sums of the rows against the range in which the quadratic of `fit_reciprocal` and Newton's
      iteration give 1/sum within TOLERANCE. The fit of the exponential itself has no range, and is not checked; nor have those
      of activations of models with prompts.

    Args:
        unet: the model.
        schedule: a schedule without fresh noise, with guided coefficients if there are two branches.
        protocols: the protocol set.
        per_class: number of images of each class, for models with labels or without conditions.
        embeddings: embeddings of prompts as `embed_prompts` makes them, for models with prompts; one image each.
        guided: True if the embeddings are of two branches.
        hints: [B, C, H, W] in [0, 1], one for each image, for a model with a ControlNet.
        seed: seed of the initial noise, which is public.
        progress: called as progress(done, steps, "check") after each step.

    Returns:
        One entry for every layer and restricted function, those with the largest fraction outside first. If no function of the
        set is restricted there are none, and no image is sampled.

    Raises:
        CipherDMError: a number is out of its range; the set needs a calibration that the model lacks; or a restricted
            activation gets values that are not observed.
    """
    check_whole("the number of images of each class", per_class, 1)
    check_whole("the seed", seed, 0)
    conditions = one_hot_labels(unet, per_class) if embeddings is None else np.float32(embeddings)
    layers = Layers.of(unet)
    if protocols.prepare is None:
        rules = _rules_of_functions(layers, protocols, unet)
    else:
        guarded = protocols.prepare == "fast-guarded"
        rules = _rules_of_calibration(layers, unet, schedule.timesteps, guarded=guarded)
    if not rules:
        return []
    rows = {key: [] for key in rules}

    def visit(step: int, seen: Observation) -> None:
        for key, measure in rules.items():
            rows[key].append(_row(*measure(step, seen)))
        if progress is not None:
            progress(step + 1, schedule.steps, "check")

    observe(unet, schedule, conditions, guided=guided, hints=hints, seed=seed, visit=visit)
    return _entries(rows)


def check_ranges_of_texts(
    model: Transformer,
    ids: np.ndarray,
    mask: np.ndarray,
    protocols: Protocols = FAST,
    progress: Progress | None = None,
) -> list[LayerRange]:
    """Run the exact transformer on texts, and compare what every layer carries as `check_ranges` does.

    Token ids and mask are those of `fit_transformer`. Raises CipherDMError if the set needs a calibration that the model lacks.
    """
    layers = layers_of(model)
    if protocols.prepare is None:
        rules = _rules_of_functions(layers, protocols)
    else:
        rules = _rules_of_calibration(layers, model, np.zeros(1), total=np.nanmean)
    if not rules:
        return []
    seen = observed(model, ids, mask, progress, "check")
    measured = [{key: _row(*measure(0, some)) for key, measure in rules.items()} for some in seen]
    found = _entries({key: [rows[key] for rows in measured] for key in rules})
    return [replace(entry, step=None) for entry in found]


def _entries(rows: Mapping[tuple[str, str], list[tuple]]) -> list[LayerRange]:
    found = [_summed(*key, np.array(some, np.float64)) for key, some in rows.items()]
    return sorted(found, key=lambda entry: (-entry.outside, -entry.excess))


def _row(values: np.ndarray, low: np.ndarray, high: np.ndarray, distance: np.ndarray) -> tuple:
    """One step's lowest and highest value and end, largest distance, and counts of values outside and of all."""
    distance = np.where(np.isnan(distance), inf, distance)
    ends = values.min(), values.max(), np.fmin.reduce(low, None), np.fmax.reduce(high, None)
    return *ends, distance.max(), (distance > 0).sum(), distance.size


def _summed(layer: str, function: str, rows: np.ndarray) -> LayerRange:
    """The entry of one layer and function from its rows [steps, 7]."""
    lowest, highest, low, high, distance, outside, counted = rows.T
    return LayerRange(
        layer=layer,
        function=function,
        lowest=float(lowest.min()),
        highest=float(highest.max()),
        allowed=(float(np.fmin.reduce(low)), float(np.fmax.reduce(high))),
        outside=float(outside.sum() / counted.sum()),
        step=int(np.argmax(outside / counted)) if outside.any() else None,
        excess=max(0.0, float(distance.max())),
    )


def _within(values: np.ndarray, low, high) -> _Met:
    """Values against one interval each; the ends broadcast."""
    low, high = np.asarray(low), np.asarray(high)
    return values, low, high, np.maximum(low - values, values - high)


def _rules_of_functions(layers: Layers, protocols: Protocols, unet: UNet | None = None) -> _Rules:
    """Rules for sets whose activations and softmax are functions with a domain; none for Ditto's, which clips."""
    rules: _Rules = {}
    if protocols.small_bits is not None:
        return rules
    for name, activation in layers.activations.items():
        function = getattr(protocols, activation)
        domain = getattr(function, "domain", (-inf, inf))
        if domain != (-inf, inf):
            _require_observed(unet, protocols, function)
            rules[name, function.name] = lambda _, seen, name=name, ends=domain: _within(seen.normalised[name], *ends)
    for name, act_fn in {**dict.fromkeys(layers.gates, "gelu"), **layers.inner}.items():
        function = getattr(protocols, act_fn)
        if (domain := getattr(function, "domain", (-inf, inf))) != (-inf, inf):
            rules[name, function.name] = lambda _, seen, name=name, ends=domain: _within(seen.gates[name], *ends)
    softmax = protocols.softmax
    shifted = isinstance(softmax, ShiftedSoftmax)
    domain = softmax.exponential.domain if shifted else getattr(softmax, "domain", (-inf, inf))
    for name in layers.attentions:
        if domain != (-inf, inf):
            rules[name, softmax.exponential.name] = lambda _, seen, name=name: _within(
                _less_maximum(seen.scores[name]) if shifted else _filled(seen.scores[name]), *domain
            )
        if shifted and softmax.exponential.curve(-16, 0)[1].min() < 0:
            rules[name, f"{softmax.name}: sum"] = lambda _, seen, name=name: _within(
                _share_of_sums(softmax.exponential, _less_maximum(seen.scores[name])), 1 - TOLERANCE, 1 + TOLERANCE
            )
    return rules


def _require_observed(unet: UNet, protocols: Protocols, function) -> None:
    """Raise CipherDMError if the function is applied to values that an observation lacks.

    It has the output of normalisations before a scale and shift by time, and nothing of the time embedding.
    """
    scaled = getattr(unet.config, "resnet_time_scale_shift", None) == "scale_shift"
    if protocols.time_embedding == "inside" or scaled:
        raise CipherDMError(
            f"{function.name} is restricted to {function.domain}, which can be checked only in sets whose time embedding "
            "is precomputed, and in models without resnet_time_scale_shift='scale_shift'."
        )


def _filled(scores: np.ndarray) -> np.ndarray:
    """Scores with the largest of their row where there is none."""
    return np.where(np.isnan(scores), np.nanmax(scores, -1, keepdims=True), scores)


def _less_maximum(scores: np.ndarray) -> np.ndarray:
    scores = _filled(scores)
    return scores - scores.max(-1, keepdims=True)


def _share_of_sums(exponential: Callable, scores: np.ndarray) -> np.ndarray:
    """Sum over the last axis of exponential(scores), relative to exponential(0), as a share of the right sum."""
    sums = np.asarray(exponential(scores), np.float64).sum(-1) / float(exponential(np.zeros(1, np.float32))[0])
    return sums / np.exp(scores.astype(np.float64)).sum(-1)


def _rules_of_calibration(
    layers: Layers,
    unet: UNet | Transformer,
    timesteps: np.ndarray,
    *,
    guarded: bool = False,
    total: Callable = np.sum,
) -> _Rules:
    """Rules for FAST, from the calibration beside the model, for timesteps [steps]; `total` as in `fit_attention`."""
    stored = load_calibration(unet)
    nearest = np.abs(stored["timesteps"][None, :] - timesteps[:, None]).argmin(1)
    rules: _Rules = {}
    by_class = isinstance(unet.config, UNetConfig)
    for name in () if by_class else (*layers.group_norms, *layers.token_norms):
        eps = layers.token_norms.get(name, GROUP_NORM_EPS)
        eps = unet.config.norm_eps if name in layers.activations else eps
        rules[name, "inverse root"] = partial(_spread_range, name, stored[f"{name}.spread"][nearest], eps)
    for name in layers.group_norms if by_class else ():
        restricted = layers.activations.get(name, "quad") != "quad"
        if guarded or restricted:
            if f"{name}.range" not in stored:
                raise CipherDMError(
                    f"the calibration lacks {name}.range: run `cipherdm calibrate {unet.folder}` again."
                )
            function = "activation" if restricted else "limit"
            rules[name, function] = partial(_normalised_range, name, stored[f"{name}.range"][nearest])
        lines = np.moveaxis(stored[f"{name}.rstd"][:, nearest].astype(np.float64), -1, 0)
        center = stored[f"{name}.center"][:, nearest]
        rules[name, "inverse root"] = partial(_root_range, name, *lines, center, unet.config.norm_eps)
    for name in layers.attentions:
        by_step = ("exp", "key", "sum") if by_class else ("exp", "sum")
        fits = {leaf: stored[f"{name}.{leaf}"][nearest].astype(np.float64) for leaf in by_step}
        fits |= {leaf: stored[f"{name}.{leaf}"] for leaf in ("counts", "floor") if f"{name}.{leaf}" in stored}
        rules[name, "inverse sum"] = partial(_sum_range, name, fits, total)
    return rules


def _normalised_range(name: str, ends: np.ndarray, step: int, seen: Observation) -> _Met:
    """Normalised values by channel against calibrated ends [steps, C, 2]."""
    values = seen.normalised[name]
    return _within(values, *(end.reshape(1, -1, *[1] * (values.ndim - 2)) for end in ends[step].T))


def _spread_range(name: str, ends: np.ndarray, eps: float, step: int, seen: Observation) -> _Met:
    """Variances with eps against calibrated ends [steps, groups, 2], or [steps, 1, 2] for all tokens."""
    return _within(seen.variances[name] + eps, *ends[step].T)


def _root_range(
    name: str, p: np.ndarray, q: np.ndarray, center: np.ndarray, eps: float, step: int, seen: Observation
) -> _Met:
    """Variances with eps against the lines p - q x, all [classes, steps, groups]."""
    variances = seen.variances[name].astype(np.float64) + eps
    labels = np.arange(len(variances)) % len(p)
    slope, offset = q[labels, step], seen.means[name] - center[labels, step]
    return _inverse_root_range(variances, p[labels, step] - slope * offset**2, slope)


def _inverse_root_range(variances: np.ndarray, p: np.ndarray, q: np.ndarray) -> _Met:
    """Variances v against the range in which f(v) = (p - q v) sqrt(v) is 1 within TOLERANCE; p and q have their shape.

    f rises to M at v = p/(3 q), and falls. With sqrt(v) = t sqrt(p/(3 q)) it is M (3 t - t^3)/2, and with t = 2 sin a that is
    M sin(3 a). So f is c at a = arcsin(c/M)/3 and at a = (pi - arcsin(c/M))/3. Where M is above 1 + TOLERANCE the middle
    is left out of the range. There is no range, and everything is outside, if M is below 1 - TOLERANCE.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        top = p / (3 * q)
        largest = 2 / 3 * p * np.sqrt(top)

        def crossings(level: float) -> tuple[np.ndarray, np.ndarray]:
            angle = np.arcsin(level / largest)  # NaN if f does not reach the level
            return top * (2 * np.sin(angle / 3)) ** 2, top * (2 * np.sin((np.pi - angle) / 3)) ** 2

        low, high = crossings(1 - TOLERANCE)
        gap_low, gap_high = crossings(1 + TOLERANCE)
        distance = np.maximum(low - variances, variances - high)
        inside_gap = np.minimum(variances - gap_low, gap_high - variances)
    return variances, low, high, np.where(np.isnan(inside_gap), distance, np.maximum(distance, inside_gap))


def _sum_range(name: str, fits: Mapping[str, np.ndarray], total: Callable, step: int, seen: Observation) -> _Met:
    """Sums, or means, of rows against the ranges on which (x + r0)^2 + r1 is near 1/x after Newton's iteration.

    `fits` are the layer's, with the rows nearest to each step.
    """
    squarings, newton = fits["counts"]
    error = TOLERANCE ** (0.5**newton)  # a Newton step squares it
    scores, keys = (x[name].astype(np.float64) for x in (seen.scores, seen.keys))
    if "floor" in fits:
        below = scores - np.nanmax(scores, -1, keepdims=True)
        scores = np.maximum(below, fits["floor"])
    elif "key" not in fits:  # a prompt's own mean key
        scores = scores - np.nanmean(scores, -1, keepdims=True)
    else:
        # Scores about the calibrated mean key. Queries are not observed, but scores are linear in the keys.
        mean = fits["key"][step].reshape(1, keys.shape[1], -1, 1)
        scores = scores - scores @ np.linalg.pinv(keys) @ mean
    sums = total(np.polyval(fits["exp"][step], scores) ** 2**squarings, axis=-1)
    r0, r1 = fits["sum"][step]
    # x times the inverse is a cubic that rises below and above the range that calibration fitted it on.
    ends = [np.roots([1, 2 * r0, r0 * r0 + r1, -product]) for product in (1 - error, 1 + error)]
    low, high = (choose(roots[abs(roots.imag) < 1e-9].real) for choose, roots in zip((min, max), ends, strict=True))
    return _within(sums, low, high)
