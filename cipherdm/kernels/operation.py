"""A convolution as one operation of JAX, so that a program that is walked does not hold all patches (`trace`, `layers`).

In plaintext, and where SPU computes it, the operation is the layer.
"""

from functools import partial

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

NAME = "cipherdm_conv2d"
"""Name of the operation's primitive."""

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv2d(weight, x, *, stride: int, padding: Padding):
    """Return the convolution [B, O, rows, columns] of x [B, C, H, W] with weight [O, C, K, K], in the operands' dtype.

    Args:
        padding: zeros ((above, below), (left, right)) around the images.
    """
    return _conv2d.bind(weight, x, stride=stride, padding=padding)


def _layer(weight, x, *, stride, padding):
    return lax.conv_general_dilated(x, weight, (stride, stride), padding)


def _shape(weight, x, **static):
    return jax.core.ShapedArray(jax.eval_shape(partial(_layer, **static), weight, x).shape, x.dtype)


_conv2d = Primitive(NAME)
_conv2d.def_impl(jax.jit(_layer, static_argnames=("stride", "padding")))
_conv2d.def_abstract_eval(_shape)
mlir.register_lowering(_conv2d, mlir.lower_fun(_layer, multiple_results=False))
