"""Attention as FAST computes it: an exponential by squarings, or features of queries and keys; no comparison, no division.

Where scores are many, it is computed for some queries at a time, so memory is bounded by their scores (`by_query_chunks`).
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np

from ..approximations.softmax import PADDING
from .fast import POWER_BITS, VALUE_BITS
from .fixed import broadcast_to, concatenate, constant, dot_general, dot_general_together, means, public_like, sums

SCORES = 1 << 24  # at a time: 256 MiB of shares in a party's memory

# Fraction bits of unnormalised attention weights: right below 4. A value's 10, these and the inverse's 14 are 40, so the
# result is multiplied by the next layer's weights, at 12, without a truncation.
SHARE_BITS = 16  # unless larger ones were met
MASKED_BITS = 12  # of attention weights whose mean is 1, as they are where tokens are masked: right below 64
COUNT_BITS = 14  # of 1 over a number of tokens, times a power of two
TOKEN_BITS = 14  # of tokens' weights, and of values times them
RESULT_BITS = (
    40  # the most of attention's result: times a weight it has 52, of which a truncation to VALUE_BITS takes 42
)
FEATURE_BITS = 14  # of queries, keys and h, whose products are features; times a value they have 38, and are truncated
SUM_BITS = 8  # of sums of features over the tokens, which are large: below 1024
SUMMED_TOKENS = 256  # the most tokens whose sums have SUM_BITS; those of more are divided by a power of two
MIXED_BITS = 13  # of mixed values and their sums, before the division: below 32
INVERSE_BITS = 14  # of the sums' inverses, where they are truncated: below 16


def by_query_chunks(attend: Callable, q, tokens: int, scores: int = SCORES):
    """Return attend(q), [B, heads, d, N], computed for parts of the queries q [B, heads, d, N]; which SPU does in turn.

    With 64 x 64 latents 4096 tokens attend to each other under 8 heads: 134 million scores, which are 2 GiB of shares at
    each party, and several such arrays are alive at once. A row of the softmax belongs to one query and to no other, so
    queries can be divided without changing anything.

    Args:
        attend: function of queries [B, heads, d, n], each of which it treats by itself.
        q: an array, or `Fixed` numbers.
        tokens: number of tokens that each query attends to.
        scores: limit of the scores B heads n tokens of a part, unless a single query has more.
    """
    batch, heads, _, queries = q.shape
    parts = -(-queries // max(1, scores // (batch * heads * tokens)))
    step = -(-queries // parts)
    results = []
    for first in range(0, queries, step):
        results.append(attend(q[:, :, :, first : first + step]))
    return concatenate(results, 3) if len(results) > 1 else results[0]


def attention(params, q, k, v, *, scale, softmax, mask=None, among=None, chunk_scores=SCORES):
    """Return attention with exp(s) as ((t s + h)^2 + c)^(2^squarings), t > 0: no maximum over a row, no clip, no comparison.

    The query's projection, one for each step, holds `scale` and t, times 2^squarings, by which the point of the scores is
    moved; h and c beside it are fitted to the scores of this step. The key's bias was moved so that scores are about zero
    on average over a row, which softmax does not see. The sums of the rows are inverted by a polynomial (`_inverse`). The
    result is not truncated.

    - With "to_q.centred" in the parameters, the mean key is subtracted, so that scores are zero on average over each row,
      whatever the prompt is; 5 messages more.
    - With "to_q.floor", scores are taken below their row's maximum, and no lower than the floor. That is right for any
      scores, at the price of comparisons: 32 messages for each halving of a row until one score is left, and 32 more.

    With a `mask` [B, 2, M], weights of the tokens that sum to 1, and 0 and PADDING, as `token_weights` makes them, each
    exponential is multiplied by its token's weight, which is the same softmax; 16 messages more. So sums are means.

    With `among`, public arrays as `direct.attention` takes them, each query attends to the tokens that it may, scores are about
    their mean over these, and sums are means too. Queries are not divided then.

    Where there are more than `chunk_scores` scores, queries are divided (`by_query_chunks`), and messages are per part.
    """
    if among is not None:
        return _attend_among(params, k, v, among, q)
    weights = None if mask is None else mask[:, 0]
    if params.get("to_q.centred"):
        mean = means(k, 3) if mask is None else _weighted(k, weights).truncated(VALUE_BITS)
        k = k - broadcast_to(mean[..., None], k.shape)
    if mask is not None:
        v = (v * broadcast_to(weights[:, None, None], v.shape)).truncated(TOKEN_BITS)
    elif params["to_q.squarings"] == 0 and _features_pay(q, k):
        return _attention_by_features(params, q, k, v)
    return by_query_chunks(partial(_attend, params, k, v, mask), q, k.shape[3], chunk_scores)


def token_weights(mask: np.ndarray) -> np.ndarray:
    """Return what `attention` takes for a mask [B, M] of ones and zeros: float32 [B, 2, M]."""
    return np.stack([mask / mask.sum(1, keepdims=True), (1 - mask) * PADDING], axis=1).astype(np.float32)


def shares_among(counts: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 / counts [N], whole numbers up to `places`, as what `attention` takes for it, float32 [N] each.

    These are a share u / count from 1 to 2, u being a power of two, and its unit 2^s / u, 2^s being at least `places`.
    """
    powers = 2.0 ** np.ceil(np.log2(counts))
    return (powers / counts).astype(np.float32), (2.0 ** token_shift(places) / powers).astype(np.float32)


