"""diffusers' DiTTransformer2DModel: a transformer over patches of the image, told step and label by its normalisations.

Tokens are [B, D, N], channels first, as in the transformers within U-Nets. A layer's shifts, scales and gates [b, D] depend
on weights, step and label alone, so they are values that time blocks write. Source: Peebles and Xie, arXiv 2212.09748.
"""

import numpy as np

from ..protocols.fixed import swapaxes
from . import blocks
from .blocks import attended, layer
from .building import Builder, conv_shapes, linear_shapes
from .config import DiTConfig

# Constants in diffusers: of the normalisations before attention and at the end, and of the embedding of the timestep.
_NORM_EPS = 1e-6
_WAVES = 256
POSITIONS = "pos_embed.pos_embed"


class DiTBuilder(Builder):
    """Walks the configuration of a DiT."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config

    def build(self) -> None:
        config, width = self.config, self.config.width
        patch = config.patch_size
        shapes = conv_shapes("proj", config.in_channels, width, patch)
        shapes["pos_embed"] = (1, (config.sample_size // patch) ** 2, width)
        name = "pos_embed"
        self.chain(name, "patches_in", patches_in, shapes, patch=patch)
        for index in range(config.num_layers):
            path = f"transformer_blocks.{index}"
            self.embedding(f"{path}.norm1")
            terms = [
                f"{path}.{norm}.{term}.time_term" for norm in ("norm1", "norm3") for term in ("shift", "scale", "gate")
            ]
            self.modulations(f"{path}.norm1.linear", f"{path}.norm1.emb", terms)

            shapes = {}
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes |= linear_shapes(f"attn1.{name}", width, width)
            self.modulated(
                path, "attn1", "self_attention", attention, "norm1", shapes, terms[:3], heads=config.num_attention_heads
            )
            shapes = linear_shapes("ff.net.0.proj", width, 4 * width) | linear_shapes("ff.net.2", 4 * width, width)
            self.modulated(path, "ff", "feed_forward", feed_forward, "norm3", shapes, terms[3:], act_fn=config.act_fn)
        terms = [f"norm_out.{term}.time_term" for term in ("shift", "scale")]
        self.modulations("proj_out_1", "transformer_blocks.0.norm1.emb", terms)
        shapes = linear_shapes("proj_out_2", width, patch**2 * config.out_channels)
        static = {"eps": _NORM_EPS, "patch": patch, "channels": config.out_channels}
        bare, inputs = (("norm_out", "norm_out"),), [self.last, *terms]
        self.chain(
            "proj_out_2",
            "patches_out",
            patches_out,
            shapes,
            inputs=inputs,
            output="eps",
            prefix="",
            bare=bare,
            **static,
        )

    def modulated(self, path, name, kind, function, norm, shapes, terms, **static) -> None:
        """Append a block that begins with a normalisation, whose shift and scale and the block's gate are `terms`."""
        static["eps"] = _NORM_EPS if norm == "norm1" else self.config.norm_eps
        bare = ((norm, f"{path}.{norm}"),)
        self.part(path, name, kind, function, shapes, inputs=[self.last, *terms], bare=bare, **static)

    def embedding(self, path: str) -> None:
        """Append the sum of a layer's embeddings of step and label."""
        width = self.config.width
        shapes = linear_shapes("linear_1", _WAVES, width) | linear_shapes("linear_2", width, width)
        pairs = {name: f"{path}.emb.timestep_embedder.{name}" for name in shapes}
        # The last row stands for no label.
        shapes["class_embedding.weight"] = (self.config.num_class_embeds + 1, width)
        pairs["class_embedding.weight"] = f"{path}.emb.class_embedder.embedding_table.weight"
        static = {"channels": _WAVES, "flip_sin_to_cos": True, "freq_shift": 1, "act_fn": "silu"}
        inputs, name = ["timestep", "class_onehot"], f"{path}.emb"
        block = self.block(name, "time_embedding", blocks.time_embedding, inputs, (name,), shapes, pairs, static)
        self.time_blocks.append(block)

    def modulations(self, name: str, embedding: str, terms: list[str]) -> None:
        """Append what makes shifts, scales and gates of an embedding."""
        shapes = linear_shapes("", self.config.width, len(terms) * self.config.width)
        pairs, static = {local: f"{name}.{local}" for local in shapes}, {"count": len(terms)}
        block = self.block(name, "time_projection", modulations, [embedding], terms, shapes, pairs, static)
        self.time_blocks.append(block)


