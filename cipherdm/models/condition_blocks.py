"""The functions that only a UNet2DConditionModel is made of: its transformers, and what they attend to of the prompt.

They are written as those in `blocks`. Tokens are channels first too, [B, C, N], which is an image's own layout.
"""

from ..protocols.fixed import swapaxes
from .blocks import layer

# Constants in diffusers: neither is taken from the configuration.
GROUP_NORM_EPS = 1e-6
LAYER_NORM_EPS = 1e-5


def context(params, encoder_hidden_states, *, protocols):
    """Keys and values, each [B, D, tokens], of one cross-attention from the prompt's embedding [B, tokens, C].

    They depend on nothing but the prompt and the weights, so once is enough for all steps of a picture.
    """
    tokens = swapaxes(encoder_hidden_states, 1, 2)
    layers = [layer(params, name) for name in ("attn2.to_k", "attn2.to_v")]
    return protocols.projections(layers, tokens, protocols=protocols)


def transformer_in(params, hidden, *, protocols, groups, linear_projection):
    """hidden [B, C, H, W], normalised and projected to tokens [B, D, H W]. The beginning of Transformer2DModel in diffusers.

    The projection is a linear layer, or a convolution with a 1 x 1 kernel, which computes the same from a weight of
    another shape.
    """
    y = protocols.group_norm(layer(params, "norm"), hidden, groups=groups, eps=GROUP_NORM_EPS)
    projection = layer(params, "proj_in")
    if linear_projection:
        return protocols.linear(projection, y.reshape(*y.shape[:2], -1))
    y = protocols.conv2d(projection, y)
    return y.reshape(*y.shape[:2], -1)


def self_attention(params, tokens, *, protocols, heads):
    """tokens [B, D, N] plus attention of each to all."""
    y = _normalised(params, "norm1", tokens, protocols)
    layers = [layer(params, f"attn1.{name}") for name in ("to_q", "to_k", "to_v")]
    q, k, v = protocols.projections(layers, y, protocols=protocols)
    return tokens + _attention(params, "attn1", q, k, v, heads, protocols)


def cross_attention(params, tokens, k, v, *, protocols, heads):
    """tokens [B, D, N] plus their attention to the prompt, whose keys and values [B, D, M] `context` computed."""
    y = _normalised(params, "norm2", tokens, protocols)
    (q,) = protocols.projections([layer(params, "attn2.to_q")], y, protocols=protocols)
    return tokens + _attention(params, "attn2", q, k, v, heads, protocols)


def feed_forward(params, tokens, *, protocols):
    """tokens [B, D, N] plus a feed-forward network with a gated GELU: one half of a layer times the GELU of the other.

    GEGLU in diffusers.
    """
    y = _normalised(params, "norm3", tokens, protocols)
    projection = layer(params, "ff.net.0.proj")
    y = protocols.geglu(projection, protocols.linear(projection, y), protocols=protocols)
    return tokens + protocols.linear(layer(params, "ff.net.2"), y)


def transformer_out(params, tokens, hidden, *, protocols, linear_projection):
    """tokens [B, D, H W], projected and added to the image hidden [B, C, H, W] that the transformer began with."""
    projection = layer(params, "proj_out")
    if linear_projection:
        return hidden + protocols.linear(projection, tokens).reshape(*hidden.shape)
    return hidden + protocols.conv2d(projection, tokens.reshape(*tokens.shape[:2], *hidden.shape[2:]))


def _normalised(params, name, tokens, protocols):
    return protocols.layer_norm(layer(params, name), tokens, eps=LAYER_NORM_EPS)


def _attention(params, name, q, k, v, heads, protocols):
    """Attention of the queries [B, D, N] to keys and values [B, D, M], divided into heads, and its last projection."""
    batch, channels = q.shape[:2]
    size = channels // heads
    q, k, v = (x.reshape(batch, heads, size, -1) for x in (q, k, v))
    local = layer(params, name)
    y = protocols.attention(local, q, k, v, scale=size**-0.5, softmax=protocols.softmax)
    return protocols.linear(layer(local, "to_out.0"), y.reshape(batch, channels, -1))
