"""Layers as FAST computes them: on `Fixed` numbers, with few messages, no comparisons and no division.

What the model owner adds to a layer's parameters is made by `cipherdm.models.fast_weights` from what calibration measured;
every value is secret-shared like a weight. Messages are counted over all parties: a product is 3, a truncation 5, additions
of shares and everything linear with public factors none. The bits are chosen so that a product of three or four values at
VALUE_BITS and a weight still fits into the ring.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..errors import CipherDMError
from .chunks import SCORES, in_chunks
from .fixed import (
    Fixed,
    broadcast_to,
    concatenate,
    dot_general,
    dot_general_together,
    in_order,
    matmul,
    means,
    public_like,
    row_sums,
    sums_of_squares,
    swapaxes,
)
from .patches import patches

VALUE_BITS = 10  # fraction bits of values between blocks, and of what a product starts from
WEIGHT_BITS = 12  # of weights
GAIN_BITS = 42  # of a normalisation's gain, before it is multiplied with a value
SLOPE_BITS = GAIN_BITS - 2 * VALUE_BITS  # of its slope, which is multiplied with squares of values
POWER_BITS = 12  # of what is squared repeatedly, in activations of degree 8 and in attention's exponential
SHARE_BITS = 16  # of unnormalised attention weights and their sums
FEATURE_BITS = 14  # of what features of queries and keys are products of
SUM_BITS = 8  # of sums of features over the tokens
SUMMED_TOKENS = 256  # whose sums have them; those of more tokens are divided by a power of two
MIXED_BITS = 13  # of mixed values and their sums, before the division
INVERSE_BITS = 14  # of the sums' inverses, where they are truncated
CONSTANT_BITS = (2 * POWER_BITS, POWER_BITS, 2 * POWER_BITS, 3 * POWER_BITS)  # of Knuth's a to d, as their sums have
_PRODUCT_BITS = 54  # the most that a product may have


def conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """As `direct.conv2d`, as one matrix product. 3 messages."""
    weight = params["weight"]
    x = room_for(x, weight)
    y = (_convolution_by_patches if x.ring else _convolution)(weight, x, stride, padding)
    return y + params["bias"][None, :, None, None] if "bias" in params else y


def _convolution_by_patches(weight, x, stride, padding):
    """One matrix product: SPU would take out the pixels of each result one by one."""
    outputs, _, size, _ = weight.shape
    zero = public_like(x.reshape(-1)[:1], 0).array.reshape(())
    shifted = patches(x.array, size, stride, padding, zero)
    *_, batch, rows, columns = shifted.shape
    y = matmul(weight.reshape(outputs, -1), x.with_array(shifted.reshape(-1, batch * rows * columns)))
    return _batch_first(y.reshape(outputs, batch, rows, columns))


def _batch_first(y):
    """[O, B, ...] to [B, O, ...]."""
    outputs, batch, *rest = y.shape
    return y.reshape(1, outputs, *rest) if batch == 1 else in_order(swapaxes(y, 0, 1))


def _convolution(weight, x, stride, padding):
    """The same in plaintext, where gathering patches takes longer than the products."""
    y = lax.conv_general_dilated(x.array, weight.array, (stride, stride), padding)
    return Fixed(y, weight.bits + x.bits, ring=False)


def linear(params, x, *, matmul=matmul):
    """As `direct.linear`, with the batch beside the tokens, so that there is one matrix product. 3 messages."""
    x = room_for(x, params["weight"])
    columns = jnp.moveaxis(x.array, 1, 0)  # [C, B] or [C, B, N]
    y = matmul(params["weight"], x.with_array(columns.reshape(columns.shape[0], -1)))
    y = y + params["bias"][:, None] if "bias" in params else y
    return _batch_first(y.reshape(-1, *columns.shape[1:]))


def guarded_group_norm(params, x, *, groups, eps):
    """group_norm, with what it gives limited to the range that calibration met, `low` to `high` [C]. 64 messages more.

    Two comparisons for each value. No input makes an activation leave the range that its polynomial is right on. The sums
    over attention's tokens are not limited.
    """
    y = group_norm(params, x, groups=groups, eps=eps)
    low, high = (params[name].reshape(1, -1, *[1] * (y.ndim - 2)).raised(y.bits).array for name in ("low", "high"))
    return y.with_array(jnp.minimum(jnp.maximum(y.array, low), high))


def projections(layers, x, *, protocols):
    """Several linear layers on the same x [B, C, N] as one matrix product, truncated together. 8 messages.

    What else their parameters hold for `protocols.linear` is that of the first layer, and has to be the same for all.
    """
    stacked = layers[0] | {"weight": concatenate([layer["weight"] for layer in layers])}
    if "bias" in layers[0]:
        stacked["bias"] = concatenate([layer["bias"] for layer in layers])
    y = protocols.linear(stacked, x).truncated(VALUE_BITS)
    width = y.shape[1] // len(layers)
    return tuple(y[:, index * width : (index + 1) * width] for index in range(len(layers)))


def group_norm(params, x, *, groups, eps):
    """x [B, C, ...] to gain (x - mean) + shift, with a gain that is affine in the sum of squares. 9 messages.

    1/sqrt(variance) is replaced by a line fitted to the variances that calibration met at this step for this class, so
    that the inverse square root costs one product of vectors: gain = gain0 + slopes[0] (sum of squares). `gain0` [b, C] and
    `slopes` [b, 2, C] hold the normalisation's weight, and `shift` [C] its bias. Squares are taken about `center` [b, groups],
    the mean that calibration met (zero if it is missing: it was subtracted before), and what is left of the mean is
    subtracted with a fixed gain, as slopes[1] (sum). b is B, or 1 for models without classes. `eps` is in the fit. The
    result is not truncated.
    """
    x = x.truncated(VALUE_BITS)
    batch, channels = x.shape[:2]
    rows = x.reshape(batch * groups, -1)
    if "center" in params:
        rows = rows - broadcast_to(params["center"], (batch, groups)).reshape(-1, 1)
    squares = sums_of_squares(rows)
    both = concatenate([squares[None], row_sums(rows, squares.bits)[None]])  # [2, B groups]
    slopes = params["slopes"].with_array(jnp.swapaxes(params["slopes"].array, 0, 1))  # [2, b, C]
    changes = broadcast_to(slopes, (2, batch, channels)) * _by_channel(both, batch, channels)
    gain, shift = params["gain0"] + changes[0], params["shift"][None] + changes[1]
    y = gain[:, :, None] * rows.reshape(batch, channels, -1) + shift[:, :, None]
    return y.reshape(*x.shape)


def norm_activation(params, x, *, groups, eps, act_fn, modulation=None, protocols):
    """group_norm, then the activation as a polynomial of degree 8 fitted to what each channel carries at this step.

    z = s x, the scale s being in the gain and the shift, and constants a to d [C] for Knuth's form of a quartic (`knuth`; d
    with its sign changed): additions are free. The result is an odd polynomial minus the quartic in z^2: for SiLU x/2, which
    is `linear` times z, 9 + 19 messages; for Mish `third` z^3 + `linear` z, in as many messages with more bytes.
    "quad" is exact, as the square of (x + 1)/2, whose scale and shift are folded: 9 + 8 messages.
    `act_fn` and `eps` are in the fits, and `modulation` (scale and shift by time) is not supported: the preparation
    refuses such models. The result is not truncated.
    """
    z = protocols.group_norm(params, x, groups=groups, eps=eps).truncated(POWER_BITS)
    if act_fn == "quad":
        square = z * z
        return square.with_array(square.array - jnp.asarray(2.0 ** (square.bits if z.ring else 0) / 4, z.array.dtype))
    a, b, c, d, linear = (params[name][None, :, None, None] for name in ("a", "b", "c", "d", "linear"))
    if params["cubic"]:
        u = z * z
        products = _both(u + a, params["third"][None, :, None, None]) * _both(u, u)
        w, odd = _halves(products.truncated(POWER_BITS))
        quartic, odd = _halves(_both(w + u + c, z) * _both(w + b, odd + linear))
        return odd + d - quartic
    return line_minus_quartic(z, a, b, c, d, linear)


def line_minus_quartic(z, a, b, c, d, linear):
    """linear z minus a quartic in z^2 in Knuth's form, for z at POWER_BITS; the result has three times as many. 14 messages."""
    # Two products in one call, the second one at the bits that its sum with the quartic has.
    u, half = _halves(_both(z, linear.times_power_of_two(POWER_BITS)) * _both(z, z))
    w = ((u + a) * u).truncated(POWER_BITS)
    return half.times_power_of_two(-POWER_BITS) + d - (w + u + c) * (w + b)