def modulations(params, embedding, *, protocols, count):
    """Map an embedding [b, D] to `count` shifts, scales and gates [b, D]."""
    terms = blocks.time_projection(params, embedding, protocols=protocols, act_fn="silu")
    width = terms.shape[1] // count
    return tuple(terms[:, first : first + width] for first in range(0, count * width, width))


def patches_in(params, sample, *, protocols, patch):
    """Return tokens [B, D, N] of a sample [B, C, H, W]: a linear layer over each patch, and where it is."""
    tokens = protocols.conv2d(layer(params, "proj"), sample, stride=patch)
    return tokens.reshape(*tokens.shape[:2], -1) + swapaxes(params["pos_embed"], 1, 2)


def attention(params, tokens, shift, scale, gate, *, protocols, heads, eps):
    """Add to tokens [B, D, N] the attention of each to all, times a gate [b, D]."""
    y = _modulated(params, "norm1", tokens, shift, scale, protocols, eps)
    layers = [layer(params, f"attn1.{name}") for name in ("to_q", "to_k", "to_v")]
    q, k, v = protocols.projections(layers, y, protocols=protocols)
    return tokens + protocols.gated(attended(layer(params, "attn1"), q, k, v, heads, protocols), gate)


def feed_forward(params, tokens, shift, scale, gate, *, protocols, act_fn, eps):
    """Add to tokens [B, D, N] a feed-forward network, times a gate [b, D]."""
    y = _modulated(params, "norm3", tokens, shift, scale, protocols, eps)
    inner = layer(params, "ff.net.0.proj")
    y = protocols.activation(inner, protocols.linear(inner, y), act_fn=act_fn, protocols=protocols)
    return tokens + protocols.gated(protocols.linear(layer(params, "ff.net.2"), y), gate)


def patches_out(params, tokens, shift, scale, *, protocols, eps, patch, channels):
    """Return the predicted noise [B, C, H, W] of tokens [B, D, N]: a linear layer to each patch."""
    y = _modulated(params, "norm_out", tokens, shift, scale, protocols, eps)
    return pixels(protocols.linear(layer(params, "proj_out_2"), y), patch, channels)


def pixels(y, patch, channels):
    """Return y [B, patch patch C, N] as images [B, C, H, W]."""
    side = round(y.shape[2] ** 0.5)
    # Row and column within a patch, channel, row and column of the patch; then channel, and rows and columns of pixels.
    y = y.reshape(y.shape[0], patch, patch, channels, side, side)
    y = swapaxes(swapaxes(swapaxes(y, 1, 3), 2, 4), 4, 5)
    return y.reshape(y.shape[0], channels, side * patch, side * patch)


def positions(width: int, side: int) -> np.ndarray:
    """Return what is added to the tokens of side x side patches, float32 [1, N, D]: sines and cosines of column and row."""
    rows, columns = np.divmod(np.arange(side * side, dtype=np.float32), np.float32(side))
    of_both = [blocks.sinusoid(x, width // 2, flip_sin_to_cos=False, freq_shift=0) for x in (columns, rows)]
    return np.concatenate(of_both, axis=1)[None].astype(np.float32)


def _modulated(params, name, tokens, shift, scale, protocols, eps):
    return protocols.modulated(protocols.layer_norm(layer(params, name), tokens, eps=eps), shift, scale)
