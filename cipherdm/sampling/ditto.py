"""Ditto's way to compute a BERT, a GPT-2 or a DiT: each layer in the ring that the paper gives it, with conversions between.

Linear layers, sums and the quadratic GELU are in the ring of 32 bits with 8 fraction bits, walked by the parties; the maximum
and the clip of softmax are there too, compared by SPU. Exponential, division and LayerNorm are SPU's, in the ring of 64 bits
with 18 fraction bits. Conversions are cuts: down by the 10 bits between, up by none, into a larger ring.

Source: Ditto (Wu et al., ICML 2024, arXiv 2405.05525). Differences: its DownCast and UpCast are one protocol here,
`kernels.cut`, with fewer bytes; products of matrices are walks, because SPU 0.9.5 crashes on them in 32 bits; and what is
below -14 is clipped there instead of set to 0 afterwards, which the exponential's last bit does not tell apart.
"""

from ..engine import Node
from ..kernels.ring_program import FULL, HALF
from ..models import DiTConfig, unet_blocks
from ..models.transformer import TransformerConfig, embeddings
from ..owner import WEIGHTS
from ..protocols import DIRECT, Protocols, direct
from . import ditto_functions as functions
from .ditto_functions import Plain, Walked

MORE_ROOM = "take fewer small_bits (dataclasses.replace(cipherdm.DITTO, small_bits=7)), or a model trained with bounds"
"""What to do where numbers leave the ring of 32 bits."""


def ditto_nodes(
    config: TransformerConfig,
    protocols: Protocols,
    *,
    ring: bool,
    embedded: bool,
    tokens: int = 1,
    places: int = 0,
    after: bool = False,
) -> list[Node]:
    """Return a transformer's run, from "onehot" or "embeddings" to "logits", as nodes.

    A BERT also reads "mask". A GPT-2 keeps keys and values as in `transformer_blocks`, in the ring of 32 bits, and `after`
    other tokens reads them as in `token_blocks`.

    Args:
        config: the transformer's.
        protocols: DITTO, or a set with other fraction bits for the ring of 64 (`walk_bits`) and that of 32 (`small_bits`).
        ring: True on three parties.
        embedded: whether the client shares embeddings.
        tokens, places, after: for a GPT-2.
    """
    made = _Builder(ring, protocols.small_bits, protocols.walk_bits)
    if not embedded:
        names = ("words", "positions")
        weights, static = [f"embeddings.{name}" for name in names], (("protocols", DIRECT),)
        inputs = ("onehot", "place") if after else ("onehot",)
        made.plain("embeddings", "embeddings", embeddings, weights, names, inputs, static)
    if config.kind == "gpt2":
        return made.language_model(config, tokens, places, after)
    made.walk("mask", "mask.small", functions.down, ("mask",), (made.large,))
    last = "embeddings"
    for index in range(config.layers):
        path, only = f"layers.{index}", config.read if index == config.layers - 1 else None
        y = made.normalised(path, "norm1", last, config.eps, large=index == 0)
        last = made.attention(path, y, y, config.heads, only=only, mask=("mask.small",))
        y = made.normalised(path, "norm3", last, config.eps)
        last = made.feed_forward(path, y, y)
    y = made.normalised("head", "norm", last, config.eps)
    made.walk("head", "head.pooled", functions.pooler, (y,), (made.small,), ("head.pooler",))
    made.up("head", "head.pooled")
    made.plain("head", "head.tanh", functions.tanh, (), (), ("head.pooled.large",))
    made.down("head", "head.tanh")
    made.walk("head", "head.logits", functions.classifier, ("head.tanh.small",), (made.small,), ("head.classifier",))
    made.walk("head", "logits", functions.up, ("head.logits",), (made.small,), large=True)
    return made.nodes


def ditto_step(config: DiTConfig, protocols: Protocols, *, ring: bool) -> list[Node]:
    """Return a DiT's call, from "sample" and the time terms to "eps", as nodes; arguments as those of `ditto_nodes`."""
    made = _Builder(ring, protocols.small_bits, protocols.walk_bits)
    by_name = {block.name: block for block in unet_blocks(config)}
    first = by_name["pos_embed"]
    names, full = zip(*first.params, strict=True)
    static = (*first.static, ("protocols", DIRECT))
    made.plain(first.name, first.name, first.function, full, names, first.inputs, static)
    made.down(first.name, first.name)
    last = f"{first.name}.small"
    for index in range(config.num_layers):
        path = f"transformer_blocks.{index}"
        for name, leaf in (("attn1", "norm1"), ("ff", "norm3")):
            block = by_name[f"{path}.{name}"]
            static, (*terms, gate) = dict(block.static), block.inputs[1:]
            y = made.normalised(path, leaf, last, static["eps"], terms=terms)
            gates = (made.down(block.name, gate),)
            if name == "attn1":
                last = made.attention(path, y, last, static["heads"], gates=gates)
            else:
                last = made.feed_forward(path, y, last, gates)
    end = by_name["proj_out_2"]
    sizes = dict(end.static)
    y = made.normalised("", "norm_out", last, sizes.pop("eps"), terms=end.inputs[1:])
    made.walk("", "eps.small", functions.patches_out, (y,), (made.small,), ("proj_out_2",), sizes.items())
    made.walk("", "eps", functions.up, ("eps.small",), (made.small,), large=True)
    return made.nodes


