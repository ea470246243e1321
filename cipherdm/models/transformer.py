"""transformers' BertForSequenceClassification and GPT2LMHeadModel as JAX functions over their own weights.

Both are of one family with the transformers in U-Nets: `blocks.self_attention`, and a feed-forward network between two
normalisations. BERT adds to the normalised tokens, GPT-2 to the tokens before. Layers are named as diffusers names them
("layers.0.attn1.to_q"), so that an owner prepares them like those of U-Nets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ..approximations.softmax import PADDING
from ..errors import CipherDMError, refuse
from ..protocols import DIRECT, Protocols
from ..protocols.fast_attention import shares_among
from ..protocols.fixed import picked, swapaxes
from . import blocks
from .blocks import layer
from .building import Block
from .unet import run_blocks

_KINDS = {"BertForSequenceClassification": "bert", "GPT2LMHeadModel": "gpt2"}
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_quad")
_HEAD = "head"  # block that reads one token


@dataclass(frozen=True)
class TransformerConfig:
    """What of transformers' configuration the functions depend on. All of it is public."""

    kind: Literal["bert", "gpt2"]
    vocab_size: int
    width: int
    layers: int
    heads: int
    inner: int  # width of the feed-forward network within
    tokens: int  # the most of one text
    act_fn: str
    eps: float
    labels: tuple[str, ...] = ()  # names of the classes, for BERT

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any]) -> "TransformerConfig":
        """Read the contents of a folder's config.json. Raises CipherDMError for what is not supported."""
        names = values.get("architectures") or ["none"]
        kind = _KINDS.get(names[0])
        if kind is None:
            raise CipherDMError(f"the architecture is {names[0]}; supported are {' and '.join(_KINDS)}.")
        bert = kind == "bert"
        act_fn = values.get("hidden_act" if bert else "activation_function", "gelu" if bert else "gelu_new")
        labels = values.get("id2label") or {str(index): f"LABEL_{index}" for index in range(2)}
        problems = {
            "it has one label, and so no classes": bert and len(labels) < 2,
            "a text may have several of its labels": values.get("problem_type") == "multi_label_classification",
            f"its activation is {act_fn!r}, and supported are {', '.join(_ACTIVATIONS)}": act_fn not in _ACTIVATIONS,
            "it attends to another sequence (add_cross_attention)": bool(values.get("add_cross_attention")),
            "it is a decoder (is_decoder)": bert and bool(values.get("is_decoder")),
            "its positions are not absolute": values.get("position_embedding_type", "absolute") != "absolute",
            "its scores are not scaled as usual": not values.get("scale_attn_weights", True)
            or bool(values.get("scale_attn_by_inverse_layer_idx")),
        }
        refuse(problems, "this model cannot be computed here: ")
        try:
            width = values["hidden_size" if bert else "n_embd"]
            return cls(
                kind=kind,
                vocab_size=values["vocab_size"],
                width=width,
                layers=values["num_hidden_layers" if bert else "n_layer"],
                heads=values["num_attention_heads" if bert else "n_head"],
                inner=(values["intermediate_size"] if bert else values.get("n_inner")) or 4 * width,
                tokens=values["max_position_embeddings" if bert else "n_positions"],
                act_fn=act_fn,
                eps=values.get("layer_norm_eps" if bert else "layer_norm_epsilon", 1e-12 if bert else 1e-5),
                labels=tuple(labels[key] for key in sorted(labels, key=int)) if bert else (),
            )
        except KeyError as error:
            raise CipherDMError(f"the configuration lacks {error.args[0]}.") from error

    @property
    def read(self) -> int:
        """Place of the token that the head reads: the first one's, or the last one's."""
        return 0 if self.kind == "bert" else -1


@dataclass(frozen=True, eq=False)
class Transformer:
    """A transformer: its configuration, and its weights as float32 NumPy arrays under the names of `transformer_shapes`.

    `folder` is where it was read from, and has its tokenizer. Two are compared by identity.
    """

    config: TransformerConfig
    params: Mapping[str, np.ndarray]
    folder: Path | None = None


