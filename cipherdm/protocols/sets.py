"""The named sets of protocols."""

from dataclasses import replace

import jax

from ..errors import CipherDMError
from . import direct, fast, fast_moments, shares, small_ring
from .base import Protocols
from .gelu_puma import gelu_puma
from .linear_attention import linear_attention
from .mish_cipherdm import mish_published
from .mish_corrected import mish_corrected
from .quad import quad
from .silu_cipherdm import silu_published
from .silu_corrected import silu_corrected
from .silu_llama import silu_llama
from .softmax_cipherdm import softmax_published
from .softmax_corrected import softmax_corrected
from .softmax_puma import softmax_puma

# The mathematical functions, with no preparation: the plaintext reference, and the plain model handed to SPU.
DIRECT = Protocols(
    name="direct",
    silu=jax.nn.silu,
    mish=jax.nn.mish,
    gelu=direct.gelu,
    quad=quad,
    softmax=jax.nn.softmax,
    group_norm=direct.group_norm,
    norm_activation=direct.norm_activation,
    layer_norm=direct.layer_norm,
    geglu=direct.geglu,
    conv2d=direct.conv2d,
    linear=direct.linear,
    projections=direct.projections,
    attention=direct.attention,
    linear_attention=linear_attention,
    time_embedding="inside",
)

# CipherDM's replacements with the coefficients as published, and its treatment of the time embedding.
CIPHERDM = replace(
    DIRECT,
    name="cipherdm",
    silu=silu_published,
    mish=mish_published,
    softmax=softmax_published,
    time_embedding="precomputed",
)

# The same structure with coefficients that are fitted to the functions.
CIPHERDM_CORRECTED = replace(
    CIPHERDM,
    name="cipherdm-corrected",
    silu=silu_corrected,
    mish=mish_corrected,
    softmax=softmax_corrected,
)

# PUMA's softmax and GeLU. PUMA has no SiLU and no Mish: SiLU is that of SPU's LLaMA example, which has the form of PUMA's
# GeLU, and Mish stays exact.
PUMA = replace(
    DIRECT,
    name="puma",
    silu=silu_llama,
    gelu=gelu_puma,
    softmax=softmax_puma,
    time_embedding="precomputed",
)

# Ours, on `Fixed` numbers and weights that the owner has calibrated and folded. Activations and softmax exist in it only
# within the layers that use them.
FAST = Protocols(
    name="fast",
    silu=fast.unsupported,
    mish=fast.unsupported,
    gelu=fast.unsupported,
    quad=fast.unsupported,
    softmax=fast.unsupported,
    group_norm=fast_moments.group_norm,
    norm_activation=fast.norm_activation,
    layer_norm=fast_moments.layer_norm,
    geglu=fast_moments.geglu,
    conv2d=fast.conv2d,
    linear=fast.linear,
    projections=fast.projections,
    attention=fast.attention,
    linear_attention=fast.linear_attention,
    time_embedding="precomputed",
    value_bits=fast.VALUE_BITS,
    prepare="fast",
)

# The same with large matrix products computed by the parties on their shares, between programs.
FAST_SHARES = replace(
    FAST,
    name="fast-shares",
    conv2d=shares.conv2d,
    linear=shares.linear,
    attention=shares.attention,
    linear_attention=shares.linear_attention,
    kernels=True,
)

# The same with those linear layers over Z_2^32 that fit and gain by it, as the owner's calibration says.
FAST_MIXED = replace(
    FAST_SHARES, name="fast-mixed", conv2d=small_ring.conv2d, linear=small_ring.linear, prepare="fast-mixed"
)

# FAST with activations kept within the range that they are right on, for inputs that calibration did not meet.
FAST_GUARDED = replace(FAST, name="fast-guarded", group_norm=fast.guarded_group_norm, prepare="fast-guarded")

_SETS = {
    protocols.name: protocols
    for protocols in (DIRECT, CIPHERDM, CIPHERDM_CORRECTED, PUMA, FAST, FAST_SHARES, FAST_MIXED, FAST_GUARDED)
}
NAMES = tuple(_SETS)


def default(granularity: str) -> Protocols:
    """What `cipherdm sample` computes with: FAST_SHARES, or FAST for a "loop", in which there can be no kernels."""
    return FAST if granularity == "loop" else FAST_SHARES


def named(name: str) -> Protocols:
    """The set called `name`, in any case. Raises CipherDMError, listing the names, if there is none."""
    try:
        return _SETS[name.lower()]
    except (KeyError, AttributeError):
        raise CipherDMError(f"No set of protocols is called {name!r}. There are: {', '.join(_SETS)}.") from None
