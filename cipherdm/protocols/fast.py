"""Layers as FAST computes them: few rounds, no comparisons, on weights that the model owner has calibrated and folded.

What the owner adds to a layer's parameters is made by `cipherdm.models.fast_weights`; every value is secret-shared like a
weight. Sends are counted over all parties: a product with its truncation is 8, a truncation alone 5, additions are free.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

SQUARINGS = 4  # exp(s) as a quadratic to the power 2^SQUARINGS


def conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """As `direct.conv2d`, as one matrix product: weights on the left, shifted copies of all pixels on the right. 8 sends.

    `lax.conv_general_dilated` makes SPU cut one slice for each output pixel, and padding with a public zero costs a round,
    so the border is a secret zero: a value minus itself.
    """
    weight = params["weight"]
    outputs, channels, size, _ = weight.shape
    x = jnp.swapaxes(_zero_padded(x, padding), 0, 1)  # [C, B, H, W]
    _, batch, height, width = x.shape
    rows, columns = ((extent - size) // stride + 1 for extent in (height, width))
    shifts = [
        x[:, :, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate([shift.reshape(channels, -1) for shift in shifts], axis=0)
    matrix = weight.transpose(0, 2, 3, 1).reshape(outputs, -1)
    y = (matrix @ patches + params["bias"][:, None]).reshape(outputs, batch, rows, columns)
    return jnp.swapaxes(y, 0, 1)


def linear(params, x):
    """As `direct.linear`, with the batch beside the tokens, so that there is one matrix product. 8 sends."""
    columns = jnp.moveaxis(x, 1, 0)  # [C, B] or [C, B, N]
    y = params["weight"] @ columns.reshape(columns.shape[0], -1)
    y = y + params["bias"][:, None] if "bias" in params else y
    return jnp.moveaxis(y.reshape(-1, *columns.shape[1:]), 0, 1)


def group_norm(params, x, *, groups, eps):
    """x [B, C, ...] to gain * (x - mean) + shift, with gain = gain0 - gain1 * (sum of squares), affine in it. 29 sends.

    1/sqrt(v) is replaced by a line fitted to the variances that calibration met at this step for this class, so that the
    inverse square root costs one product of vectors. gain0 and gain1 [B, C] hold the normalisation's weight and `shift` [C]
    its bias. `eps` is in the fit.
    """
    batch, channels = x.shape[:2]
    rows = x.reshape(batch * groups, -1)
    length = rows.shape[1]
    mean = jnp.full((1, length), np.float32(1 / length)) @ rows.T  # one truncation, where jnp.mean sends more
    centred = rows - mean.reshape(-1, 1)
    # The diagonal of a product truncates one number a row, where squares truncate one an element.
    sums = jnp.diagonal(centred @ centred.T).reshape(batch, groups, 1)
    sums = jnp.broadcast_to(sums, (batch, groups, channels // groups)).reshape(batch, channels)
    gain = params["gain0"] - params["gain1"] * sums
    centred = centred.reshape(batch, channels, -1)
    y = centred * gain[:, :, None] + params["shift"][None, :, None]
    return y.reshape(x.shape)


def norm_activation(params, x, *, groups, eps, act_fn, modulation=None, protocols):
    """group_norm, then the activation as a sextic fitted to what each channel carries at this step. 29 + 24 sends.

    With z = s x a monic sextic takes three products in Knuth's adapted form (`knuth`). The scale s is in the gain and the
    shift; the constants a to f [C] are added, which is free. `act_fn` and `eps` are in the fits, and `modulation` (scale and
    shift by time) is not supported: the preparation refuses such models.
    """
    z = group_norm(params, x, groups=groups, eps=eps)
    a, b, c, d, e, f = (params[name][None, :, None, None] for name in "abcdef")
    u = (z + a) * z + b
    w = (z + c) * u + d
    return (w + u + e) * w + f


def attention(params, q, k, v, *, scale, softmax):
    """Attention with exp(s) as ((t s + h)^2 + c)^(2^SQUARINGS), t > 0: no maximum over a row, no clip, no comparison.

    The query's projection, one for each step, holds `scale` and t; h and c beside it are fitted to the scores of this step. The
    key's bias was moved so that scores are about zero on average over a row, which softmax does not see.
    """
    heads = ((0, 1), (0, 1))
    scores = lax.dot_general(q, k, (((2,), (2,)), heads))
    shifted = scores + params["to_q.h"]
    powers = shifted * shifted + params["to_q.c"]
    for _ in range(SQUARINGS):
        powers = powers * powers
    weighted = lax.dot_general(v, powers, (((3,), (3,)), heads))  # [B, heads, d, N]
    # A sum over the last axis by a product with ones would be truncated; halving adds are free.
    return weighted / _row_sums(powers)[:, :, None, :]


def _row_sums(x):
    """Sum over the last axis by additions of halves; jnp.sum would send its public initial value as a share."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        rest = x[..., 2 * half :]
        x = x[..., :half] + x[..., half : 2 * half]
        x = jnp.concatenate([x, rest], axis=-1) if rest.shape[-1] else x
    return x[..., 0]


def _zero_padded(x, padding):
    for axis, (before, after) in zip((2, 3), padding, strict=True):
        edge = lax.slice_in_dim(x, 0, 1, axis=axis)
        zero = edge - edge
        x = jnp.concatenate([zero] * before + [x] + [zero] * after, axis=axis)
    return x
