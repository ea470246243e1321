"""Protocol sets: values that hold one function per kind of layer, with which a model's blocks are computed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax

from ..approximations.gelu import gelu_nimbus, gelu_puma, gelu_quad
from ..approximations.mish import mish_cipherdm, mish_corrected
from ..approximations.silu import quad, silu_cipherdm, silu_corrected, silu_llama
from ..approximations.softmax import softmax_2quad, softmax_cipherdm, softmax_corrected, softmax_nimbus, softmax_puma
from ..errors import CipherDMError
from . import direct, fast, fast_attention, fast_norms
from .fixed import ENGINE_FRACTION_BITS


@dataclass(frozen=True)
class Protocols:
    """Functions that a model's blocks are built from: pure JAX functions on float32 arrays, or on `Fixed` numbers.

    Layers with parameters get their local parameters as a dictionary: "weight" and "bias" under diffusers' names, and
    whatever an owner's preparation of a set put beside them. A function takes what it needs and leaves the rest.

    - `silu(x)`, `mish(x)`, `quad(x)`, `gelu(x)`, `gelu_new(x)`, `gelu_quad(x)`, `tanh(x)`: elementwise.
    - `softmax(scores)`: over the last axis.
    - `group_norm(params, x, *, groups, eps)`: x is [B, C, ...], "weight" and "bias" are [C].
    - `norm_activation(params, x, *, groups, eps, act_fn, modulation, protocols)`: group_norm, then, if `modulation` is a pair
      of [b, C] arrays, scaled by 1 plus the first and shifted by the second, then the activation called `act_fn`. One
      field for the three, because a set may know shortcuts through them.
    - `layer_norm(params, x, *, eps)`: over axis 1 of x [B, C, ...], "weight" and "bias" are [C].
    - `geglu(params, x, *, protocols)`: the first half of x [B, 2 C, N] times the GELU of the second. `params` are those of the
      linear layer that made x.
    - `rescaled(params, y)`: y, a result of `layer_norm`, with the weight and bias that its readers otherwise have.
    - `modulated(y, shift, scale)`: y, a result of `layer_norm` [B, C, N], times 1 + scale plus shift, both [b, C].
    - `gated(y, gate)`: y [B, C, N] times a gate [b, C].
    - `activation(params, x, *, act_fn, protocols)`: the activation called `act_fn` of x [B, C, N]; `params` as for geglu.
    - `conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0)))`: x is [B, C, H, W], "weight" is [O, C, K, K], "bias",
      if there, is [O]; padding is ((top, bottom), (left, right)).
    - `linear(params, x)`: x is [B, C] or [B, C, N], "weight" is [O, C], "bias", if there, is [O]; the result is [B, O]
      or [B, O, N].
    - `projections(layers, x, *, protocols)`: the results of several linear layers on the same x, a tuple.
    - `attention(params, q, k, v, *, scale, softmax, mask=None, among=None)`: q is [B, heads, d, N], k and v are
      [B, heads, d, M]; the result is [B, heads, d, N]. `params` are those of the whole block. `mask` tells tokens from padding:
      [B, M] of 0 and PADDING, for sets on `Fixed` numbers `token_weights`. `among` says publicly which tokens each query
      attends to.
    - `linear_attention(params, q, k, v, *, scale)`: attention without softmax, for models trained with it.
    - `time_embedding`: "inside" if the secure program computes the time terms, "precomputed" if the model owner
      computes them in plaintext, for every step, and shares the results.

    - `value_bits`: None for functions on float32 arrays, which SPU truncates as it sees fit. Otherwise the functions are on
      `Fixed` numbers, and values between blocks have so many fraction bits.
    - `walk_bits`: None, or the fraction bits that words are counted in, to have the parties compute by themselves what neither
      compares nor divides (`cipherdm.kernels.walk`).
    - `significant_bits`: bits that factors of products keep in a walk, whose values then have rings of their own
      (`cipherdm.kernels.rings`); None for the ring of 64 bits throughout.
    - `small_bits`: fraction bits in the ring of 32 bits, for a set that computes parts of a transformer there.
    - `prepare`: the owner's preparation that the layers rely on, if any (`cipherdm.owner.prepare_weights`).

    A set is hashable, as long as its functions are (module-level functions, not arrays or closures over them), so that
    compiled programs can be looked up by it. Change one function of a set with `dataclasses.replace`.
    """

    name: str
    silu: Callable
    mish: Callable
    gelu: Callable
    gelu_new: Callable
    gelu_quad: Callable
    tanh: Callable
    quad: Callable
    softmax: Callable
    group_norm: Callable
    norm_activation: Callable
    layer_norm: Callable
    rescaled: Callable
    modulated: Callable
    gated: Callable
    activation: Callable
    geglu: Callable
    conv2d: Callable
    linear: Callable
    projections: Callable
    attention: Callable
    linear_attention: Callable
    time_embedding: Literal["inside", "precomputed"]
    value_bits: int | None = None
    walk_bits: int | None = None
    significant_bits: int | None = None
    small_bits: int | None = None
    prepare: Literal["fast", "fast-guarded"] | None = None


# The mathematical functions, with no preparation: the plaintext reference, and the plain model handed to SPU.
DIRECT = Protocols(
    name="direct",
    silu=jax.nn.silu,
    mish=jax.nn.mish,
    gelu=direct.gelu,
    gelu_new=direct.gelu_new,
    gelu_quad=gelu_quad,
    tanh=jax.numpy.tanh,
    quad=quad,
    softmax=jax.nn.softmax,
    group_norm=direct.group_norm,
    norm_activation=direct.norm_activation,
    layer_norm=direct.layer_norm,
    rescaled=direct.rescaled,
    modulated=direct.modulated,
    gated=direct.gated,
    activation=direct.activation,
    geglu=direct.geglu,
    conv2d=direct.conv2d,
    linear=direct.linear,
    projections=direct.projections,
    attention=direct.attention,
    linear_attention=direct.linear_attention,
    time_embedding="inside",
)

# CipherDM's replacements with the coefficients as published, and its treatment of the time embedding.
CIPHERDM = replace(
    DIRECT,
    name="cipherdm",
    silu=silu_cipherdm,
    mish=mish_cipherdm,
    softmax=softmax_cipherdm,
    time_embedding="precomputed",
)

# CipherDM's structure with coefficients that are fitted to the functions.
CIPHERDM_CORRECTED = replace(
    CIPHERDM, name="cipherdm-corrected", silu=silu_corrected, mish=mish_corrected, softmax=softmax_corrected
)

# PUMA's softmax and GeLU. PUMA has no SiLU and no Mish: SiLU is that of SPU's LLaMA example, which has the form of PUMA's
# GeLU, and Mish stays exact.
PUMA = replace(
    DIRECT,
    name="puma",
    silu=silu_llama,
    gelu=gelu_puma,
    gelu_new=gelu_puma,
    softmax=softmax_puma,
    time_embedding="precomputed",
)

# Functions of transformers alone: Nimbus' of low degree, and MPCFormer's, for models that are trained with them.
NIMBUS = replace(DIRECT, name="nimbus", gelu=gelu_nimbus, gelu_new=gelu_nimbus, softmax=softmax_nimbus)
# Ditto's rings: `cipherdm.sampling.ditto` computes transformers in it, each layer in its own.
DITTO = replace(PUMA, name="ditto", gelu=gelu_quad, gelu_new=gelu_quad, walk_bits=18, small_bits=8)
MPCFORMER = replace(DIRECT, name="mpcformer", gelu=gelu_quad, gelu_new=gelu_quad, softmax=softmax_2quad)

# Ours, on `Fixed` numbers and weights that the owner has calibrated and folded. Activations and softmax exist in it only
# within the layers that use them.
FAST = Protocols(
    name="fast",
    **dict.fromkeys(("silu", "mish", "gelu", "gelu_new", "gelu_quad", "tanh", "quad", "softmax"), fast.unsupported),
    group_norm=fast_norms.group_norm,
    norm_activation=fast.norm_activation,
    layer_norm=fast_norms.layer_norm,
    rescaled=fast_norms.rescaled,
    modulated=fast_norms.modulated,
    gated=fast_norms.gated,
    activation=fast.activation,
    geglu=fast_norms.geglu,
    conv2d=fast.conv2d,
    linear=fast.linear,
    projections=fast.projections,
    attention=fast_attention.attention,
    linear_attention=fast_attention.linear_attention,
    time_embedding="precomputed",
    value_bits=fast.VALUE_BITS,
    prepare="fast",
)

# FAST walked by the parties on their own pairs, in the ring of 64 bits.
FAST_64 = replace(FAST, name="fast-64", conv2d=fast.conv2d_as_one, walk_bits=ENGINE_FRACTION_BITS)

# The same with every value in the ring that it needs.
FAST_RINGS = replace(FAST_64, name="fast-rings", significant_bits=14)

# FAST with activations kept within the range that they are right on, for inputs that calibration did not meet.
FAST_GUARDED = replace(FAST, name="fast-guarded", group_norm=fast.guarded_group_norm, prepare="fast-guarded")

_SETS = {
    protocols.name: protocols
    for protocols in (
        *(DIRECT, CIPHERDM, CIPHERDM_CORRECTED, PUMA, NIMBUS, MPCFORMER, DITTO),
        *(FAST, FAST_64, FAST_RINGS, FAST_GUARDED),
    )
}

NAMES = tuple(_SETS)


def default(granularity: str) -> Protocols:
    """Return the set that `cipherdm sample` uses: FAST_64, or FAST for a "loop", which SPU has to compute."""
    return FAST if granularity == "loop" else FAST_64


def named(name: str | Protocols) -> Protocols:
    """Return the protocol set called `name`, in any case, or that set itself. Raises CipherDMError, which lists the names."""
    if isinstance(name, Protocols):
        return name
    try:
        return _SETS[name.lower()]
    except (KeyError, AttributeError):
        raise CipherDMError(f"No protocol set is called {name!r}. There are: {', '.join(_SETS)}.") from None