def _both(first, second):
    """Two numbers as one, for one call: the second may have fewer extents, which broadcast."""
    return concatenate([first, broadcast_to(second, first.shape)])


def _halves(x):
    """What `_both` put together."""
    middle = x.shape[0] // 2
    return x[:middle], x[middle:]


def attention(params, q, k, v, *, scale, softmax, dot_general=dot_general, chunk_scores=SCORES):
    """Attention with exp(s) as ((t s + h)^2 + c)^(2^squarings), t > 0: no maximum over a row, no clip, no comparison.

    The query's projection, one for each step, holds `scale` and t, times 2^squarings, by which the point of the scores is
    moved; h and c beside it are fitted to the scores of this step. The key's bias was moved so that scores are about zero on
    average over a row, which softmax does not see. The sums of the rows are inverted by a polynomial (`_inverse`). The result
    is not truncated.

    Or, if the parameters have "to_q.centred", the mean key is subtracted, so that scores are zero on average over
    each row, whatever the prompt is; 5 messages more.

    Or, if they have "to_q.floor", scores are taken below their row's maximum, and no lower than that: right for any scores,
    at the price of comparisons: 32 messages for each halving of a row until one score is left, and 32 more.

    Where there are more than `chunk_scores` scores, queries are divided (`chunks`), and messages are for each part.
    """
    if params.get("to_q.centred"):
        k = k - broadcast_to(means(k, 3)[..., None], k.shape)
    if params["to_q.squarings"] == 0 and _features_pay(q, k):
        return _attention_by_features(params, q, k, v, dot_general)
    return in_chunks(partial(_attend, params, k, v, dot_general), q, k.shape[3], chunk_scores)


