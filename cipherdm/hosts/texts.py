"""Transformers with the roles in their own places: an owner registers one, and a client asks for the classes of its texts.

The client tokenises with its own copy of the tokenizer, which is public. The parties get shares, whose sizes depend on the
number of texts and of the tokens that each is filled up to, and on nothing else of them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..engine import Spec, compile_plan
from ..errors import CipherDMError, check_whole, refuse
from ..models.transformer import Transformer, TransformerConfig
from ..owner import WeightsLayout
from ..progress import Progress
from ..protocols import FAST, Protocols, named
from ..sampling import engine_for
from ..sampling.rings import walking_of
from ..sampling.texts import (
    STEP,
    Classification,
    TextShape,
    check_logits,
    classification_task,
    classified,
    text_values,
    tokenised,
)
from .model import Model
from .refusals import shown
from .remote import RemoteCluster

KIND = "text classification, version 1"


def classifying_model(
    name: str,
    model: Transformer,
    *,
    batch: int = 1,
    tokens: int | None = None,
    protocols: Protocols | str = FAST,
    granularity: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Return a transformer that clients can have texts classified by once it is registered.

    Public are the architecture, the number of texts of a run, the number of tokens of each, and the protocols.

    Args:
        name: name by which clients ask for it.
        model: a BERT with its tokenizer beside it, and the owner's `texts.txt`.
        batch: number of texts per run.
        tokens: number of tokens that each is filled up to; 32 by default, or as many as the model takes.
        protocols: protocol set, of the ring of 64 bits.
        granularity: see `cipherdm.classify`; "step" by default.
        progress: called before each program is compiled.

    Raises:
        CipherDMError: an argument that `cipherdm.classify` refuses.
    """
    protocols = named(protocols)
    check_whole("the number of texts", batch, 1)
    tokens = min(2 * STEP, model.config.tokens) if tokens is None else tokens
    refuse({f"{protocols.name} needs two rings of SPU, and hosts have one; take another set": protocols.small_bits})
    # What stands for a client's texts gives shapes, and is not sent.
    task = classification_task(model, ["."] * batch, tokens=tokens, protocols=protocols)
    nodes = task.shape.nodes(granularity or "step")
    walking = walking_of(task, nodes, progress)
    about = {
        "kind": KIND,
        "config": asdict(model.config),
        "protocols": protocols.name,
        "texts": batch,
        "tokens": tokens,
    }
    return Model(
        name,
        compile_plan(nodes, task.specs, keep=["logits"], walking=walking, progress=progress),
        task.owner,
        {name: Spec.of(np.asarray(array)) for name, array in task.client.items()},
        ("logits",),
        task.public,
        engine_for(protocols),
        about,
    )


def classes_of(
    cluster: RemoteCluster,
    name: str,
    texts: Sequence[str] | str,
    tokenizer: str | Path,
    progress: Progress | None = None,
) -> Classification:
    """Ask for the classes of texts by a registered model. Only this process sees texts and classes.

    Args:
        cluster: the three hosts, called as a client.
        name: name of the model.
        texts: as many as one run classifies, or a multiple.
        tokenizer: folder with the model's tokenizer.
        progress: see `RemoteCluster.request`.

    Raises:
        CipherDMError: the model is not there or takes other inputs, a text is too long, the tokenizer is not the model's, or
            the request fails.
    """
    texts, shape = [texts] if isinstance(texts, str) else list(texts), _described(cluster, name)
    if not texts or len(texts) % shape.batch:
        raise CipherDMError(
            f"{name} classifies {shape.batch} texts per run; give a multiple of that, not {len(texts)}."
        )
    ids, mask = tokenised(Transformer(shape.config, {}, Path(tokenizer)), texts, shape.tokens)
    logits, cost = [], None
    for first in range(0, len(texts), shape.batch):
        run = slice(first, first + shape.batch)
        answer = cluster.request(name, text_values(shape, ids[run], mask[run]), progress)
        logits.append(shape.decoded(answer.outputs["logits"]))
        cost = answer.cost if cost is None else cost + answer.cost
    found = np.concatenate(logits)
    check_logits(found, shape)
    if found.shape[1] != len(shape.config.labels):
        raise CipherDMError(
            f"{name} has {found.shape[1]} logits, and its description {len(shape.config.labels)} classes."
        )
    return classified(shape.config, found, cost)


def _described(cluster: RemoteCluster, name: str) -> TextShape:
    """Return the public shape of a registered model; its owner may have written anything."""
    model = cluster.model(name)
    try:
        about = json.loads(model.about)
        if about.get("kind") != KIND:
            takes = ", ".join(item.name for item in model.inputs)
            raise CipherDMError(f"{name} classifies no texts: it takes {takes}.")
        given = about["config"]
        counts = {field: int(given[field]) for field in ("vocab_size", "tokens")}
        config = TransformerConfig(**given | counts | {"labels": tuple(shown(str(label)) for label in given["labels"])})
        sizes, protocols = (int(about["texts"]), int(about["tokens"])), named(about["protocols"])
        shape = TextShape(config, protocols, WeightsLayout((), (), ()), *sizes, embedded=False, ring=True)
        declared = [tuple(item.shape) for item in model.inputs if item.name == "onehot"]
        if declared != [(shape.batch, config.vocab_size, shape.tokens)]:
            raise ValueError(f"it declares texts of {declared}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CipherDMError(
            f"{model.owner} has registered {name} with a description that cannot be read ({shown(str(error))}); "
            "ask for another model, or have it registered again."
        ) from None
    return shape