def _weighted(x, weights):
    """Return sums over the last axis of x [B, heads, K, M] times weights [B, M], [B, heads, K]. 3 messages a batch."""
    batch, heads, size, tokens = x.shape
    total = dot_general(x.reshape(batch, heads * size, tokens), weights, (((2,), (1,)), ((0,), (0,))))
    return total.reshape(batch, heads, size)


def _attend(params, k, v, mask, q):
    """Return attention of some of the queries, with a number for each pair of query and token."""
    heads = ((0, 1), (0, 1))
    scores = dot_general_together(q, k, (((2,), (2,)), heads)).times_power_of_two(-params["to_q.squarings"])
    if "to_q.floor" in params:
        scores = scores if mask is None else scores + broadcast_to(mask[:, 1, None, None], scores.shape)
        scores = _below_maximum(scores, params["to_q.floor"])
    bits = params.get("to_q.bits", SHARE_BITS)
    powers = _powers(params, scores, bits if mask is None else min(bits, MASKED_BITS))
    weighted = dot_general_together(v, powers, (((3,), (3,)), heads))  # [B, heads, d, N]
    if mask is None:
        inverse = _inverse(params, sums(powers, -1))
    else:
        inverse = _inverse(params, _weighted(powers, mask[:, 0]).truncated(MIXED_BITS)).truncated(INVERSE_BITS)
    return weighted * inverse[:, :, None, :]


def _attend_among(params, k, v, among, q):
    """Return attention where each query has its own tokens to attend to, all of it public. Without "to_q.floor"."""
    heads = ((0, 1), (0, 1))
    kept, share, unit = constant(among[0], 0, q), constant(among[1], COUNT_BITS, q), constant(among[2], 0, q)
    unit = unit.times_power_of_two(-token_shift(k.shape[3]))
    scores = dot_general_together(q, k, (((2,), (2,)), heads))
    kept = broadcast_to(kept[None, None], scores.shape)
    share, unit = (broadcast_to(each[None, None], scores.shape[:3]) for each in (share, unit))
    mean = (sums(scores * kept, -1) * share * unit).truncated(VALUE_BITS)
    # Scores that do not count are 0, and not as large as they come.
    scores = (scores - broadcast_to(mean[..., None], scores.shape)) * kept
    scores = scores.times_power_of_two(-params["to_q.squarings"])
    powers = _powers(params, scores, MASKED_BITS) * kept
    weighted = dot_general_together(v, powers, (((3,), (3,)), heads))
    inverse = _inverse(params, (sums(powers, -1) * share * unit).truncated(MIXED_BITS))
    # Of many tokens the share of each is small. What makes it so is a power of two, which costs no precision.
    result = weighted * unit[:, :, None, :] * (inverse * share).truncated(INVERSE_BITS)[:, :, None, :]
    return result if result.bits <= RESULT_BITS else result.truncated(VALUE_BITS)


def _powers(params, scores, bits):
    """Return exponentials of scores at so many bits."""
    scores = scores + params["to_q.h"]
    powers = scores * scores + params["to_q.c"]
    for _ in range(params["to_q.squarings"]):
        powers = powers if powers.bits <= 2 * POWER_BITS else powers.truncated(POWER_BITS)
        powers = powers * powers
    return powers.truncated(bits)


def _below_maximum(scores, floor):
    """Return scores [..., M] less the largest of their row, and no lower than the floor, a number."""
    largest = scores
    while (count := largest.shape[-1]) > 1:  # halves against halves; an odd one out waits
        half = count // 2
        larger = jnp.maximum(largest.array[..., :half], largest.array[..., half : 2 * half])
        largest = largest.with_array(jnp.concatenate([larger, largest.array[..., 2 * half :]], axis=-1))
    below = scores - broadcast_to(largest, scores.shape)
    return below.with_array(jnp.maximum(below.array, broadcast_to(floor, scores.shape).raised(scores.bits).array))


