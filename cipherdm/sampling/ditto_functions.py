"""Functions of Ditto's steps: those of `Fixed` numbers, which parties walk in 32 bits, and those of arrays, which are SPU's.

Each takes its parameters by name first. `ditto` puts them in order, with conversions between the rings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..approximations.exp import LOWEST, ExpLimit
from ..approximations.softmax import PADDING
from ..models import dit
from ..models.blocks import layer
from ..protocols import direct, fast
from ..protocols.fixed import Fixed, broadcast_to, constant, dot_general, padded, placed

_EXPONENTIAL = ExpLimit("exp_ditto", (LOWEST, 0.0), squarings=5)


@dataclass(frozen=True)
class Walked:
    """A function of `Fixed` numbers as one of arrays, in the ring of 32 bits: first its parameters, then its inputs."""

    function: Callable
    names: tuple[str, ...]  # of the parameters
    bits: tuple[int, ...]  # fraction bits of all arguments
    ring: bool
    result_bits: int
    static: tuple[tuple[str, Any], ...] = ()

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *arrays):
        values = [Fixed.load(array, bits, self.ring) for array, bits in zip(arrays, self.bits, strict=True)]
        params = dict(zip(self.names, values, strict=False))
        found = self.function(params, *values[len(params) :], **dict(self.static))
        found = found if isinstance(found, tuple) else (found,)
        results = tuple(x.truncated(self.result_bits).store() for x in found)
        return results if len(results) > 1 else results[0]


@dataclass(frozen=True)
class Plain:
    """A function of arrays as SPU computes it: first its parameters, then its inputs."""

    function: Callable
    names: tuple[str, ...]
    static: tuple[tuple[str, Any], ...] = ()

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *arrays):
        params = dict(zip(self.names, arrays, strict=False))
        return self.function(params, *arrays[len(params) :], **dict(self.static))


def up(params, x):
    """Return numbers of the ring of 32 bits for that of 64."""
    return x.renewed()


def down(params, x):
    """Return numbers of the ring of 64 bits, whose 10 last bits a truncation cuts off."""
    return x


def below_maximum(params, scores, *mask):
    """Return scores [B, heads, N, M] below their row's maximum, and no lower than -14; with a mask [B, M] as in `direct`."""
    scores = scores + mask[0][:, None, None] if mask else scores
    return jnp.maximum(scores - jnp.max(scores, axis=-1, keepdims=True), jnp.float32(LOWEST))


def softmax(params, scores):
    """Return (1 + s/32)^32 of scores at most 0, over the sum of their row."""
    exponentials = _EXPONENTIAL(scores)
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


def scores(params, y, *, heads, only):
    """Return scores [B, heads, N or 1, M] and values [B, heads, d, M] of normalised tokens y [B, D, N]."""
    layers = {"to_q": _only(y, only), "to_k": y, "to_v": y}
    q, k, v = (_projected(params, name, x) for name, x in layers.items())
    q, k, v = (x.reshape(x.shape[0], heads, -1, x.shape[2]) for x in (q, k, v))
    return dot_general(q, k, (((2,), (2,)), ((0, 1), (0, 1)))), v


def causal_scores(params, y, *, heads, only, places):
    """Return scores [B, heads, N or 1, places] of tokens to themselves and those before, and keys and values [B, D, places].

    What comes later has the first token's score less 32, and so no weight.
    """
    k, v = (padded(_projected(params, name, y), places - y.shape[2]) for name in ("to_k", "to_v"))
    kept = np.tril(np.ones((y.shape[2], places), np.float32))
    kept = constant(kept if only is None else kept[only : only + 1], 0, y)
    return _kept_scores(_projected(params, "to_q", _only(y, only)), k, kept, heads), k, v


def cached_scores(params, y, k, v, slot, kept, *, heads):
    """Return the same for one token, whose keys and values are put at its place; slot and kept are those of `place_of`."""
    k, v = (placed(x, _projected(params, name, y), slot) for x, name in ((k, "to_k"), (v, "to_v")))
    return _kept_scores(_projected(params, "to_q", y), k, kept, heads), k, v


def _projected(params, name, y):
    return fast.linear(layer(params, name), y).truncated(y.bits)


def _kept_scores(q, k, kept, heads):
    q, k = (x.reshape(x.shape[0], heads, -1, x.shape[2]) for x in (q, k))
    found = dot_general(q, k, (((2,), (2,)), ((0, 1), (0, 1))))
    kept, first = broadcast_to(kept[None, None], found.shape), broadcast_to(found[..., :1], found.shape)
    away = kept - constant(np.ones(found.shape), 0, q)  # 0, or -1
    return (found - first) * kept + first + away.times_power_of_two(int(np.log2(-PADDING)))


def mixed(params, weights, v, rest, *gate, only):
    """Add to tokens [B, D, N] the values that the weights [B, heads, N, M] choose, through the last projection, and a gate."""
    rest = _only(rest, only)
    v = v.reshape(*weights.shape[:2], -1, v.shape[-1])
    y = dot_general(v, weights, (((3,), (3,)), ((0, 1), (0, 1)))).truncated(rest.bits)
    return rest + _gated(fast.linear(layer(params, "to_out.0"), y.reshape(*rest.shape)), gate)


def feed_forward(params, y, rest, *gate):
    """Add to tokens [B, D, N] a feed-forward network with MPCFormer's quadratic, times a gate [b, D] if there is one."""
    z = fast.linear(layer(params, "net.0.proj"), y).truncated(y.bits)
    return rest + _gated(fast.linear(layer(params, "net.2"), _quad(z).truncated(y.bits)), gate)


def modulated_norm(params, x, shift, scale, *, eps):
    """Normalise x [B, D, N] over its channels, times 1 + scale plus shift, both [b, D]."""
    return direct.modulated(direct.layer_norm(params, x, eps=eps), shift, scale)


def patches_out(params, y, *, patch, channels):
    """Return the predicted noise [B, C, H, W] of normalised tokens [B, D, N]."""
    return dit.pixels(fast.linear(layer(params, "proj_out_2"), y).truncated(y.bits), patch, channels)


def pooler(params, y):
    """Return BERT's pooler of the first token [B, D, 1], before its activation."""
    return fast.linear(layer(params, "pooler"), y)


def tanh(params, x):
    """Return tanh."""
    return jnp.tanh(x)


def language(params, y):
    """Return logits [B, V] of the last token [B, D, 1]."""
    return fast.linear(layer(params, "lm_head"), y)[:, :, 0]


def classifier(params, x):
    """Return logits [B, labels] of what the pooler returns [B, D, 1]."""
    return fast.linear(layer(params, "classifier"), x)[:, :, 0]


def _only(x, place):
    """The token at a place, or all of them if it is None."""
    return x if place is None else x[:, :, place : place + 1]


def _gated(y, gate):
    """Return y [B, D, N] times a gate [b, D], if there is one."""
    return y.truncated(gate[0].bits) * gate[0][:, :, None] if gate else y


def _quad(z):
    """Return z^2 / 8 + z / 4 + 1 / 2, as z (z + 2) / 8 + 1 / 2."""
    both = z * z + (z + z).raised(2 * z.bits)
    both = both.times_power_of_two(-3)
    half = jnp.asarray(2.0 ** (both.bits if both.ring else 0) / 2, both.array.dtype)
    return both.with_array(both.array + half)