def transformer_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return the names of a transformer's weights with their shapes. Linear layers are [outputs, inputs]."""
    width = config.width
    shapes = {"embeddings.words": (config.vocab_size, width), "embeddings.positions": (config.tokens, width)}

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def linear(name: str, inside: int, outside: int) -> None:
        shapes.update({f"{name}.weight": (outside, inside), f"{name}.bias": (outside,)})

    for index in range(config.layers):
        path = f"layers.{index}"
        norm(f"{path}.norm1")
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            linear(f"{path}.attn1.{name}", width, width)
        norm(f"{path}.norm3")
        linear(f"{path}.ff.net.0.proj", width, config.inner)
        linear(f"{path}.ff.net.2", config.inner, width)
    norm(f"{_HEAD}.norm")
    if config.kind == "bert":
        linear(f"{_HEAD}.pooler", width, width)
        linear(f"{_HEAD}.classifier", width, len(config.labels))
    else:
        shapes[f"{_HEAD}.lm_head.weight"] = (config.vocab_size, width)
    return shapes


def transformer_blocks(config: TransformerConfig, *, every_token: bool = False, places: int = 0) -> tuple[Block, ...]:
    """Return the blocks in order of execution.

    The graph's inputs are "onehot" [B, V, N], or "embeddings" [B, D, N] where the client makes them, and for BERT "mask"
    [B, N] (`protocols.Protocols.attention`). Its output is "logits" [B, labels], or [B, V] for the token after the last.
    Only one token is read in the end, so the last layer computes that one alone, unless `every_token` is wanted: then
    "hidden" [B, D, N], all tokens after the last layer, is the output.

    GPT-2 also returns keys and values [B, D, places or N] of each layer, "layers.0.k" and so on.
    """
    written, last = _start(config), "embeddings"
    post = config.kind == "bert"
    for index in range(config.layers):
        path = f"layers.{index}"
        only = config.read if index == config.layers - 1 and not every_token else None
        name, static = f"{path}.attn1", {"eps": config.eps, "heads": config.heads, "only": only}
        if post:
            inputs, outputs, function = (last, "mask"), (name,), blocks.self_attention
            static["post_norm"] = True
        else:
            inputs, outputs, function = (last,), (name, f"{path}.k", f"{path}.v"), blocks.causal_attention
            static["places"] = places
        written.append(_block(config, name, "self_attention", function, inputs, outputs, ("norm1", "attn1"), static))
        written.append(_feed_forward(config, path, name))
        last = f"{path}.ff"
    return (*written, _end(config, last, every_token))


def token_blocks(config: TransformerConfig) -> tuple[Block, ...]:
    """Return the blocks for one token of GPT-2 after others, whose keys and values [B, D, places] are there.

    The inputs are "onehot" [B, V, 1] or "embeddings" [B, D, 1], for each layer its keys and values, which are also outputs,
    and the public "place" [T], "slot", "kept", "share" and "unit" (`blocks.cached_attention`); the output is "logits" [B, V].
    """
    written, last = _start(config, "place"), "embeddings"
    for index in range(config.layers):
        path = f"layers.{index}"
        name, cache = f"{path}.attn1", (f"{path}.k", f"{path}.v")
        inputs, static = (last, *cache, "slot", "kept", "share", "unit"), {"eps": config.eps, "heads": config.heads}
        function = blocks.cached_attention
        written.append(
            _block(config, name, "self_attention", function, inputs, (name, *cache), ("norm1", "attn1"), static)
        )
        written.append(_feed_forward(config, path, name))
        last = f"{path}.ff"
    return (*written, _end(config, last, every_token=False))


def place_of(position: int, places: int, tokens: int) -> dict[str, np.ndarray]:
    """Return the public inputs of `token_blocks` for a token at a position, counted from 0, of `places`, as float32."""
    arrays = {"place": np.arange(tokens) == position, "slot": np.arange(places) == position}
    arrays["kept"] = np.arange(places)[None] <= position
    arrays |= dict(zip(("share", "unit"), shares_among(np.array([position + 1]), places), strict=True))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _block(config, name, kind, function, inputs, outputs, parts, static, prefix=None) -> Block:
    """A block with the weights whose names begin with one of `parts`, under the path of the block's name."""
    path = name.rpartition(".")[0] if prefix is None else prefix
    begins = tuple(f"{path}.{part}" for part in parts)
    params = tuple((full[len(path) + 1 :], full) for full in transformer_shapes(config) if full.startswith(begins))
    return Block(name, kind, inputs, outputs, params, function, tuple(static.items()))


