"""Fits of polynomials to functions: the smallest maximum error, or the smallest mean squared error of given samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from ..errors import CipherDMError
from .piecewise import PiecewisePolynomial

_POINTS = 601


@dataclass(frozen=True)
class Form:
    """Coefficients that a fit may choose in a segment: those of `powers`. Those in `given` are kept, all others are 0."""

    powers: tuple[int, ...]
    given: tuple[tuple[int, float], ...] = ()


def even_plus_half(degree: int) -> Form:
    """Return the form of an even polynomial plus x/2: SiLU(x) - x/2 and GeLU(x) - x/2 are even functions."""
    return Form(tuple(range(0, degree + 1, 2)), ((1, 0.5),))


def fit_minimax(
    function: Callable,
    breakpoints: Sequence[float],
    degrees: Sequence[int | Form],
    *,
    name: str,
    outside: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    relative: bool = False,
    fraction_bits: int | None = None,
) -> PiecewisePolynomial:
    """Return the polynomials of smallest maximum error on each segment, by linear programming on Chebyshev points.

    Args:
        function: function to fit, in NumPy.
        breakpoints: ends of the segments, one more than `degrees`.
        degrees: degree or `Form` of each segment.
        name: name of the result.
        outside: coefficients below the first and above the last breakpoint. Without them the result's domain ends there.
        relative: True to measure the error as a share of the function's magnitude.
        fraction_bits: number of fraction bits that every coefficient is rounded to, from the highest power down; lower
            ones are fitted again after each rounding. SPU rounds public constants to 18 such bits, and the error of a
            small coefficient is multiplied by a large power.
    """

    def fit_segment(low: float, high: float, form: Form) -> tuple[float, ...]:
        x = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, np.pi, _POINTS))
        y = function(x)
        return _fit(form, x, y, 1 / np.abs(y) if relative else np.ones_like(x), _minimax, fraction_bits)

    return _fit_segments(fit_segment, breakpoints, degrees, name, outside)


def fit_weighted(
    function: Callable,
    samples: np.ndarray,
    breakpoints: Sequence[float],
    degrees: Sequence[int | Form],
    *,
    name: str,
    weights: np.ndarray | None = None,
    outside: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    floor: float = 0.01,
    fraction_bits: int | None = None,
) -> PiecewisePolynomial:
    """Return the polynomials of smallest mean squared error over samples, or over a histogram of them, on each segment.

    Args:
        samples: values of x, such as a layer's activations, or the centres of a histogram's bins.
        weights: counts of the histogram; 1 each by default.
        floor: share of a segment's weight that is spread evenly over it, which keeps the error bounded where samples are
            rare or missing.

    The other arguments are those of `fit_minimax`.
    """
    samples = np.asarray(samples, np.float64).reshape(-1)
    weights = np.ones_like(samples) if weights is None else np.asarray(weights, np.float64).reshape(-1)

    def fit_segment(low: float, high: float, form: Form) -> tuple[float, ...]:
        here = (samples >= low) & (samples <= high)
        even = np.linspace(low, high, _POINTS)
        mass = weights[here].sum()
        spread = np.full(_POINTS, (floor * mass / (1 - floor) if mass else 1.0) / _POINTS)
        x = np.concatenate([samples[here], even])
        return _fit(form, x, function(x), np.concatenate([weights[here], spread]), _least_squares, fraction_bits)

    if not 0 < floor < 1:
        raise CipherDMError(f"{name}: floor must lie between 0 and 1, got {floor}.")
    return _fit_segments(fit_segment, breakpoints, degrees, name, outside)


def _fit_segments(fit_segment, breakpoints, degrees, name, outside) -> PiecewisePolynomial:
    ends = tuple(float(point) for point in breakpoints)
    if len(ends) != len(degrees) + 1 or list(ends) != sorted(set(ends)):
        raise CipherDMError(f"{name}: {len(degrees)} segments need {len(degrees) + 1} ascending ends, got {ends}.")
    forms = [item if isinstance(item, Form) else Form(tuple(range(item + 1))) for item in degrees]
    inner = tuple(fit_segment(*bounds) for bounds in zip(ends, ends[1:], forms, strict=False))
    if outside is None:
        return PiecewisePolynomial(name, (ends[0], ends[-1]), ends[1:-1], inner)
    return PiecewisePolynomial(name, (-np.inf, np.inf), ends, (outside[0], *inner, outside[1]))


def _fit(form, x, y, weights, solve, fraction_bits) -> tuple[float, ...]:
    """Return the coefficients, low to high, of the best polynomial of this form in the sense of `solve`."""
    given, free = dict(form.given), sorted(form.powers)
    size = np.abs(x).max()  # powers of x / size are of one magnitude, which the solvers need
    while free:
        rest = y - sum(value * x**power for power, value in given.items())
        basis = np.stack([(x / size) ** power for power in free], axis=1)
        best = solve(basis, rest, weights) / size ** np.array(free)
        if fraction_bits is None:
            given |= dict(zip(free, best, strict=True))
            break
        given[free.pop()] = np.round(best[-1] * 2.0**fraction_bits) / 2.0**fraction_bits
    return tuple(float(given.get(power, 0.0)) for power in range(max(given) + 1))


def _minimax(basis, target, weights) -> np.ndarray:
    """Return the combination of columns with the smallest largest weighted error e: -e <= weights (basis c - target) <= e."""
    rows, bound = basis * weights[:, None], np.ones((len(basis), 1))
    goal = target * weights
    result = linprog(
        np.append(np.zeros(basis.shape[1]), 1),
        A_ub=np.block([[rows, -bound], [-rows, -bound]]),
        b_ub=np.concatenate([goal, -goal]),
        bounds=[(None, None)] * basis.shape[1] + [(0, None)],
        method="highs",
    )
    return result.x[:-1]


def _least_squares(basis, target, weights) -> np.ndarray:
    root = np.sqrt(weights)
    return np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)[0]
