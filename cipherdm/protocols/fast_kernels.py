"""FAST with its large matrix products as kernels: computed by the parties on their shares, between programs of SPU.

SPU multiplies matrices modulo 2^64 with general integer arithmetic. `cipherdm.kernels` does it exactly on the processor's
integer matrix units, with as many messages, and is faster at all shapes of linear.json. Each kernel ends a program and begins
another, whose text SPU has to read, so small products stay with SPU. Where programs are blocks, a step takes about as long
as with FAST for few images, and less for many (blocks_mnist10.json). A loop of several steps in one program has no room for
kernels. Results are those of FAST, to the random last bit of truncations.
"""

import math

import jax.numpy as jnp

from ..kernels.operation import Kernel, apply
from . import fast, fast_attention
from .fast_attention import SCORES
from .fixed import Fixed, dot_general

# Multiplications from which a product becomes a kernel: below, reading another program takes longer than the kernel saves.
LEAST_MULTIPLY_ADDS = 1 << 24


def product(kernel: Kernel, first: Fixed, second: Fixed) -> Fixed:
    """Return a kernel's result over Z_2^64, not truncated. 3 messages."""
    return Fixed(apply(kernel, first.array, second.array), first.bits + second.bits, first.ring)


def conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """Convolve as `fast.conv2d` does, by a kernel if it is large. 3 messages."""
    weight = params["weight"]
    outputs, channels, size, _ = weight.shape
    batch, _, *extents = x.shape
    pixels = math.prod((length + sum(edge) - size) // stride + 1 for length, edge in zip(extents, padding, strict=True))
    if batch * pixels * math.prod(weight.shape) < LEAST_MULTIPLY_ADDS:
        return fast.conv2d(params, x, stride=stride, padding=padding)
    return conv2d_as_one(params, x, stride=stride, padding=padding)


def conv2d_as_one(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """Convolve as `fast.conv2d` does, as one operation. 3 messages."""
    weight = params["weight"]
    y = product(Kernel("conv2d", stride, padding), weight, fast.room_for(x, weight))
    return y + params["bias"][None, :, None, None] if "bias" in params else y


def linear(params, x):
    """Compute `fast.linear`, by a kernel if it is large. 3 messages."""
    return fast.linear(params, x, matmul=_matmul)


def attention(params, q, k, v, *, scale, softmax, chunk_scores=SCORES):
    """Return `fast_attention.attention`, with products of all heads and images in one message."""
    settings = {"scale": scale, "softmax": softmax, "chunk_scores": chunk_scores}
    return fast_attention.attention(params, q, k, v, dot_general=_dot_general, **settings)


def linear_attention(params, q, k, v, *, scale):
    """Return `fast_attention.linear_attention`, with products of all heads and images in one message."""
    return fast_attention.linear_attention(params, q, k, v, scale=scale, dot_general=_dot_general)


def _matmul(first: Fixed, second: Fixed) -> Fixed:
    if first.shape[0] * math.prod(second.shape) < LEAST_MULTIPLY_ADDS:
        return dot_general(first, second, (((1,), (0,)), ((), ())))
    return product(Kernel("matmul"), first, second)


def _dot_general(first: Fixed, second: Fixed, dimension_numbers) -> Fixed:
    """Multiply as `fixed.dot_general` does operands that begin with the batch and have two more axes."""
    ((one,), (other,)), (batch, _) = dimension_numbers
    size = math.prod(first.shape) * second.shape[-1 if other == second.ndim - 2 else -2]
    if size < LEAST_MULTIPLY_ADDS:
        return dot_general(first, second, dimension_numbers)
    left = first if one == first.ndim - 1 else first.with_array(jnp.swapaxes(first.array, -1, -2))
    right = second if other == second.ndim - 2 else second.with_array(jnp.swapaxes(second.array, -1, -2))
    return product(Kernel("products"), left, right)
