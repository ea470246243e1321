"""The functions that `activations` measures: every approximation, on values from its domain, beside the exact function."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cipherdm import approximations as known
from cipherdm.approximations import exact
from cipherdm.approximations.exp import ExpBounded
from cipherdm.approximations.softmax import BoundedSoftmax
from cipherdm.protocols import direct
from cipherdm.protocols.direct import with_affine

ROW = 100  # scores in a softmax row
_NORM_ROWS = {"group_norm": 1000, "layer_norm": 50}  # elements that are normalised together
_VARIANCES = (0.5, 2.0)  # of rows, and the domain of their inverse root
_SCORE_SPREAD = 1.5


@dataclass(frozen=True)
class Folded:
    """An approximation without the multiplication by its scales, for owners who fold them into layers."""

    approximation: known.KnuthPolynomial | ExpBounded | BoundedSoftmax

    @property
    def __name__(self) -> str:
        return f"{self.approximation.__name__}_folded"

    def __call__(self, z):
        return self.approximation.of_scaled(z)


@dataclass(frozen=True)
class Case:
    """A function to measure."""

    kind: str  # the function that it computes or stands for
    function: Callable  # on shares
    reference: Callable  # exact, in NumPy
    low: float  # end of its values, which are spread evenly; softmax scores are normal and clipped
    high: float
    relative: bool = False  # whether the error is a share of the exact value
    direct: bool = False  # whether this is the function itself, not an approximation
    exps: tuple[str, ...] = ("taylor",)  # settings of the engine's exp to measure with

    @property
    def name(self) -> str:
        """Name of the approximation, or "direct"."""
        return "direct" if self.direct else self.function.__name__

    def values(self, size: int) -> np.ndarray:
        """Return the function's mathematical arguments, about `size` of them."""
        if self.kind == "softmax":
            scores = np.random.default_rng(0).normal(0, _SCORE_SPREAD, (-(-size // ROW), ROW))
            return np.clip(scores, self.low, self.high).astype(np.float32)
        if self.kind in _NORM_ROWS:
            width = _NORM_ROWS[self.kind]
            rows = np.random.default_rng(0).standard_normal((max(1, size // width), width))
            variances = np.geomspace(*_VARIANCES, len(rows))[:, None]
            return (exact.normalised_rows(rows) * np.sqrt(variances)).astype(np.float32)
        return np.linspace(self.low, self.high, size, dtype=np.float32)

    def inputs(self, values: np.ndarray) -> np.ndarray:
        """Return the parties' inputs for these values."""
        scale = self.function.approximation.input_scale if isinstance(self.function, Folded) else 1.0
        return (values * np.float32(scale)).astype(np.float32)

    def max_error(self, values: np.ndarray, result: np.ndarray) -> float:
        """Return the largest error of the parties' result."""
        expected = self.reference(values.astype(np.float64))
        if isinstance(self.function, Folded):
            result = result / getattr(self.function.approximation, "output_scale", 1.0)
        error = np.abs(result - expected)
        return float((error / np.abs(expected) if self.relative else error).max())


@dataclass(frozen=True)
class OnRows:
    """A normalisation of the rows of a matrix [N, width], without weight and bias; width is at most the matrix's."""

    norm: Callable
    kind: str

    @property
    def __name__(self) -> str:
        return self.norm.__name__

    def __call__(self, rows):
        if self.kind == "group_norm":
            return self.norm({}, rows, groups=1, eps=0.0)
        # Tokens are the last axis and channels the one before.
        return jnp.swapaxes(self.norm({}, jnp.swapaxes(rows, 0, 1)[None], eps=0.0)[0], 0, 1)


_BOTH = {"direct": True, "exps": ("taylor", "pade")}


def cases() -> tuple[Case, ...]:
    """Return all functions of `cipherdm.approximations`, by kind, each kind's exact function first."""
    activations = {
        "silu": (
            jax.nn.silu,
            [known.silu_cipherdm, known.silu_corrected, known.silu_llama, known.silu_bumblebee, known.quad],
            [known.silu_polynomial(6, degree) for degree in (4, 6, 8)],
        ),
        "mish": (
            jax.nn.mish,
            [known.mish_cipherdm, known.mish_corrected],
            [known.mish_polynomial(6, degree) for degree in (4, 6)],
        ),
        "gelu": (
            direct.gelu,
            [known.gelu_puma, known.gelu_quad],
            [known.gelu_polynomial(4, degree) for degree in (4, 6, 8)],
        ),
    }
    found = []
    for kind, (plain, piecewise, polynomials) in activations.items():
        reference = getattr(exact, kind)
        found.append(Case(kind, plain, reference, -10, 10, **_BOTH))
        # Quadratics are other functions; on a wider range their error would only say how fast a square grows.
        found += [
            Case(kind, f, reference, *((-4, 4) if f in (known.gelu_quad, known.quad) else (-10, 10))) for f in piecewise
        ]
        for polynomial in polynomials:
            found += [Case(kind, f, reference, *polynomial.domain) for f in (polynomial, Folded(polynomial))]
    found.append(Case("exp", jax.numpy.exp, np.exp, -14, 0, **_BOTH))
    found += [Case("exp", f, np.exp, -14, 0) for f in (known.exp_cipherdm, known.exp_corrected, known.exp_puma)]
    bounded = known.exp_bounded(4)
    found += [Case("exp", f, np.exp, -4, 4, relative=True) for f in (known.exp_limit(4), bounded, Folded(bounded))]
    found.append(Case("softmax", jax.nn.softmax, exact.softmax, -4, 4, **_BOTH))
    softmaxes = [
        known.softmax_cipherdm,
        known.softmax_corrected,
        known.softmax_puma,
        known.softmax_2quad,
        known.softmax_limit(4),
    ]
    # The rows' mean exponentials lie near exp(1.5^2 / 2), about 3.
    calibrated = known.softmax_bounded(4, reciprocal=known.Reciprocal("row_mean", (1.25, 6.0), 2))
    softmaxes += [known.softmax_bounded(4), Folded(known.softmax_bounded(4)), calibrated, Folded(calibrated)]
    found += [Case("softmax", f, exact.softmax, -4, 4) for f in softmaxes]
    for kind, plain, reference, newton in (
        ("inverse_sqrt", lax.rsqrt, exact.inverse_sqrt, known.InverseSqrt),
        ("reciprocal", jax.numpy.reciprocal, exact.reciprocal, known.Reciprocal),
    ):
        found.append(Case(kind, plain, reference, 0.5, 2, relative=True, direct=True))
        steps = [newton(f"{kind}_steps{k}", (0.5, 2.0), k) for k in (0, 1, 2)]
        found += [Case(kind, f, reference, 0.5, 2, relative=True) for f in steps]
    for kind, plain, form in (
        ("group_norm", direct.group_norm, GroupNorm),
        ("layer_norm", direct.layer_norm, LayerNorm),
    ):
        line = form(f"{kind}_line", known.InverseSqrt("line", _VARIANCES, 0))
        found.append(Case(kind, OnRows(plain, kind), exact.normalised_rows, -4, 4, direct=True))
        found.append(Case(kind, OnRows(line, kind), exact.normalised_rows, -4, 4))
    found.append(Case("clamp", known.clamp(6), lambda x: np.clip(x, -6, 6), -10, 10))
    return tuple(found)


@dataclass(frozen=True)
class _Norm:
    """What both normalisations have."""

    name: str
    inverse_sqrt: known.InverseSqrt

    @property
    def __name__(self) -> str:
        return self.name


class GroupNorm(_Norm):
    """`Protocols.group_norm` with an approximate inverse root r of variance + eps: A - B v, and Newton steps after it.

    Formula: y = (x - mean) r(variance + eps) weight + bias. Domain: variance + eps within the domain of r; outside it r is too
    small, and negative beyond A/B. Error: that of r, a factor on a whole row; for high/low = 4 at most 0.086 by the line alone,
    0.0114 after one step. Source: Wu and He 2018 (arXiv 1803.08494); the calibrated line is ours.
    """

    def __call__(self, params, x, *, groups, eps):
        rows = x.reshape(x.shape[0] * groups, -1)
        count, width = rows.shape
        centred = rows - rows @ np.full((width, 1), 1 / width, np.float32)
        # The diagonal of one matrix product is truncated once per row; squares would be truncated one by one.
        gram = lax.dot_general(centred, centred * jnp.float32(1 / width), (((1,), (1,)), ((), ())))
        variance = gram.reshape(-1)[:: count + 1]
        y = centred * self.inverse_sqrt(variance + jnp.float32(eps))[:, None]
        return with_affine(params, y.reshape(x.shape))


class LayerNorm(_Norm):
    """`Protocols.layer_norm` with an approximate inverse root, see `GroupNorm`. Source: Ba et al. 2016 (arXiv 1607.06450)."""

    def __call__(self, params, x, *, eps):
        batch, channels = x.shape[:2]
        columns = jnp.moveaxis(x.reshape(batch, channels, -1), 1, 0).reshape(channels, -1)
        mean_of = np.full((1, channels), 1 / channels, np.float32)
        centred = columns - mean_of @ columns
        variance = mean_of @ (centred * centred)
        y = centred * self.inverse_sqrt(variance + jnp.float32(eps))
        y = jnp.moveaxis(y.reshape(channels, batch, -1), 0, 1).reshape(x.shape)
        return with_affine(params, y)
