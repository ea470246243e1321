"""What a block of a model may compute with: a value that holds one function per kind of layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocols:
    """The functions that a model's blocks are built from. All are pure JAX functions on float32 arrays,
    or, if `value_bits` says so, on `Fixed` numbers.

    Layers with parameters get their local parameters as a dictionary: "weight" and "bias" under diffusers' names, and
    whatever else an owner's preparation of a set put beside them. A function takes what it needs and leaves the rest.

    - `silu(x)`, `mish(x)`, `gelu(x)`, `quad(x)`: elementwise.
    - `softmax(scores)`: over the last axis.
    - `group_norm(params, x, *, groups, eps)`: x is [B, C, ...], "weight" and "bias" are [C].
    - `norm_activation(params, x, *, groups, eps, act_fn, modulation, protocols)`: group_norm, then, if `modulation` is a pair
      of [b, C] arrays, scaled by 1 plus the first and shifted by the second, then the activation called `act_fn`. One
      field for the three, because a set may know shortcuts through them.
    - `layer_norm(params, x, *, eps)`: over axis 1 of x [B, C, ...], "weight" and "bias" are [C].
    - `geglu(params, x, *, protocols)`: the first half of x [B, 2 C, N] times the GELU of the second. `params` are those of the
      linear layer that made x.
    - `conv2d(params, x, *, stride=1, padding=((0, 0), (0, 0)))`: x is [B, C, H, W], "weight" is [O, C, K, K], "bias",
      if there, is [O]; padding is ((top, bottom), (left, right)).
    - `linear(params, x)`: x is [B, C] or [B, C, N], "weight" is [O, C], "bias", if there, is [O]; the result is [B, O]
      or [B, O, N].
    - `projections(layers, x, *, protocols)`: the results of several linear layers on the same x, a tuple.
    - `attention(params, q, k, v, *, scale, softmax)`: q is [B, heads, d, N], k and v are [B, heads, d, M]; the result is
      [B, heads, d, N]. `params` are those of the whole block.
    - `linear_attention(params, q, k, v, *, scale)`: the same without softmax, for models made for it.
    - `time_embedding`: "inside" if the secure program computes the time terms, "precomputed" if the model owner
      computes them in plaintext, for every step, and shares the results.

    - `value_bits`: None for functions on float32 arrays, which SPU truncates as it sees fit. Otherwise the functions are on
      `Fixed` numbers, and values between blocks have so many fraction bits.
    - `kernels`: whether large products are kernels (`cipherdm.linear.operation`), which stand between programs, and so not in
      a loop of steps that is one program.
    - `prepare`: which preparation of the owner's the layers rely on, if any (`cipherdm.models.prepare_weights`).

    A set is hashable, as long as its functions are (module-level functions, not arrays or closures over them), so that
    compiled programs can be looked up by it. Change one function of a set with `dataclasses.replace`.
    """

    name: str
    silu: Callable
    mish: Callable
    gelu: Callable
    quad: Callable
    softmax: Callable
    group_norm: Callable
    norm_activation: Callable
    layer_norm: Callable
    geglu: Callable
    conv2d: Callable
    linear: Callable
    projections: Callable
    attention: Callable
    linear_attention: Callable
    time_embedding: Literal["inside", "precomputed"]
    value_bits: int | None = None
    kernels: bool = False
    prepare: Literal["fast", "fast-guarded", "fast-mixed"] | None = None