def _attend(params, k, v, dot_general, q):
    """The same for some of the queries, with a number for each pair of query and token."""
    heads = ((0, 1), (0, 1))
    scores = dot_general_together(dot_general, q, k, (((2,), (2,)), heads)).times_power_of_two(
        -params["to_q.squarings"]
    )
    if "to_q.floor" in params:
        scores = _below_maximum(scores, params["to_q.floor"])
    scores = scores + params["to_q.h"]
    powers = scores * scores + params["to_q.c"]
    for _ in range(params["to_q.squarings"]):
        powers = powers if powers.bits <= 2 * POWER_BITS else powers.truncated(POWER_BITS)
        powers = powers * powers
    powers = powers.truncated(SHARE_BITS)
    weighted = dot_general_together(dot_general, v, powers, (((3,), (3,)), heads))  # [B, heads, d, N]
    return weighted * _inverse(params, row_sums(powers))[:, :, None, :]


def _below_maximum(scores, floor):
    """Scores [..., M] less the largest of their row, and no lower than the floor, a number at their fraction bits."""
    largest = scores
    while (count := largest.shape[-1]) > 1:  # halves against halves; an odd one out waits
        half = count // 2
        larger = jnp.maximum(largest.array[..., :half], largest.array[..., half : 2 * half])
        largest = largest.with_array(jnp.concatenate([larger, largest.array[..., 2 * half :]], axis=-1))
    below = scores - broadcast_to(largest, scores.shape)
    return below.with_array(jnp.maximum(below.array, broadcast_to(floor, scores.shape).raised(scores.bits).array))


