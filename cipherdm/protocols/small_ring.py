"""Linear layers over Z_2^32, between values of Z_2^64: FAST_KERNELS' products where the model's owner chose the small ring.

A product modulo 2^32 takes 10 products of digits where one modulo 2^64 takes 36, and its message half the bytes.

Downcast: a number is truncated to SMALL_BITS fraction bits if it has more, and each party takes the lower half of its words,
which is free. The truncation is right for |x| < 2^(18 - SMALL_BITS) = 256, as in all of FAST. Whatever wraps around in operands
and partial sums wraps back, as long as the product itself fits.

Upcast: the product has 2 SMALL_BITS fraction bits and is right modulo 2^32 for -2,048 <= product < 2,048 (`product_limit`). It
becomes a number of Z_2^64 by shifting each party's words left by 32 bits, which is free and exact: 2^32 times the product
modulo 2^64, that is, the same value with 32 more fraction bits. Biases are added there. The truncation to VALUE_BITS, which
every linear layer of FAST meets anyway, takes all 42 bits away at once, and needs the sum below 256 in size, as it does
after a product over Z_2^64.

Source: the type conversions are those of Ditto (Wu et al., ICML 2024) in purpose; here they add no protocol.
"""

from dataclasses import replace

import jax.numpy as jnp

from ..kernels.operation import Kernel, apply
from . import fast_kernels
from .fixed import Fixed

# Fraction bits of both operands: 32 bits more than the product's 20 are 52, of which a truncation to VALUE_BITS takes 42, the
# most at once.
SMALL_BITS = 10
WORD_BITS = 32


def conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0))):
    """Convolve as `fast_kernels.conv2d` does, over Z_2^32 if params["ring"] is 32. 3 messages, and 5 to truncate x first."""
    return fast_kernels.conv2d(params, x, stride=stride, padding=padding, product=_product_for(params))


def linear(params, x):
    """Compute `fast_kernels.linear`, over Z_2^32 if params["ring"] is 32."""
    return fast_kernels.linear(params, x, product=_product_for(params))


def product(kernel: Kernel, first: Fixed, second: Fixed) -> Fixed:
    """Return a kernel's result over Z_2^32, as a number of Z_2^64 that is not truncated. Its range is `product_limit`."""
    first, second = downcast(first), downcast(second)
    words = apply(replace(kernel, ring=WORD_BITS), first.array, second.array)
    return upcast(Fixed(words, first.bits + second.bits, first.ring))


def downcast(x: Fixed) -> Fixed:
    """Return x as it may be taken modulo 2^32: at SMALL_BITS at most. 5 messages if it has more, otherwise free."""
    return x.truncated(min(x.bits, SMALL_BITS))


def upcast(x: Fixed) -> Fixed:
    """Return the result of a kernel over Z_2^32, x with its own fraction bits, as a number of Z_2^64. Free.

    In the ring the words are 2^32 times those of x already. In plaintext, where a kernel gives the real product, it is NaN
    from `product_limit` on.
    """
    if x.ring:
        return Fixed(x.array, x.bits + WORD_BITS, ring=True)
    limit = jnp.float32(product_limit(x.bits))
    fits = (x.array >= -limit) & (x.array < limit)
    return Fixed(jnp.where(fits, x.array, jnp.float32(jnp.nan)), x.bits + WORD_BITS, ring=False)


def product_limit(bits: int = 2 * SMALL_BITS) -> float:
    """Return the size from which a product with so many fraction bits, those of both operands together, leaves the ring."""
    return 2.0 ** (WORD_BITS - 1 - bits)


def _product_for(params):
    return product if params.get("ring") == WORD_BITS else fast_kernels.product
