"""Quad, a quadratic in the place of SiLU, for models that are trained or distilled with it.

Formula:  x^2 / 4 + x / 2 = ((x + 1) / 2)^2 - 1/4, SiLU's Taylor polynomial of degree 2 at 0.
Domain:   all x, as a function of its own. It grows on both sides, where SiLU vanishes on the left.
Source:   the idea is MPCFormer's (Li et al., ICLR 2023), which distils models into quadratics.
Cost:     one square. Its scale and shift are folded into the normalisation before it.
"""

import jax.numpy as jnp


def quad(x):
    """Elementwise on a float32 array."""
    return x * (x + jnp.float32(2)) * jnp.float32(0.25)