def _attention_by_features(params, q, k, v):
    """Return attention for squarings = 0, without a number for each pair of tokens.

    (q k + h)^2 + c is the scalar product of features: of a query products of two entries of (q, h), of a key products of two
    entries of (k, 1). So keys and values are multiplied first and summed over the tokens.
    """
    *_, size, tokens = v.shape
    heads = ((0, 1), (0, 1))
    q, k = q.raised(FEATURE_BITS), k.raised(FEATURE_BITS)
    extended = concatenate([q, broadcast_to(params["to_q.h"], (*q.shape[:2], 1, tokens))], 2)
    pairs = [(q[:, :, a : a + 1], extended[:, :, a:]) for a in range(size)]
    pairs += [(k[:, :, a : a + 1], k[:, :, a:]) for a in range(size)]
    repeated = [broadcast_to(one, many.shape) for one, many in pairs]
    products = concatenate(repeated, 2) * concatenate([many for _, many in pairs], 2)
    ends = np.cumsum([many.shape[2] for _, many in pairs])
    blocks = [products[:, :, end - many.shape[2] : end] for end, (_, many) in zip(ends, pairs, strict=True)]

    of_query, of_key = [], []
    for a in range(size):
        square, mixed = blocks[a][:, :, :1], blocks[a][:, :, 1:]
        of_query += [square, mixed + mixed]  # a product of two different entries occurs twice
        of_key += [blocks[size + a], k[:, :, a : a + 1]]
    of_query.append(broadcast_to(params["to_q.constant"], (*q.shape[:2], 1, tokens)))
    of_key = concatenate(of_key, 2)

    summed = dot_general(v, of_key, (((3,), (3,)), heads))  # [B, heads, d, features]
    summed = concatenate([summed, sums(of_key, -1)[:, :, None, :]], 2)
    totals = sums(v, -1)
    last = concatenate([totals, public_like(totals[:, :, :1], tokens)], 2)[:, :, :, None]
    # Where tokens are many, their sums at SUM_BITS would not fit (the last one is the number of tokens): the point is moved.
    shift = max(0, token_shift(tokens) - token_shift(SUMMED_TOKENS))
    table = concatenate([summed, last], 3).times_power_of_two(-shift).truncated(SUM_BITS)
    mixed = dot_general(table, concatenate(of_query, 2), (((3,), (2,)), heads))
    mixed = mixed.truncated(MIXED_BITS + shift).times_power_of_two(shift)
    return mixed[:, :, :size] * _inverse(params, mixed[:, :, size])[:, :, None, :]


def linear_attention(params, q, k, v, *, scale):
    """Return `direct.linear_attention` times M / 2^ceil(log2 M) for M tokens. 11 messages.

    The owner folds `scale` into the query's projection and the remaining factor into the projection of the result,
    which is not truncated here.
    """
    # A power of two moves the point, where 1/M would add fraction bits that a truncation has to take.
    heads = ((0, 1), (0, 1))
    shift = token_shift(k.shape[3])
    summed = dot_general(v, k, (((3,), (3,)), heads)).times_power_of_two(-shift).truncated(POWER_BITS)
    total = sums(v, -1).times_power_of_two(-shift)
    return dot_general(summed, q, (((3,), (2,)), heads)) + total[..., None]


def token_shift(tokens: int) -> int:
    """Return the exponent of the power of two that sums over so many tokens are divided by."""
    return (tokens - 1).bit_length()


def _features_pay(q, k) -> bool:
    """Return whether features of the tokens are fewer than pairs of tokens, in attention of tokens to each other."""
    size = q.shape[2]
    return q.shape[3] == k.shape[3] and size * (size + 1) < q.shape[3] // 2


def _inverse(params, sums):
    """Return 1 / sums for sums [B, heads, N]: (sums + r0)^2 + r1, then Newton's iteration where it is needed. 3 messages.

    A quadratic needs no further factor, because scaling exponentials, which softmax does not see, makes it monic.
    """
    root = sums + params["to_q.r0"]
    inverse = root * root + params["to_q.r1"]
    for _ in range(params["to_q.newton"]):
        inverse = inverse.truncated(INVERSE_BITS)
        inverse = inverse.times_power_of_two(1) - inverse * (inverse * sums)
    return inverse if inverse.bits <= 2 * MIXED_BITS else inverse.truncated(INVERSE_BITS)
