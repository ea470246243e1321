"""Layers as FAST computes them: on `Fixed` numbers, with few messages, no comparisons and no division.

`cipherdm.owner.fold` makes what the model's owner adds to a layer's parameters, from what calibration measured; every value
is secret-shared like a weight. Messages are counted over all parties: a product is 3, a truncation 5, additions of shares
and everything linear with public factors none.
"""

import jax.numpy as jnp
from jax import lax

from ..errors import CipherDMError
from ..kernels import operation
from .fixed import Fixed, broadcast_to, concatenate, matmul, public_like, sums, sums_of_squares, swapaxes, written_out

# Fraction bits of values between blocks, and of a product's operands. A truncated number is right below 2^(18 - bits), so
# these hold values below 256, in steps of 1/1024.
VALUE_BITS = 10

# Fraction bits of weights, which are rounded by at most 2^-13. Values with up to 42 are multiplied without a truncation.
WEIGHT_BITS = 12

# Fraction bits of a normalisation's gain, before it is multiplied by a value: their product has 52, of which a truncation
# to VALUE_BITS takes 42, the most at once.
GAIN_BITS = 42
SLOPE_BITS = GAIN_BITS - 2 * VALUE_BITS  # of its slope, whose product with squares of values is added to the gain

# Fraction bits of what is squared repeatedly, in activations of degree 8 and in attention's exponential: numbers below 64,
# and their fourth powers, at 48, still have room.
POWER_BITS = 12
CONSTANT_BITS = (2 * POWER_BITS, POWER_BITS, 2 * POWER_BITS, 3 * POWER_BITS)  # of Knuth's a to d, as their sums have

# The most fraction bits of a product: words are truncated below 2^62, which leaves 8 bits, for values below 256 as above.
_PRODUCT_BITS = 54


def conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """Convolve as `direct.conv2d` does, as one matrix product. 3 messages."""
    weight = params["weight"]
    x = room_for(x, weight)
    y = (_convolution_by_patches if x.ring else _convolution)(weight, x, stride, padding)
    return y + params["bias"][None, :, None, None] if "bias" in params else y