def _start(config: TransformerConfig, *place: str) -> list[Block]:
    name, function = "embeddings", embeddings
    return [_block(config, name, name, function, ("onehot", *place), (name,), ("",), {}, prefix=name)]


def _feed_forward(config: TransformerConfig, path: str, last: str) -> Block:
    static = {"eps": config.eps, "act_fn": config.act_fn} | ({"post_norm": True} if config.kind == "bert" else {})
    function = blocks.plain_feed_forward
    return _block(config, f"{path}.ff", "feed_forward", function, (last,), (f"{path}.ff",), ("norm3", "ff"), static)


def _end(config: TransformerConfig, last: str, every_token: bool) -> Block:
    static = {"eps": config.eps}
    if every_token:
        return _block(config, _HEAD, "norm", final_norm, (last,), ("hidden",), ("norm",), static, prefix=_HEAD)
    function = classifier_head if config.kind == "bert" else language_head
    return _block(config, _HEAD, _HEAD, function, (last,), ("logits",), ("",), static, prefix=_HEAD)


def embeddings(params, onehot, *place, protocols):
    """Return the tokens' embeddings [B, D, N], before a normalisation, of onehot [B, V, N].

    A product with one-hot columns picks from the table: indexing by a secret would reveal it. `place` [T], which is public, is
    1 at the position of a token that stands alone.
    """
    words = protocols.linear({"weight": swapaxes(params["words"], 0, 1)}, onehot)
    positions = swapaxes(params["positions"], 0, 1)[None]
    if not place:
        return words + positions[:, :, : onehot.shape[2]]
    return words + picked(positions, place[0])[..., None]


def classifier_head(params, token, *, protocols, eps):
    """Return logits [B, labels] of the first token [B, D, 1], normalised, through BERT's pooler and a linear layer."""
    y = protocols.layer_norm(layer(params, "norm"), token, eps=eps)
    pooler = layer(params, "pooler")
    y = protocols.activation(pooler, protocols.linear(pooler, y), act_fn="tanh", protocols=protocols)
    return protocols.linear(layer(params, "classifier"), y)[:, :, 0]


def language_head(params, token, *, protocols, eps):
    """Return logits [B, V] of the last token [B, D, 1]: its products with the words' embeddings."""
    y = protocols.layer_norm(layer(params, "norm"), token, eps=eps)
    return protocols.linear(layer(params, "lm_head"), y)[:, :, 0]


def final_norm(params, tokens, *, protocols, eps):
    """Normalise tokens [B, D, N] after the last layer."""
    return protocols.layer_norm(layer(params, "norm"), tokens, eps=eps)


def apply_transformer(
    config: TransformerConfig, params, ids, mask=None, *, every_token: bool = False, protocols: Protocols = DIRECT
):
    """Return logits [B, labels] or [B, V], or with `every_token` hidden [B, D, N], of token ids [B, N], in plaintext.

    Args:
        config: configuration of the model.
        params: the weights.
        ids: whole numbers [B, N].
        mask: [B, N], 1 for tokens and 0 for padding, for BERT; all are tokens by default.
        every_token: see `transformer_blocks`.
        protocols: a protocol set without an owner's preparation.
    """
    ids = np.asarray(ids)
    mask = np.ones(ids.shape) if mask is None else np.asarray(mask)
    values = {"onehot": jnp.asarray(one_hot_tokens(ids, config.vocab_size)), "mask": jnp.asarray(padding_of(mask))}
    result = run_blocks(transformer_blocks(config, every_token=every_token), params, values, protocols=protocols)
    return result["hidden" if every_token else "logits"]


def one_hot_tokens(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return token ids [B, N] as float32 columns [B, V, N] with a single one."""
    columns = np.zeros((ids.shape[0], vocab_size, ids.shape[1]), np.float32)
    np.put_along_axis(columns, ids[:, None], 1, axis=1)
    return columns


def padding_of(mask: np.ndarray) -> np.ndarray:
    """Return what `direct.attention` takes for a mask [B, N] of ones and zeros: 0 for a token, PADDING for what is none."""
    return ((1 - mask) * PADDING).astype(np.float32)
