"""Fits of cheap functions to what a model's layers carry: least squares on samples and, lighter, on their whole range."""

from collections.abc import Callable

import numpy as np
from scipy.special import softmax

from ..approximations import exact
from ..approximations.inverses import inverse_sqrt_line

# An activation's fit reaches beyond the samples by a fixed margin plus a share of their range.
_MARGIN, _SHARE = 0.3, 0.15
_RANGE_WEIGHT = 0.1  # weight of the range against the samples
_MIRROR_WEIGHT = 0.1  # weight of the mirrored range against the range

# Smallest coefficient of the eighth power, up to sign, in units in which the range is 1. Below it scale and constants of
# Knuth's form lose their bits.
_SMALLEST_LEADING = 0.02
_EVEN = np.arange(0, 10, 2)  # powers of an even fit
_POINTS = 128  # of the grid over a range


def widened_ends(values: np.ndarray) -> np.ndarray:
    """Return the ends [C, 2] of the range that an activation is fitted on: a margin beyond each row of values [C, n].

    Beyond the range a polynomial of degree 8 leaves the activation quickly, and new images have a few values beyond any sample.
    """
    low, high = values.min(1), values.max(1)
    margin = _MARGIN + _SHARE * (high - low)
    return np.stack([low - margin, high + margin], axis=1)


def fit_even(samples: np.ndarray, ends: np.ndarray, function: Callable = exact.silu) -> np.ndarray:
    """Fit x/2 + c0 + c2 x^2 + ... + c8 x^8 to SiLU or GELU for each row of samples [C, n].

    SiLU(x) - x/2 and GELU(x) - x/2 are even, so the fits are right on ends [C, 2] and on the mirrored range. c8 is negative, as
    the best one mostly is: scaling x makes it -1.

    Returns:
        c0, c2, ..., c8, float64 [C, 5].
    """
    points, weights, reach = _weighted_points(samples, ends)
    powers = (points / reach)[:, :, None] ** _EVEN
    return _fits_with_negative_last(powers, function(points) - points / 2, weights) / reach**_EVEN


