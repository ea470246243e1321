"""The functions that U-Nets are made of. Images [B, C, H, W] and tokens [B, C, N] are channels first.

Each takes its parameters under names local to the block ("conv1.weight"), its inputs by position, and the protocol set and
static values by keyword. Only the protocols compute linear and nonlinear layers, so a function reads the same in plaintext,
with approximations and on SPU. UNet2DModel has `attention`. UNet2DConditionModel has transformers instead: `context` and
the functions from `transformer_in` to `transformer_out`. A ControlNet has `hint_conv`, `zero_conv` and `sum_of` besides.
"""

import math
from collections.abc import Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np

from ..protocols.fast_attention import shares_among
from ..protocols.fixed import broadcast_to, concatenate, padded, placed, swapaxes

SAME = ((1, 1), (1, 1))  # padding with which a 3 x 3 convolution keeps height and width

# Constants in diffusers' transformers: neither is taken from the configuration.
GROUP_NORM_EPS = 1e-6
LAYER_NORM_EPS = 1e-5


def layer(params: Mapping, name: str) -> dict:
    """Return one layer's parameters out of a block's: "weight", "bias", and what the owner prepared beside them."""
    return {key[len(name) + 1 :]: value for key, value in params.items() if key.startswith(name + ".")}


def time_embedding(params, timestep, class_onehot=None, *, protocols, channels, flip_sin_to_cos, freq_shift, act_fn):
    """Map timestep [1], and class_onehot [B, classes] if the model has classes, to the embedding [1, D] or [B, D].

    TimestepEmbedding in diffusers. A UNet2DModel gives it SiLU, whatever its own act_fn says.
    """
    wave = sinusoid(timestep, channels, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
    hidden = getattr(protocols, act_fn)(protocols.linear(layer(params, "linear_1"), wave))
    embedding = protocols.linear(layer(params, "linear_2"), hidden)
    if class_onehot is None:
        return embedding
    # The table is [classes, D]. A product with the one-hot rows selects from it: indexing by a secret would reveal it.
    table = params["class_embedding.weight"]
    # A DiT's has one row more.
    return embedding + jnp.matmul(class_onehot, table[: class_onehot.shape[1]])


def sinusoid(timestep, channels, *, flip_sin_to_cos, freq_shift):
    """Map timestep [1] to its sines and cosines [1, channels], at frequencies from 1 down to 1/10000, as in diffusers."""
    half = channels // 2
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    angle = timestep[:, None] * np.exp(exponent)[None, :]
    waves = [jnp.sin(angle), jnp.cos(angle)]
    if flip_sin_to_cos:
        waves.reverse()
    if channels % 2:
        waves.append(jnp.zeros_like(angle[:, :1]))
    return jnp.concatenate(waves, axis=1)


def time_projection(params, embedding, *, protocols, act_fn):
    """Map the embedding [b, D] to a residual block's time term [b, C], or [b, 2 C] for scale and shift; b is 1 or B."""
    return protocols.linear(params, getattr(protocols, act_fn)(embedding))


def conv_in(params, sample, *, protocols):
    """Convolve the sample [B, C, H, W] to the first level's channels."""
    return protocols.conv2d(params, sample, padding=SAME)


def resnet(params, hidden, *rest, protocols, groups, eps, act_fn, scale_shift, output_scale):
    """Apply a residual block to hidden [B, C, H, W]: inputs (hidden, time_term) or (hidden, skip, time_term).

    A skip [B, C', H, W] is appended to the channels. The time term is [b, O], added after the first convolution, or
    [b, 2 O], scale and shift after the second normalisation; b is 1 or B. ResnetBlock2D in diffusers.
    """
    *skip, time_term = rest
    hidden = concatenate([hidden, *skip], axis=1) if skip else hidden
    activated = partial(protocols.norm_activation, groups=groups, eps=eps, act_fn=act_fn, protocols=protocols)

    y = protocols.conv2d(layer(params, "conv1"), activated(layer(params, "norm1"), hidden), padding=SAME)
    if scale_shift:
        half = time_term.shape[1] // 2
        y = activated(layer(params, "norm2"), y, modulation=(time_term[:, :half], time_term[:, half:]))
    else:
        y = activated(layer(params, "norm2"), y + time_term[:, :, None, None])
    y = protocols.conv2d(layer(params, "conv2"), y, padding=SAME)
    if "conv_shortcut.weight" in params:
        hidden = protocols.conv2d(layer(params, "conv_shortcut"), hidden)
    return _rescaled(hidden + y, output_scale)


def attention(params, hidden, *, protocols, groups, eps, heads, output_scale, kernel):
    """Add to hidden [B, C, H, W] the attention of its pixels to each other; groups None means no normalisation.

    Attention in diffusers, as a UNet2DModel configures it, or, with kernel "linear", without softmax.
    """
    tokens = hidden.reshape(*hidden.shape[:2], -1)
    if groups is not None:
        tokens = protocols.group_norm(layer(params, "group_norm"), tokens, groups=groups, eps=eps)
    layers = [layer(params, name) for name in ("to_q", "to_k", "to_v")]
    q, k, v = protocols.projections(layers, tokens, protocols=protocols)
    y = attended(params, q, k, v, heads, protocols, kernel)
    return _rescaled(hidden + y.reshape(hidden.shape), output_scale)


def downsample(params, hidden, *, protocols, padding):
    """Halve the height and width of hidden [B, C, H, W] by a convolution with stride 2.

    With padding 0 diffusers pads on the right and below only, which halves height and width too.
    """
    edges = SAME if padding else ((0, 1), (0, 1))
    return protocols.conv2d(layer(params, "conv"), hidden, stride=2, padding=edges)


def upsample(params, hidden, *, protocols):
    """Double the height and width of hidden [B, C, H, W] by repeating pixels, and convolve."""
    batch, channels, height, width = hidden.shape
    repeated = broadcast_to(hidden[:, :, :, None, :, None], (batch, channels, height, 2, width, 2))
    return protocols.conv2d(
        layer(params, "conv"), repeated.reshape(batch, channels, 2 * height, 2 * width), padding=SAME
    )


def conv_out(params, hidden, *, protocols, groups, eps, act_fn):
    """Normalise, activate, and convolve to the predicted noise."""
    norm = layer(params, "conv_norm_out")
    y = protocols.norm_activation(norm, hidden, groups=groups, eps=eps, act_fn=act_fn, protocols=protocols)
    return protocols.conv2d(layer(params, "conv_out"), y, padding=SAME)


def _rescaled(x, divisor):
    return x if divisor == 1 else x * jnp.float32(1 / divisor)


def context(params, encoder_hidden_states, *, protocols):
    """Return keys and values, each [B, D, tokens], of one cross-attention to the prompt's embedding [B, tokens, C].

    They depend on prompt and weights alone, so they are computed once for all steps.
    """
    tokens = swapaxes(encoder_hidden_states, 1, 2)
    layers = [layer(params, name) for name in ("attn2.to_k", "attn2.to_v")]
    return protocols.projections(layers, tokens, protocols=protocols)


def transformer_in(params, hidden, *, protocols, groups, linear_projection):
    """Normalise hidden [B, C, H, W] and project it to tokens [B, D, H W]. The beginning of Transformer2DModel in diffusers.

    The projection is a linear layer, or a convolution with a 1 x 1 kernel, which computes the same with a weight of another
    shape.
    """
    y = protocols.group_norm(layer(params, "norm"), hidden, groups=groups, eps=GROUP_NORM_EPS)
    projection = layer(params, "proj_in")
    if linear_projection:
        return protocols.linear(projection, y.reshape(*y.shape[:2], -1))
    y = protocols.conv2d(projection, y)
    return y.reshape(*y.shape[:2], -1)


def self_attention(params, tokens, *mask, protocols, heads, eps=LAYER_NORM_EPS, post_norm=False, only=None):
    """Add to tokens [B, D, N] the attention of each to all.

    With `post_norm` (BERT) it is added to the normalised tokens. A `mask` [B, N] tells the attention what is padding. With
    `only` the result has the token at that place alone, [B, D, 1].
    """
    y = _normalised(params, "norm1", tokens, protocols, eps)
    rest = protocols.rescaled(layer(params, "norm1"), y) if post_norm else tokens
    q, k, v, rest = _asking(params, y, rest, protocols, only)
    masked = {"mask": mask[0]} if mask else {}
    return rest + attended(layer(params, "attn1"), q, k, v, heads, protocols, **masked)


def causal_attention(params, tokens, *, protocols, heads, eps, places, only=None):
    """Add to tokens [B, D, N] the attention of each to itself and those before (GPT-2).

    Returns the tokens, and keys and values [B, D, places or N], with zeros at the places of tokens to come.
    """
    q, k, v, rest = _asking(params, _normalised(params, "norm1", tokens, protocols, eps), tokens, protocols, only)
    kept = np.tril(np.ones((tokens.shape[2],) * 2, np.float32))
    kept = kept if only is None else kept[only][None]
    among = (kept, *shares_among(kept.sum(1), kept.shape[1]))
    result = rest + attended(layer(params, "attn1"), q, k, v, heads, protocols, among=among)
    return result, *(padded(x, max(0, places - x.shape[2])) for x in (k, v))


def cached_attention(params, token, k, v, slot, kept, share, unit, *, protocols, heads, eps):
    """Add to one token [B, D, 1] its attention to itself and those before, whose keys and values [B, D, places] are there.

    `slot` [places] is 1 at the token's own place and 0 elsewhere, `kept` [1, places] is 1 at the places up to it, and `share`
    and `unit` [1] are those of their number (`shares_among`); all four are public. Returns the token, keys and values.
    """
    y = _normalised(params, "norm1", token, protocols, eps)
    q, *new = protocols.projections([layer(params, f"attn1.{name}") for name in _QKV], y, protocols=protocols)
    k, v = (placed(x, now, slot) for x, now in zip((k, v), new, strict=True))
    result = token + attended(layer(params, "attn1"), q, k, v, heads, protocols, among=(kept, share, unit))
    return result, k, v


_QKV = ("to_q", "to_k", "to_v")


def _asking(params, y, rest, protocols, only):
    """Queries, keys and values of normalised tokens y, and what is added to; of one token if `only` is its place."""
    layers = [layer(params, f"attn1.{name}") for name in _QKV]
    if only is None:
        return *protocols.projections(layers, y, protocols=protocols), rest
    place = only % y.shape[2]
    rest, asking = (x[:, :, place : place + 1] for x in (rest, y))
    k, v = protocols.projections(layers[1:], y, protocols=protocols)
    return *protocols.projections(layers[:1], asking, protocols=protocols), k, v, rest


def cross_attention(params, tokens, k, v, *, protocols, heads):
    """Add to tokens [B, D, N] their attention to the prompt, whose keys and values [B, D, M] `context` computed."""
    y = _normalised(params, "norm2", tokens, protocols)
    (q,) = protocols.projections([layer(params, "attn2.to_q")], y, protocols=protocols)
    return tokens + attended(layer(params, "attn2"), q, k, v, heads, protocols)


def feed_forward(params, tokens, *, protocols):
    """Add to tokens [B, D, N] a feed-forward network with a gated GELU: one half of a layer times the GELU of the other.

    GEGLU in diffusers.
    """
    y = _normalised(params, "norm3", tokens, protocols)
    projection = layer(params, "ff.net.0.proj")
    y = protocols.geglu(projection, protocols.linear(projection, y), protocols=protocols)
    return tokens + protocols.linear(layer(params, "ff.net.2"), y)


def plain_feed_forward(params, tokens, *, protocols, act_fn, eps=LAYER_NORM_EPS, post_norm=False):
    """Add to tokens [B, D, N] a feed-forward network with an activation; `post_norm` as in `self_attention`."""
    y = _normalised(params, "norm3", tokens, protocols, eps)
    rest = protocols.rescaled(layer(params, "norm3"), y) if post_norm else tokens
    inner = layer(params, "ff.net.0.proj")
    y = protocols.activation(inner, protocols.linear(inner, y), act_fn=act_fn, protocols=protocols)
    return rest + protocols.linear(layer(params, "ff.net.2"), y)


def transformer_out(params, tokens, hidden, *, protocols, linear_projection):
    """Project tokens [B, D, H W] and add them to the image hidden [B, C, H, W] that the transformer began with."""
    projection = layer(params, "proj_out")
    if linear_projection:
        return hidden + protocols.linear(projection, tokens).reshape(*hidden.shape)
    return hidden + protocols.conv2d(projection, tokens.reshape(*tokens.shape[:2], *hidden.shape[2:]))


def hint_conv(params, hint, *, protocols, stride, act_fn):
    """Convolve a ControlNet's hint [B, C, H, W], and apply the activation called `act_fn`, if it is not None."""
    y = protocols.conv2d(params, hint, stride=stride, padding=SAME)
    return y if act_fn is None else protocols.activation(params, y, act_fn=act_fn, protocols=protocols)


def zero_conv(params, hidden, *, protocols):
    """Convolve hidden [B, C, H, W] with a 1 x 1 kernel to what a ControlNet adds to a U-Net."""
    return protocols.conv2d(params, hidden)


def sum_of(params, value, added, *, protocols):
    """Return the sum of two values of one shape."""
    return value + added


def _normalised(params, name, tokens, protocols, eps=LAYER_NORM_EPS):
    return protocols.layer_norm(layer(params, name), tokens, eps=eps)


def attended(params, q, k, v, heads, protocols, kernel="softmax", **masked):
    """Attention of the queries [B, D, N] to keys and values [B, D, M], divided into heads, and its last projection."""
    batch, channels = q.shape[:2]
    size = channels // heads
    q, k, v = (x.reshape(batch, heads, size, -1) for x in (q, k, v))
    if kernel == "linear":
        y = protocols.linear_attention(params, q, k, v, scale=size**-0.5)
    else:
        y = protocols.attention(params, q, k, v, scale=size**-0.5, softmax=protocols.softmax, **masked)
    return protocols.linear(layer(params, "to_out.0"), y.reshape(batch, channels, -1))
