"""Transformers on texts: a class for each text, computed by three parties on shares or in plaintext.

The client tokenises its text and shares the tokens; the model owner shares the weights. Public are the architecture, the
number of texts, and the number of tokens that each is filled up to. What of them is padding is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..engine import CostReport, EngineConfig, Graph, LocalCluster, Node
from ..errors import CipherDMError, check_whole
from ..models.transformer import (
    Transformer,
    TransformerConfig,
    one_hot_tokens,
    padding_of,
    token_blocks,
    transformer_blocks,
)
from ..owner import WeightsLayout
from ..owner.transformers import INPUT_BITS, prepare_transformer
from ..progress import Progress
from ..protocols import DIRECT, Protocols, named
from ..protocols.fast_attention import token_weights
from ..protocols.fixed import decode, encode
from .ditto import MORE_ROOM, ditto_nodes
from .pipeline import read_captions
from .roles import Task, Values, owner_values
from .sample import jitted, run_nodes
from .steps import block_node

LARGEST_LOGIT = 1024.0  # beyond it a logit on shares is an overflow, if it shows at all
STEP = 16  # texts are filled up to a multiple of so many tokens, if nothing else is asked for
KNOWN = "texts.txt"  # file in a model's folder with texts that its owner knows, one per line


@dataclass(frozen=True)
class TextShape:
    """All that a transformer's functions depend on besides arrays. All of it is public."""

    config: TransformerConfig
    protocols: Protocols
    weights: WeightsLayout
    batch: int
    tokens: int
    embedded: bool  # True if the client shares embeddings, by a table that the owner published
    ring: bool = False
    places: int = 0  # of keys and values that are kept for tokens to come, by GPT-2
    after: bool = False  # True for one token after others
    steps: int = 1

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the results: the logits, and GPT-2's keys and values."""
        kept = range(self.config.layers) if self.config.kind == "gpt2" else ()
        return ("logits", *(f"layers.{index}.{name}" for index in kept for name in "kv"))

    def nodes(self, granularity: str) -> list[Node]:
        """Return the whole run as nodes. Raises CipherDMError for an unknown granularity."""
        if granularity not in ("block", "step"):
            raise CipherDMError(f"unknown granularity {granularity!r}: choose block, or step for one program.")
        if self.protocols.small_bits is not None:
            sizes = {"tokens": self.tokens, "places": self.places, "after": self.after}
            return ditto_nodes(self.config, self.protocols, ring=self.ring, embedded=self.embedded, **sizes)
        blocks = token_blocks(self.config) if self.after else transformer_blocks(self.config, places=self.places)
        nodes = [block_node(block, self) for block in blocks if not (self.embedded and block.kind == "embeddings")]
        return nodes if granularity == "block" else [Graph("transformer", tuple(nodes), self.outputs).as_node()]

    def encoded(self, values: Values) -> Values:
        """Real numbers as the parties are to hold them, with the fraction bits that belong to their names."""
        bits, small = self.protocols.value_bits, self.protocols.small_bits
        if small is not None:  # words of the ring of 32 bits: whole numbers, and keys and values
            held = {"slot": 0, "kept": 0} | dict.fromkeys(self.outputs[1:], small)
            engine = self.protocols.walk_bits
            return values | {n: encode(values[n], of, self.ring, engine) for n, of in held.items() if n in values}
        if bits is None:
            return values
        return {name: encode(array, INPUT_BITS.get(name, bits), self.ring) for name, array in values.items()}

    def decoded(self, logits: np.ndarray) -> np.ndarray:
        """Real numbers from logits as the parties hold them."""
        bits = self.protocols.value_bits
        return logits if bits is None else decode(logits, bits, self.ring)


@dataclass(frozen=True, eq=False)
class TextTask(Task):
    """A run of a transformer.

    `known` has texts of the owner's, "ids" and "mask" [K, N], and `table` the published embeddings of words [V, D] and
    positions [N, D], if they are.
    """

    known: Values = field(default_factory=dict)
    table: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def examples(self) -> Values:
        """The owner's texts, and the published table."""
        return self.known | ({} if self.table is None else dict(zip(("words", "positions"), self.table, strict=True)))

    def of_owner(self, seed: int) -> Values:
        """Return what a client would share of the owner's texts from the seed's on."""
        numbers = (seed + np.arange(self.shape.batch)) % len(self.known["ids"])
        return text_values(self.shape, *(self.known[name][numbers] for name in ("ids", "mask")), self.table)