def fit_with_cubic(function: Callable, samples: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Fit c1 x + c3 x^3 + c0 + c2 x^2 + ... + c8 x^8 to a function, as `fit_even` does otherwise.

    Mish needs it: no line taken from it leaves an even function.

    Returns:
        c1, c3, c0, c2, ..., c8, float64 [C, 7].
    """
    points, weights, reach = _weighted_points(samples, ends)
    # On values of one sign odd and even powers are nearly alike, and would get huge coefficients that cancel. So the mirrored
    # range is fitted too, with little weight.
    points = np.concatenate([points, -points[:, -_POINTS:]], axis=1)
    weights = np.concatenate([weights, _MIRROR_WEIGHT * weights[-_POINTS:]])
    exponents = np.concatenate([[1, 3], _EVEN])
    powers = (points / reach)[:, :, None] ** exponents
    return _fits_with_negative_last(powers, function(points), weights) / reach**exponents


def _fits_with_negative_last(powers: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least squares for powers [C, n, k] of points in [-1, 1], the last coefficient at most -_SMALLEST_LEADING."""
    fits = _least_squares(powers, target, weights)
    small = fits[:, -1] > -_SMALLEST_LEADING
    if small.any():
        rest = target[small] + _SMALLEST_LEADING * powers[small, :, -1]
        others = _least_squares(powers[small, :, :-1], rest, weights)
        fits[small] = np.concatenate([others, np.full((len(others), 1), -_SMALLEST_LEADING)], axis=1)
    return fits


def _weighted_points(samples: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples [C, n] and a grid over their ends [C, 2], weights of both, and the largest magnitude of each row [C, 1]."""
    samples = samples.astype(np.float64)
    low, high = ends[:, :1].astype(np.float64), ends[:, 1:].astype(np.float64)
    grid = low + (high - low) * np.linspace(0, 1, _POINTS)
    count = samples.shape[1]
    weights = np.concatenate([np.full(count, 1 / count), np.full(_POINTS, _RANGE_WEIGHT / _POINTS)])
    return np.concatenate([samples, grid], axis=1), weights, np.abs(ends).max(1, keepdims=True).astype(np.float64)


def _least_squares(design: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least squares [C, k] for designs [C, n, k] and targets [C, n], by normal equations."""
    weighted = np.swapaxes(design * weights[:, None], 1, 2)
    return np.linalg.solve(weighted @ design, weighted @ target[:, :, None])[:, :, 0]


def fit_inverse_root(squares: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Return (p, q) of the line p - q x, x in `squares`, that is nearest to 1/sqrt(variances) in relative error.

    Both are [n]: mean squares about a fixed centre, and variances with eps. They are fitted as they are and, with less
    weight, with x and the variance equal over the range that they span and a fifth on either side.
    """
    span = np.geomspace(squares.min() / 1.2, squares.max() * 1.2, 50)
    points, roots = np.concatenate([squares, span]), np.sqrt(np.concatenate([variances, span]))
    weight = np.sqrt(np.concatenate([np.full(len(squares), 1 / len(squares)), np.full(50, 0.3 / 50)]))
    return np.linalg.lstsq(np.stack([roots, -points * roots], axis=1) * weight[:, None], weight, rcond=None)[0]


def newton_start(low: float, high: float, steps: int) -> tuple[float, float, float]:
    """Return the line p - q v from which `steps` Newton steps for 1/sqrt(v) start on [low, high], and their error.

    `inverse_sqrt_line` is the line of smallest error e: it is between 1 - e and 1 + e times the right root. A Newton step
    turns t times the right root into f(t) = t (3 - t^2)/2 times it, which is negative for t beyond sqrt(3). So the line is
    multiplied by c with f(c (1 - e)) = f(c (1 + e)), that is c^2 = 3/(3 + e^2), unless there is no step.

    Returns:
        p, q, and the largest relative error on the range.
    """
    p, q = inverse_sqrt_line(low, high)
    error = abs((p - q * high) * np.sqrt(high) - 1)
    factor = np.sqrt(3 / (3 + error**2)) if steps else 1.0
    ends = np.array([1 - error, 1 + error]) * factor
    for _ in range(steps):
        ends = ends * (3 - ends**2) / 2
    return p * factor, q * factor, float(np.abs(1 - ends).max())


def fit_exponential(
    scores: np.ndarray, squarings: int, ends: tuple[float, float] | None = None
) -> tuple[np.ndarray, float]:
    """Fit exp(s / 2^squarings) ~ alpha s^2 + beta s + gamma to scores [rows, N]; what is NaN is no score.

    It is fitted between `ends` too, or between the lowest and the highest score, with less weight.

    Returns:
        (alpha, beta, gamma), and the root mean square of the relative error of the power 2^squarings, weighted as softmax
        weighs scores.
    """
    there = ~np.isnan(scores)
    # What softmax makes small need not be exact.
    chosen = softmax(np.where(there, scores, -np.inf), axis=1)[there]
    scores = scores[there]
    span = np.linspace(*(ends or (scores.min(), scores.max())), 200)
    points = np.concatenate([scores, span])
    weight = np.sqrt(np.concatenate([chosen / chosen.sum(), np.full(200, _RANGE_WEIGHT / 200)]))
    target = np.exp(points / 2**squarings)
    design = np.vander(points, 3) * (weight / target)[:, None]
    fit = np.linalg.lstsq(design, weight, rcond=None)[0]
    if fit[0] < 1e-4:  # the owner divides by its root
        rest = np.linalg.lstsq(design[:, 1:], weight - 1e-4 * design[:, 0], rcond=None)[0]
        fit = np.append(1e-4, rest)
    ratio = (np.polyval(fit, scores) / np.exp(scores / 2**squarings)) ** 2**squarings
    return fit, float(np.sqrt((chosen * np.square(ratio - 1)).sum() / chosen.sum()))


def fit_reciprocal(sums: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit (x + r0)^2 + r1 to the inverse of x = factor * sums.

    The largest relative error is least over the range of sums, widened by a tenth on either side. The relative error of a
    quadratic alpha x^2 + beta x + gamma is a cubic that is 1 at x = 0, and the smallest such cubic on an interval is
    Chebyshev's, scaled. The factor, the cube root of alpha, makes the quadratic monic.

    Returns:
        (factor, r0, r1), and the largest relative error.
    """
    low, high = float(sums.min()) / 1.1, float(sums.max()) * 1.1
    cubic = np.polynomial.Chebyshev([0, 0, 0, 1], domain=[low, high])
    _, gamma, beta, alpha = -(cubic / cubic(0)).convert(kind=np.polynomial.Polynomial).coef
    factor = np.cbrt(alpha)
    root = beta / (2 * factor**2)
    return np.array([factor, root, gamma / factor - root**2]), abs(float(1 / cubic(0)))
