"""Attention for some queries at a time, so that memory is bounded by their scores, and not by those of all.

With 64 x 64 latents 4096 tokens attend to each other under 8 heads: 134 million scores, which are 2 GiB of shares at each
party, and several such arrays are alive at once. A row of the softmax belongs to one query and to no other, so that queries
can be divided without changing anything.
"""

from collections.abc import Callable

import jax.numpy as jnp

from ..linear.operation import after
from .fixed import Fixed, concatenate

SCORES = 1 << 24  # at a time: 256 MiB of shares in a party's memory


def in_chunks(attend: Callable, q, tokens: int, scores: int = SCORES):
    """attend(q) for queries q [B, heads, d, N], [B, heads, d, N], computed for one part of the queries after the other.

    Args:
        attend: a function of queries [B, heads, d, n], each of which it treats by itself.
        q: an array, or `Fixed` numbers.
        tokens: what each query attends to.
        scores: the most scores B heads n tokens of a part, if one query has no more.
    """
    batch, heads, _, queries = q.shape
    parts = -(-queries // max(1, scores // (batch * heads * tokens)))
    step = -(-queries // parts)
    results = []
    for first in range(0, queries, step):
        chunk = q[:, :, :, first : first + step]
        results.append(attend(_after(chunk, results[-1]) if results else chunk))
    return concatenate(results, 3) if len(results) > 1 else results[0]


def _after(chunk, result):
    """The chunk, once the result is there: nothing of it is computed before."""
    if isinstance(chunk, Fixed):
        return chunk.with_array(after(chunk.array, result.array))
    return after(jnp.asarray(chunk), result)
