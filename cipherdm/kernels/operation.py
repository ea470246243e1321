"""Linear layers as one operation of JAX, so that a model's functions can say where parties multiply shares themselves.

In plaintext the operation is the layer. When a function becomes programs for three parties, the engine cuts it at these
operations (`engine.kernel_stages`). Each becomes a kernel: every party multiplies its own components (`layers`) and sends
one message.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

Padding = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Kernel:
    """Computation of a kernel; everything here is public.

    Attributes:
        kind: "conv2d" of weights [O, C, K, K] and x [B, C, H, W], to [B, O, rows, columns]; "matmul" of weights [O, C] and x
            [..., C, N], to [..., O, N]; "products" of x [..., M, K] and y [..., K, N], to [..., M, N].
        stride: stride of a convolution.
        padding: zeros ((above, below), (left, right)) around the images of a convolution.
        ring: bits of the ring to compute in. With 32, operands are taken modulo 2^32, which costs nothing. The result is then
            2^32 times the product, modulo 2^64, which is right if the product is below 2^31 in size.
    """

    kind: Literal["conv2d", "matmul", "products"]
    stride: int = 1
    padding: Padding = ((0, 0), (0, 0))
    ring: Literal[64, 32] = 64

    def __call__(self, first, second):
        """Compute the layer on float32 arrays, in plaintext."""
        if self.kind == "conv2d":
            return lax.conv_general_dilated(second, first, (self.stride, self.stride), self.padding)
        return jnp.matmul(first, second)


def apply(kernel: Kernel, first, second):
    """Return a kernel's result in the operands' dtype: real numbers in plaintext, words of the ring on shares."""
    return _kernel.bind(first, second, kernel=kernel)


_kernel = Primitive("cipherdm_kernel")


@_kernel.def_impl
def _compute(first, second, *, kernel):
    return jax.jit(kernel)(first, second)


@_kernel.def_abstract_eval
def _shape(first, second, *, kernel):
    of_floats = [jax.ShapeDtypeStruct(operand.shape, jnp.float32) for operand in (first, second)]
    return jax.core.ShapedArray(jax.eval_shape(kernel, *of_floats).shape, first.dtype)


mlir.register_lowering(
    _kernel, mlir.lower_fun(lambda first, second, *, kernel: kernel(first, second), multiple_results=False), "cpu"
)


def after(value, earlier):
    """Return `value`, available once `earlier` has been computed: kernels that read the result wait for it.

    This limits what parties hold at once. Otherwise kernels that do not need each other all run before their results are used.
    In plaintext nothing happens.
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
