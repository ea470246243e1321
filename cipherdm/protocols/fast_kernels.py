"""FAST with its large matrix products as kernels: computed by the parties on their shares, between programs of SPU.

SPU multiplies matrices modulo 2^64 with general integer arithmetic; `cipherdm.linear` does it on the processor's integer
matrix units, exactly, sends one message where SPU sends one as well, and is ahead of it at all shapes of linear.json. Each
kernel ends a program and begins another, whose text SPU has to read, so that small products stay with SPU. Where programs are
blocks, a step takes about as long as with FAST for few pictures, and less for many (blocks_mnist10.json); a loop of several
steps in one program has no room for kernels. Results are the same as FAST's, to the random last bit of truncations.
"""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from ..kernels.operation import Kernel, apply
from . import fast, fast_attention
from .fast_attention import SCORES
from .fixed import Fixed, dot_general

LEAST_MULTIPLY_ADDS = 1 << 24  # of a product that becomes a kernel

Product = Callable[[Kernel, Fixed, Fixed], Fixed]
"""How a kernel is applied to its operands."""


def product(kernel: Kernel, first: Fixed, second: Fixed) -> Fixed:
    """A kernel's result over Z_2^64, not truncated. 3 messages."""
    return Fixed(apply(kernel, first.array, second.array), first.bits + second.bits, first.ring)


def conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0)), product: Product = product):
    """As `fast.conv2d`, computed by `product` if it is large. 3 messages."""
    weight = params["weight"]
    outputs, channels, size, _ = weight.shape
    batch, _, *extents = x.shape
    pixels = math.prod((length + sum(edge) - size) // stride + 1 for length, edge in zip(extents, padding, strict=True))
    if batch * pixels * math.prod(weight.shape) < LEAST_MULTIPLY_ADDS:
        return fast.conv2d(params, x, stride=stride, padding=padding)
    y = product(Kernel("conv2d", stride, padding), weight, fast.room_for(x, weight))
    return y + params["bias"][None, :, None, None] if "bias" in params else y


def linear(params, x, *, product: Product = product):
    """As `fast.linear`, computed by `product` if it is large. 3 messages."""
    return fast.linear(params, x, matmul=partial(_matmul, product))


def attention(params, q, k, v, *, scale, softmax, chunk_scores=SCORES):
    """As `fast_attention.attention`, the products of all heads and pictures in one message."""
    settings = {"scale": scale, "softmax": softmax, "chunk_scores": chunk_scores}
    return fast_attention.attention(params, q, k, v, dot_general=_dot_general, **settings)


def linear_attention(params, q, k, v, *, scale):
    """As `fast_attention.linear_attention`, likewise."""
    return fast_attention.linear_attention(params, q, k, v, scale=scale, dot_general=_dot_general)


def _matmul(product: Product, first: Fixed, second: Fixed) -> Fixed:
    if first.shape[0] * math.prod(second.shape) < LEAST_MULTIPLY_ADDS:
        return dot_general(first, second, (((1,), (0,)), ((), ())))
    return product(Kernel("matmul"), first, second)


def _dot_general(first: Fixed, second: Fixed, dimension_numbers) -> Fixed:
    """As `fixed.dot_general`, for operands that begin with the batch and have two more axes."""
    ((one,), (other,)), (batch, _) = dimension_numbers
    size = math.prod(first.shape) * second.shape[-1 if other == second.ndim - 2 else -2]
    if size < LEAST_MULTIPLY_ADDS:
        return dot_general(first, second, dimension_numbers)
    left = first if one == first.ndim - 1 else first.with_array(jnp.swapaxes(first.array, -1, -2))
    right = second if other == second.ndim - 2 else second.with_array(jnp.swapaxes(second.array, -1, -2))
    return product(Kernel("products"), left, right)