@dataclass(frozen=True, eq=False)
class Classification:
    """What the client has after a run.

    Attributes:
        labels: the most likely class of each text, by the model's names.
        logits: float32 [B, classes].
        cost: cost of the run to the parties, without sharing and revealing; None for a run in plaintext.
        peak_memory: as in `SamplingResult`.
    """

    labels: tuple[str, ...]
    logits: np.ndarray
    cost: CostReport | None = None
    peak_memory: tuple[int, ...] = ()


def classify(
    model: Transformer,
    cluster: LocalCluster | None,
    texts: Sequence[str] | str,
    *,
    tokens: int | None = None,
    embedded: bool = False,
    protocols: Protocols | str = DIRECT,
    granularity: Literal["block", "step"] = "block",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> Classification:
    """Find the class of each text, secretly if there is a cluster.

    On a cluster the weights, the texts, how long each is, every intermediate value and the logits are secret-shared. Only the
    client puts the logits together, here. This function plays both roles, model owner and client.

    Args:
        model: a BertForSequenceClassification, by `load_transformer`.
        cluster: three parties, or None to compute here in plaintext with the same functions.
        texts: texts, or one.
        tokens: number of tokens that each text is filled up to, which is public; by default the next multiple of 16 above the
            longest text's.
        embedded: whether the owner has published its table of embeddings, so that the client shares rows of it instead
            of one-hot rows, which are far larger. Sets of FAST publish it in another unit, which calibration chose.
        protocols: protocol set that layers are computed with, or its name.
        granularity: part that becomes one program: each "block" (costs by block), or the whole "step".
        engine, progress: as in `cipherdm.sample`.

    Raises:
        CipherDMError: the model classifies nothing or has no tokenizer, a text is too long, numbers left the ring's range, or
            the cluster failed.
    """
    task = classification_task(
        model, texts, tokens=tokens, embedded=embedded, protocols=named(protocols), ring=cluster is not None
    )
    nodes = task.shape.nodes(granularity)
    if cluster is None:
        found = (task.decoded(in_plaintext(task)["logits"]),)
    else:
        found = run_nodes(task, nodes, "logits", cluster, engine=engine, progress=progress)
    check_logits(found[0], task.shape)
    return classified(model.config, *found)


def classified(config: TransformerConfig, logits: np.ndarray, *costs) -> Classification:
    """Return logits [B, classes] with the names of the most likely classes; the costs are those of `Classification`."""
    return Classification(tuple(config.labels[index] for index in logits.argmax(1)), logits, *costs)


def classification_task(
    model: Transformer,
    texts: Sequence[str] | str,
    *,
    tokens: int | None = None,
    embedded: bool = False,
    protocols: Protocols = DIRECT,
    ring: bool = True,
) -> TextTask:
    """Return what `classify` runs for the same arguments; `ring` is True for three parties. Errors are those of `classify`."""
    if model.config.kind != "bert":
        raise CipherDMError("this transformer continues texts, and has no classes: take cipherdm.generate.")
    ids, mask = tokenised(model, [texts] if isinstance(texts, str) else list(texts), tokens)
    known: Values = {}
    if protocols.significant_bits is not None and ring:
        known = dict(zip(("ids", "mask"), tokenised(model, known_texts(model), ids.shape[1], cut=True), strict=True))
    return text_task(model, ids, mask, embedded=embedded, protocols=protocols, ring=ring, known=known)


def text_task(
    model: Transformer,
    ids: np.ndarray,
    mask: np.ndarray,
    *,
    embedded: bool,
    protocols: Protocols,
    ring: bool,
    known: Values,
    calibration: Values | None = None,
    places: int = 0,
) -> TextTask:
    """Return a transformer's run on token ids and their mask, both [B, N].

    `known` are ids and masks of the owner's texts, `calibration` its fits, read from the model's folder by default, and
    `places` those of tokens to come.
    """
    weights, table = prepare_transformer(model, protocols, calibration), None
    if embedded:
        table = (weights.constant.pop("embeddings.words"), weights.constant.pop("embeddings.positions"))
    shape = TextShape(model.config, protocols, weights.layout, *ids.shape, embedded, ring, places=places)
    return TextTask(
        shape, owner_values(weights, shape), text_values(shape, ids, mask, table), {}, known=known, table=table
    )


def text_values(
    shape: TextShape, ids: np.ndarray, mask: np.ndarray, table: tuple[np.ndarray, np.ndarray] | None = None
) -> Values:
    """Return what the client shares of token ids and their mask, both [B, N]: one-hot columns, or embeddings, and the mask."""
    values: Values = {}
    if shape.config.kind == "bert":
        values["mask"] = padding_of(mask) if shape.protocols.value_bits is None else token_weights(mask)
    if table is not None:
        words, positions = table
        places = np.arange(ids.shape[1])
        if shape.config.kind == "bert":
            # At places of its own the text that fills up could have scores that no text has, where a head looks at places.
            places = places % mask.sum(1, dtype=int)[:, None]
        values["embeddings"] = np.float32((words[ids] + positions[places]).swapaxes(1, 2))
    else:
        values["onehot"] = one_hot_tokens(ids, shape.config.vocab_size)
    return shape.encoded(values)


def tokenised(
    model: Transformer, texts: Sequence[str], tokens: int | None, *, cut: bool = False, step: int = STEP
) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and mask [B, N] of texts, filled up to `tokens` or cut there; the mask is 1 for tokens, 0 for padding.

    Raises CipherDMError if there is no text, no tokenizer or one of another model, or a text is too long and not to be cut.
    """
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise CipherDMError("give at least one text, and no empty ones.")
    tokenizer = tokenizer_of(model)
    found = [tokenizer(text)["input_ids"] for text in texts]
    longest, most = max(map(len, found)), model.config.tokens
    if tokens is None:
        tokens = min(-(-longest // step) * step, most)
    check_whole("tokens", tokens, 1)
    if tokens > most:
        raise CipherDMError(f"this model has positions for {most} tokens, not for {tokens}.")
    if longest > tokens and not cut:
        long = texts[max(range(len(found)), key=lambda index: len(found[index]))]
        raise CipherDMError(
            f"a text has {longest} tokens, and there are places for {tokens}: shorten it"
            + (f", or ask for more, up to {most}" if tokens < most else "")
            + f". It begins {long[:40]!r}."
        )
    ids, mask = np.zeros((2, len(found), tokens), np.int64)
    for row, numbers in enumerate(found):
        if len(numbers) > tokens:
            numbers = [*numbers[: tokens - 1], numbers[-1]]  # the last one marks the end
        # What follows a text is the text again. Nobody reads it, and its values are as large as those of texts.
        ids[row], mask[row, : len(numbers)] = np.resize(numbers, tokens), 1
    if ids.max() >= model.config.vocab_size:
        raise CipherDMError(
            f"the tokenizer in {model.folder} knows token {ids.max()}, and the model has {model.config.vocab_size}: they are "
            "of different models. Copy both from one source."
        )
    return ids, mask


def tokenizer_of(model: Transformer) -> Any:
    """Return the tokenizer in a model's folder. Raises CipherDMError if there is none that can be read."""
    from transformers import AutoTokenizer

    if model.folder is None:
        raise CipherDMError(
            "this model was not read from a folder, so it has no tokenizer: save both to one, and load it."
        )
    try:
        if not any((model.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
            raise OSError
        return AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CipherDMError(
            f"{model.folder} has no tokenizer that can be read: copy tokenizer.json and tokenizer_config.json there."
        ) from error


def known_texts(model: Transformer) -> list[str]:
    """Return the texts that a model's owner keeps beside it. Raises CipherDMError if there are none."""
    path = None if model.folder is None else Path(model.folder) / KNOWN
    if path is None or not path.is_file():
        raise CipherDMError(
            f"{model.folder or 'this model'} has no {KNOWN}: write texts like those to come there, one per line."
        )
    return read_captions(path)


def in_plaintext(task: TextTask) -> dict[str, np.ndarray]:
    """Return the results of a task that was made with `ring=False`, as they are held."""
    graph = Graph("transformer", tuple(task.shape.nodes("block")), task.shape.outputs)
    values = task.owner | task.client | task.public
    found = jitted(graph)(*(values[name] for name in graph.inputs))
    return {name: np.asarray(array) for name, array in zip(graph.outputs, found, strict=True)}


def check_logits(logits: np.ndarray, shape: TextShape) -> None:
    """Raise CipherDMError if logits show that numbers left the range in which a set is right."""
    largest = np.abs(logits).max()
    if not np.isfinite(largest) or (shape.ring and largest > LARGEST_LOGIT):
        calibrated = "calibrate the model on texts like these (cipherdm.calibrate), or take direct"
        raise CipherDMError(
            f"the logits have values up to {largest:.4g}: numbers left the range in which the set {shape.protocols.name} "
            "computes. Look for the layer with `cipherdm check-ranges`, "
            f"{calibrated if shape.protocols.small_bits is None else MORE_ROOM}."
        )