def _attention_by_features(params, q, k, v, dot_general):
    """The same for squarings = 0, without a number for each pair of tokens.

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
    summed = concatenate([summed, row_sums(of_key)[:, :, None, :]], 2)
    totals = row_sums(v)
    last = concatenate([totals, public_like(totals[:, :, :1], tokens)], 2)[:, :, :, None]
    # Where tokens are many, their sums at SUM_BITS would not fit (the last one is the number of tokens): the point is moved.
    shift = max(0, token_shift(tokens) - token_shift(SUMMED_TOKENS))
    table = concatenate([summed, last], 3).times_power_of_two(-shift).truncated(SUM_BITS)
    mixed = dot_general(table, concatenate(of_query, 2), (((3,), (2,)), heads))
    mixed = mixed.truncated(MIXED_BITS + shift).times_power_of_two(shift)
    return mixed[:, :, :size] * _inverse(params, mixed[:, :, size])[:, :, None, :]


def linear_attention(params, q, k, v, *, scale, dot_general=dot_general):
    """As `linear_attention` in the module of that name, times M / 2^ceil(log2 M) for M tokens. 11 messages.

    The owner folds `scale` into the query's projection and the remaining factor into the projection of the result,
    which is not truncated here.
    """
    heads = ((0, 1), (0, 1))
    shift = token_shift(k.shape[3])
    summed = dot_general(v, k, (((3,), (3,)), heads)).times_power_of_two(-shift).truncated(POWER_BITS)
    total = row_sums(v).times_power_of_two(-shift)
    return dot_general(summed, q, (((3,), (2,)), heads)) + total[..., None]


def token_shift(tokens: int) -> int:
    """The exponent of the power of two that sums over so many tokens are divided by."""
    return (tokens - 1).bit_length()


def _features_pay(q, k) -> bool:
    """Whether features of the tokens are fewer than pairs of tokens, in attention of tokens to each other."""
    size = q.shape[2]
    return q.shape[3] == k.shape[3] and size * (size + 1) < q.shape[3] // 2


def _inverse(params, sums):
    """1 / sums for sums [B, heads, N]: (sums + r0)^2 + r1, and Newton's iteration if that is not near enough. 3 messages.

    A quadratic needs no further factor, because scaling exponentials, which softmax does not see, makes it monic.
    """
    root = sums + params["to_q.r0"]
    inverse = root * root + params["to_q.r1"]
    for _ in range(params["to_q.newton"]):
        inverse = inverse.truncated(INVERSE_BITS)
        inverse = inverse.times_power_of_two(1) - inverse * (inverse * sums)
    return inverse if inverse.bits <= 2 * MIXED_BITS else inverse.truncated(INVERSE_BITS)


def unsupported(*args, **kwargs):
    """Stands for a function that FAST has only within a layer. Raises CipherDMError."""
    raise CipherDMError(
        "FAST computes this function only within a layer that uses it; choose another set of protocols."
    )


def _by_channel(x, batch, channels):
    """Values for each group, [K, B groups], repeated for the group's channels: [K, B, C]."""
    count, groups = x.shape[0], x.shape[1] // batch
    repeated = broadcast_to(x.reshape(count, batch, groups, 1), (count, batch, groups, channels // groups))
    return repeated.reshape(count, batch, channels)


def room_for(x, weight):
    """x, truncated if a product with the weight would not fit."""
    return x if x.bits + weight.bits <= _PRODUCT_BITS else x.truncated(VALUE_BITS)