class _Builder:
    """Writes down nodes, in the order in which they run."""

    def __init__(self, ring: bool, small: int, large: int):
        self.nodes: list[Node] = []
        self.small, self.large = small, large  # fraction bits in the rings of 32 and of 64 bits
        self._ring = ring

    def language_model(self, config: TransformerConfig, tokens: int, places: int, after: bool) -> list[Node]:
        """Add GPT-2's layers and its head; return all nodes."""
        last, large = self.down("embeddings", "embeddings"), "embeddings"
        for index in range(config.layers):
            path, only = f"layers.{index}", tokens - 1 if index == config.layers - 1 else None
            y = self.normalised(path, "norm1", large or last, config.eps, large=bool(large))
            kept = (f"{path}.k", f"{path}.v")
            if after:
                way = (functions.cached_scores, (y, *kept, "slot", "kept"), (self.small,) * 3 + (0, 0), ())
            else:
                way = (functions.causal_scores, (y,), (self.small,), (("only", only), ("places", max(places, tokens))))
            last, large = self.attention(path, y, last, config.heads, only=only, kept=kept, way=way), None
            last = self.feed_forward(path, self.normalised(path, "norm3", last, config.eps), last)
        y = self.normalised("head", "norm", last, config.eps)
        self.walk("head", "head.logits", functions.language, (y,), (self.small,), ("head.lm_head",), leaves=("weight",))
        self.walk("head", "logits", functions.up, ("head.logits",), (self.small,), large=True)
        return self.nodes

    def attention(self, path, y, rest, heads, *, only=None, mask=(), gates=(), kept=(), way=None) -> str:
        """Add attention of normalised tokens y to `rest`, to all tokens or one that is read; return the name of the result.

        Scores are made in a `way` (function, inputs, bits and static values), which also returns keys and values to be `kept`.
        """
        name, weights = f"{path}.attn1", f"{path}.attn1.weights"
        layers = tuple(f"{name}.{each}" for each in ("to_q", "to_k", "to_v"))
        function, inputs, bits, static = way or (functions.scores, (y,), (self.small,), (("only", only),))
        made = (f"{name}.scores", *(kept or (f"{name}.values",)))
        self.walk(name, made, function, inputs, bits, layers, (("heads", heads), *static))
        self.plain(name, f"{name}.below", functions.below_maximum, (), (), (f"{name}.scores", *mask), small=True)
        self.up(name, f"{name}.below")
        self.plain(name, weights, functions.softmax, (), (), (f"{name}.below.large",))
        self.down(name, weights)
        inputs = (f"{weights}.small", made[-1], rest, *gates)
        bits = (self.small,) * len(inputs)
        self.walk(name, name, functions.mixed, inputs, bits, (f"{name}.to_out.0",), (("only", only),))
        return name

    def feed_forward(self, path: str, y: str, rest: str, gates: tuple[str, ...] = ()) -> str:
        """Add a feed-forward network on normalised tokens y to `rest`; return the name of the result."""
        name, inputs = f"{path}.ff", (y, rest, *gates)
        bits, layers = (self.small,) * len(inputs), (f"{name}.net.0.proj", f"{name}.net.2")
        self.walk(name, name, functions.feed_forward, inputs, bits, layers)
        return name

    def normalised(self, path: str, leaf: str, last: str, eps: float, *, terms=(), large: bool = False) -> str:
        """Add a LayerNorm in the ring of 64 bits, and shift and scale if there are `terms`.

        Returns the name of its result in the ring of 32 bits.
        """
        name = f"{path}.{leaf}".removeprefix(".")
        if not large:
            self.up(name, last)
            last = f"{last}.large"
        static = (("eps", eps),)
        if terms:
            self.plain(name, name, functions.modulated_norm, (), (), (last, *terms), static)
        else:
            weights = [f"{name}.{leaf}" for leaf in ("weight", "bias")]
            self.plain(name, name, direct.layer_norm, weights, ("weight", "bias"), (last,), static)
        return self.down(name, name)

    def up(self, label: str, name: str) -> str:
        """Add a conversion to the ring of 64 bits."""
        return self.walk(label, f"{name}.large", functions.up, (name,), (self.small,), large=True)

    def down(self, label: str, name: str) -> str:
        """Add a conversion to the ring of 32 bits."""
        return self.walk(label, f"{name}.small", functions.down, (name,), (self.large,))

    def walk(
        self, label, outputs, function, inputs, bits, layers=(), static=(), *, large=False, leaves=("weight", "bias")
    ) -> str:
        """Add a function of `Fixed` numbers, of layers with weights and biases, and of inputs with these fraction bits."""
        outputs = (outputs,) if isinstance(outputs, str) else outputs
        full = [f"{layer}.{leaf}" for layer in layers for leaf in leaves]
        start = len(label) + 1 if label else 0  # labels are the paths of the layers' names
        names = tuple(each[start:] for each in full)
        # Of weights, and of biases, which are added to products.
        known = (self.small, 2 * self.small)[: len(leaves)] * len(layers)
        result_bits, ring = (self.large, FULL) if large else (self.small, HALF)
        walked = Walked(function, names, (*known, *bits), self._ring, result_bits, tuple(static))
        self.nodes.append(
            Node(label or outputs[0], walked, (*(WEIGHTS + each for each in full), *inputs), outputs, ring)
        )
        return outputs[0]

    def plain(self, label, output, function, weights, names, inputs, static=(), *, small=False) -> None:
        """Add a function of arrays, which SPU computes."""
        node = Plain(function, tuple(names), tuple(static))
        self.nodes.append(
            Node(label, node, (*(WEIGHTS + each for each in weights), *inputs), (output,), HALF if small else FULL)
        )
