"""A convolution as one operation of JAX, so that a program that is walked does not hold all patches (`trace`, `layers`).

In plaintext, and where SPU computes it, the operation is the layer.
"""

from dataclasses import dataclass
from typing import Literal

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

Padding = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Kernel:
    """What an operation computes; everything here is public.

    Attributes:
        kind: "conv2d" of weights [O, C, K, K] and x [B, C, H, W], to [B, O, rows, columns].
        stride: stride of the convolution.
        padding: zeros ((above, below), (left, right)) around its images.
    """

    kind: Literal["conv2d"]
    stride: int = 1
    padding: Padding = ((0, 0), (0, 0))

    def __call__(self, first, second):
        """Compute the layer on arrays."""
        return lax.conv_general_dilated(second, first, (self.stride, self.stride), self.padding)


def apply(kernel: Kernel, first, second):
    """Return a kernel's result in the operands' dtype: real numbers in plaintext, words of the ring on shares."""
    return _kernel.bind(first, second, kernel=kernel)


_kernel = Primitive("cipherdm_kernel")


@_kernel.def_impl
def _compute(first, second, *, kernel):
    return jax.jit(kernel)(first, second)


@_kernel.def_abstract_eval
def _shape(first, second, *, kernel):
    return jax.core.ShapedArray(jax.eval_shape(kernel, first, second).shape, first.dtype)


mlir.register_lowering(
    _kernel, mlir.lower_fun(lambda first, second, *, kernel: kernel(first, second), multiple_results=False)
)


def after(value, earlier):
    """Return `value`, to be used only once `earlier` has been computed.

    It says in a traced function in which order its parts need least memory. JAX, SPU and `trace` read past it.
    """
    return _after.bind(value, earlier)


_after = Primitive("cipherdm_after")

_after.def_impl(lambda value, earlier: value)

_after.def_abstract_eval(lambda value, earlier: value)

mlir.register_lowering(_after, mlir.lower_fun(lambda value, earlier: value, multiple_results=False))


def is_after(equation: jax.core.JaxprEqn) -> bool:
    """Return whether an equation of a traced function only determines the order of computation."""
    return equation.primitive is _after


def kernel_of(equation: jax.core.JaxprEqn) -> Kernel | None:
    """Return the kernel that an equation of a traced function stands for, or None."""
    return equation.params["kernel"] if equation.primitive is _kernel else None
