"""Convolution as one matrix product: weights on the left, shifted copies of all pixels on the right.

`lax.conv_general_dilated` makes SPU cut one slice for each output pixel, and padding with a public zero costs a message. Here
there are few operations, each of which costs SPU time whatever its size: all shifts by columns, then all of those by rows.
"""

import jax.numpy as jnp
from jax import lax


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


def conv2d_by_patches(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """As `direct.conv2d`, on float32 arrays."""
    weight = params["weight"]
    outputs, _, size, _ = weight.shape
    corner = x[0, 0, 0, 0]
    shifted = patches(x, size, stride, padding, corner - corner)
    *_, batch, rows, columns = shifted.shape
    y = weight.reshape(outputs, -1) @ shifted.reshape(-1, batch * rows * columns)
    y = y + params["bias"][:, None] if "bias" in params else y
    return jnp.swapaxes(y.reshape(outputs, batch, rows, columns), 0, 1)
