"""Layers as FAST computes them: on `Fixed` numbers, with few messages, no comparisons and no division.

What the model owner adds to a layer's parameters is made by `cipherdm.models.fast_weights` from what calibration measured;
every value is secret-shared like a weight. Messages are counted over all parties: a product is 3, a truncation 5, additions
of shares and everything linear with public factors none. The bits are chosen so that a product of three or four values at
VALUE_BITS and a weight still fits into the ring.
"""

import jax.numpy as jnp
from jax import lax

from ..errors import CipherDMError
from .fixed import Fixed, broadcast_to, concatenate, in_order, matmul, public_like, row_sums, sums_of_squares, swapaxes

VALUE_BITS = 10  # fraction bits of values between blocks, and of what a product starts from

WEIGHT_BITS = 12  # of weights

GAIN_BITS = 42  # of a normalisation's gain, before it is multiplied with a value

SLOPE_BITS = GAIN_BITS - 2 * VALUE_BITS  # of its slope, which is multiplied with squares of values

POWER_BITS = 12  # of what is squared repeatedly, in activations of degree 8 and in attention's exponential

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


def patches(array, size, stride, padding, zero):
    """What each entry of a kernel meets: [B, C, H, W] to [C, size, size, B, rows, columns].

    `padding` is ((top, bottom), (left, right)), filled with `zero`, a scalar, secret if padding is to be free on shares.
    """
    array = jnp.swapaxes(array, 0, 1)
    if any(map(any, padding)):
        array = lax.pad(array, zero, [(0, 0, 0), (0, 0, 0), *((*edges, 0) for edges in padding)])
    rows, columns = ((extent - size) // stride + 1 for extent in array.shape[2:])
    array = array[:, None, None]  # room for the kernel's rows and columns
    for axis, count in ((5, columns), (4, rows)):
        shifts = [lax.slice_in_dim(array, i, i + (count - 1) * stride + 1, stride, axis) for i in range(size)]
        array = jnp.concatenate(shifts, axis - 3)
    return array