def conv2d_as_one(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """Convolve as `conv2d` does, as one operation, so that a walk does not hold all patches. 3 messages."""
    weight = params["weight"]
    x = room_for(x, weight)
    y = operation.conv2d(weight.array, x.array, stride=stride, padding=padding)
    y = Fixed(y, weight.bits + x.bits, x.ring)
    return y + params["bias"][None, :, None, None] if "bias" in params else y


def _convolution_by_patches(weight, x, stride, padding):
    # lax.conv_general_dilated makes SPU cut one slice for each output pixel, and padding with a public zero costs a message.
    outputs, _, size, _ = weight.shape
    zero = public_like(x.reshape(-1)[:1], 0).array.reshape(())
    shifted = image_patches(x.array, size, stride, padding, zero)
    *_, batch, rows, columns = shifted.shape
    y = matmul(weight.reshape(outputs, -1), x.with_array(shifted.reshape(-1, batch * rows * columns)))
    return _batch_first(y.reshape(outputs, batch, rows, columns))


def _batch_first(y):
    """Turn [O, B, ...] into [B, O, ...]."""
    outputs, batch, *rest = y.shape
    return y.reshape(1, outputs, *rest) if batch == 1 else written_out(swapaxes(y, 0, 1))


def _convolution(weight, x, stride, padding):
    # In plaintext, where gathering patches takes longer than the products.
    y = lax.conv_general_dilated(x.array, weight.array, (stride, stride), padding)
    return Fixed(y, weight.bits + x.bits, ring=False)


def linear(params, x):
    """Compute `direct.linear` with the batch beside the tokens, as one matrix product. 3 messages."""
    x = room_for(x, params["weight"])
    columns = jnp.moveaxis(x.array, 1, 0)  # [C, B] or [C, B, N]
    y = matmul(params["weight"], x.with_array(columns.reshape(columns.shape[0], -1)))
    y = y + params["bias"][:, None] if "bias" in params else y
    return _batch_first(y.reshape(-1, *columns.shape[1:]))


def guarded_group_norm(params, x, *, groups, eps):
    """Limit the result of group_norm to the range that calibration met, `low` to `high` [C]. 64 messages more.

    Two comparisons per value. No input makes an activation leave the range that its polynomial is right on. The sums over
    attention's tokens are not limited.
    """
    y = group_norm(params, x, groups=groups, eps=eps)
    low, high = (params[name].reshape(1, -1, *[1] * (y.ndim - 2)).raised(y.bits).array for name in ("low", "high"))
    return y.with_array(jnp.minimum(jnp.maximum(y.array, low), high))


def projections(layers, x, *, protocols):
    """Return the results of several linear layers on one x [B, C, N], by one product, truncated together. 8 messages.

    All layers must share their remaining parameters; the first layer's are used.
    """
    stacked = layers[0] | {"weight": concatenate([layer["weight"] for layer in layers])}
    if "bias" in layers[0]:
        stacked["bias"] = concatenate([layer["bias"] for layer in layers])
    y = protocols.linear(stacked, x).truncated(VALUE_BITS)
    width = y.shape[1] // len(layers)
    return tuple(y[:, index * width : (index + 1) * width] for index in range(len(layers)))


def group_norm(params, x, *, groups, eps):
    """Turn x [B, C, ...] into gain (x - mean) + shift, with a gain that is affine in the sum of squares. 9 messages.

    A line fitted to the variances that calibration met at this step for this class replaces 1/sqrt(variance), so the
    inverse square root costs one product of vectors: gain = gain0 + slopes[0] (sum of squares). Squares are taken about
    `center`, the mean that calibration met. What is left of the mean is subtracted with a fixed gain, as slopes[1] (sum).
    The result is not truncated.

    Args:
        params: `gain0` [b, C] and `slopes` [b, 2, C], which hold the normalisation's weight, `shift` [C] its bias, and
            `center` [b, groups], missing where it was subtracted before. b is B, or 1 for models without classes.
        x: `Fixed` numbers.
        groups: number of groups of consecutive channels.
        eps: not used, because it is in the fit.
    """
    x = x.truncated(VALUE_BITS)
    batch, channels = x.shape[:2]
    rows = x.reshape(batch * groups, -1)
    if "center" in params:
        rows = rows - broadcast_to(params["center"], (batch, groups)).reshape(-1, 1)
    squares = sums_of_squares(rows)
    both = concatenate([squares[None], sums(rows, 1, squares.bits)[None]])  # [2, B groups]
    slopes = params["slopes"].with_array(jnp.swapaxes(params["slopes"].array, 0, 1))  # [2, b, C]
    changes = broadcast_to(slopes, (2, batch, channels)) * _by_channel(both, batch, channels)
    gain, shift = params["gain0"] + changes[0], params["shift"][None] + changes[1]
    y = gain[:, :, None] * rows.reshape(batch, channels, -1) + shift[:, :, None]
    return y.reshape(*x.shape)


def norm_activation(params, x, *, groups, eps, act_fn, modulation=None, protocols):
    """Apply group_norm, then the activation as a polynomial of degree 8 fitted to each channel's values at this step.

    The polynomial is in z = s x, the scale s being in the gain and the shift: an odd part minus a quartic in z^2 in Knuth's
    form (`knuth`), whose constants are `a` to `d` [C], d with its sign changed. The odd part is for SiLU x/2, which is
    `linear` times z, in 9 + 19 messages; for Mish `third` z^3 + `linear` z, in as many messages with more bytes.
    "quad" is exact, as the square of (x + 1)/2, whose scale and shift are folded: 9 + 8 messages.

    `act_fn` and `eps` are in the fits. `modulation` (scale and shift by time) is not supported: the preparation refuses such
    models. The result is not truncated.
    """
    z = protocols.group_norm(params, x, groups=groups, eps=eps)
    return activated(params, z.truncated(POWER_BITS), act_fn)


def activation(params, x, *, act_fn, protocols):
    """Return the activation called `act_fn` of x [B, C, N], whose scale is in the linear layer before. 8, 14 or 19 messages."""
    return activated(params, x.truncated(POWER_BITS), act_fn)


_ADDED = {"quad": -1 / 4, "gelu_quad": 3 / 8}  # to squares, which with their scale and shift folded are exact otherwise


def activated(params, z, act_fn):
    """Return an activation of z [B, C, ...] at POWER_BITS, by a square or a polynomial as `norm_activation` says."""
    if act_fn in _ADDED:
        square = z * z
        added = 2.0 ** (square.bits if z.ring else 0) * _ADDED[act_fn]
        return square.with_array(square.array + jnp.asarray(added, z.array.dtype))
    shape = (1, -1, *[1] * (z.ndim - 2))
    a, b, c, d, linear = (params[name].reshape(*shape) for name in ("a", "b", "c", "d", "linear"))
    if params["cubic"]:
        u = z * z
        products = _both(u + a, params["third"].reshape(*shape)) * _both(u, u)
        w, odd = _halves(products.truncated(POWER_BITS))
        quartic, odd = _halves(_both(w + u + c, z) * _both(w + b, odd + linear))
        return odd + d - quartic
    # Minus, because fits keep the highest coefficient negative: scaling z makes it -1, and never 1.
    return line_minus_quartic(z, a, b, c, d, linear)


def line_minus_quartic(z, a, b, c, d, linear):
    """Return linear z - a quartic in z^2 in Knuth's form, for z at POWER_BITS, at three times as many. 14 messages."""
    # Two products in one call, the second one at the bits that its sum with the quartic has.
    u, half = _halves(_both(z, linear.times_power_of_two(POWER_BITS)) * _both(z, z))
    w = ((u + a) * u).truncated(POWER_BITS)
    return half.times_power_of_two(-POWER_BITS) + d - (w + u + c) * (w + b)


def _both(first, second):
    """Join two numbers for one call: the second may have fewer extents, which broadcast."""
    return concatenate([first, broadcast_to(second, first.shape)])


def _halves(x):
    """Return the two numbers that `_both` joined."""
    middle = x.shape[0] // 2
    return x[:middle], x[middle:]


def unsupported(*args, **kwargs):
    """Raise CipherDMError, in place of a function that FAST has only within a layer."""
    raise CipherDMError("FAST computes this function only within a layer that uses it; choose another protocol set.")


def _by_channel(x, batch, channels):
    """Repeat values of each group, [K, B groups], for the group's channels: [K, B, C]."""
    count, groups = x.shape[0], x.shape[1] // batch
    repeated = broadcast_to(x.reshape(count, batch, groups, 1), (count, batch, groups, channels // groups))
    return repeated.reshape(count, batch, channels)


def room_for(x, weight):
    """Return x, truncated if a product with the weight would not fit."""
    return x if x.bits + weight.bits <= _PRODUCT_BITS else x.truncated(VALUE_BITS)


def image_patches(array, size, stride, padding, zero):
    """Gather the pixels that each entry of a kernel meets: [B, C, H, W] to [C, size, size, B, rows, columns].

    A convolution is one matrix product with them: weights on the left, shifted copies of all pixels on the right.
    `padding` is ((top, bottom), (left, right)), filled with `zero`, a scalar, secret if padding is to be free on shares.
    """
    array = jnp.swapaxes(array, 0, 1)
    if any(map(any, padding)):
        array = lax.pad(array, zero, [(0, 0, 0), (0, 0, 0), *((*edges, 0) for edges in padding)])
    rows, columns = ((extent - size) // stride + 1 for extent in array.shape[2:])
    array = array[:, None, None]  # room for the kernel's rows and columns
    # All shifts by columns, then all of those by rows: few operations, each of which costs SPU time whatever its size.
    for axis, count in ((5, columns), (4, rows)):
        shifts = [lax.slice_in_dim(array, i, i + (count - 1) * stride + 1, stride, axis) for i in range(size)]
        array = jnp.concatenate(shifts, axis - 3)
    return array
