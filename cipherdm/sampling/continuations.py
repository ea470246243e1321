"""Continuing a text with GPT-2: a token at a time, chosen by the client, computed by three parties on shares or in plaintext.

The parties keep the keys and values of all tokens as shares, so each further token is one short run. The client alone sees the
logits, takes the most likely token, and shares it anew. Public are the architecture, and how many tokens there are.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..engine import CostReport, EngineConfig, LocalCluster, Session, Spec, compile_plan
from ..errors import CipherDMError, check_whole
from ..kernels.ring_program import FULL, HALF
from ..models.transformer import Transformer, place_of
from ..owner import WEIGHTS
from ..progress import Progress
from ..protocols import DIRECT, Protocols, named
from ..protocols.fast import WEIGHT_BITS
from ..protocols.fixed import decode
from .rings import walking_of
from .roles import Values
from .sample import engine_for
from .texts import (
    TextTask,
    check_logits,
    in_plaintext,
    known_texts,
    text_task,
    text_values,
    tokenised,
    tokenizer_of,
)


@dataclass(frozen=True, eq=False)
class Continuation:
    """What the client has after a run.

    Attributes:
        text: what follows the prompt.
        ids: its tokens.
        logits: float32 [tokens, V], from which each was taken.
        costs: cost of the prompt's run and of each further token's; empty for a run in plaintext.
    """

    text: str
    ids: tuple[int, ...]
    logits: np.ndarray
    costs: tuple[CostReport, ...] = ()


def generate(
    model: Transformer,
    cluster: LocalCluster | None,
    prompt: str,
    *,
    tokens: int = 8,
    embedded: bool = False,
    protocols: Protocols | str = DIRECT,
    granularity: Literal["block", "step"] = "step",
    engine: EngineConfig | None = None,
    progress: Progress | None = None,
) -> Continuation:
    """Continue a text with its most likely tokens, secretly if there is a cluster.

    Args:
        model: a GPT2LMHeadModel, by `load_transformer`.
        cluster: three parties, or None to compute here in plaintext with the same functions.
        prompt: text to continue. How many tokens it has is public.
        tokens: number of tokens to add.
        embedded, protocols, granularity, engine, progress: as in `classify`.

    Raises:
        CipherDMError: the model continues nothing or has no tokenizer, there are too many tokens, numbers left the ring's
            range, or the cluster failed.
    """
    chosen, tokenizer = named(protocols), tokenizer_of(model)
    first, after = continuation_tasks(
        model, prompt, tokens, embedded=embedded, protocols=chosen, ring=cluster is not None
    )
    count = first.shape.tokens
    if cluster is None:
        runs = _plaintext(first, after)
    else:
        session = cluster.session(engine_for(chosen) if engine is None else engine)
        runs = _on_parties(first, after, session, granularity, progress)
    ids, found, costs = [], [], []
    with closing(runs):
        logits, cost = next(runs)
        while True:
            check_logits(logits, first.shape)
            found.append(logits[0])
            ids.append(int(logits[0].argmax()))
            costs += [] if cost is None else [cost]
            if len(ids) == tokens:
                break
            logits, cost = runs.send(token_values(after, ids[-1], count + len(ids) - 1))
    return Continuation(tokenizer.decode(ids), tuple(ids), np.stack(found), tuple(costs))


def continuation_tasks(
    model: Transformer,
    prompt: str,
    tokens: int,
    *,
    embedded: bool = False,
    protocols: Protocols = DIRECT,
    ring: bool = True,
) -> tuple[TextTask, TextTask]:
    """Return what `generate` runs for a prompt, and for a token after it."""
    if model.config.kind != "gpt2":
        raise CipherDMError("this transformer finds classes of texts, and continues none: take cipherdm.classify.")
    check_whole("tokens", tokens, 1)
    count = len(tokenised(model, [prompt], None, step=1)[0][0])
    places = count + tokens - 1  # nobody asks what follows the last one
    if places > model.config.tokens:
        raise CipherDMError(
            f"the prompt has {count} tokens, and {tokens} more do not fit {model.config.tokens} places."
        )
    ids, mask = tokenised(model, [prompt], count)
    known: Values = {}
    if protocols.significant_bits is not None and ring:
        known = {"ids": tokenised(model, known_texts(model), places, cut=True)[0]}
    settings = {"embedded": embedded, "protocols": protocols, "ring": ring, "known": known, "places": places}
    task = text_task(model, ids, mask, **settings)
    shape, owner, table = task.shape, task.owner, task.table
    task = _PromptTask(shape, owner, task.client, {}, known=known, table=table)
    alone = replace(shape, tokens=1, after=True)
    later = _TokenTask(alone, owner, {}, {}, known=known, table=table, begun=count)
    client, public = token_values(later, 0, places - 1)
    return task, replace(later, client=client, public=public)


class _PromptTask(TextTask):
    """The run of a prompt."""

    def of_owner(self, seed: int) -> Values:
        """Return what a client would share of the beginning of one of the owner's texts."""
        ids = self.known["ids"][[seed % len(self.known["ids"])], : self.shape.tokens]
        return text_values(self.shape, ids, np.ones_like(ids), self.table)


@dataclass(frozen=True, eq=False)
class _TokenTask(TextTask):
    """The run of a token after others, of which there are `begun` at first."""

    begun: int = 1

    def of_owner(self, seed: int) -> Values:
        """Return what a client would share, and parties hold, at some place of one of the owner's texts."""
        ids, places = self.known["ids"][seed % len(self.known["ids"])], self.shape.places
        place = self.begun + seed % (places - self.begun)
        whole = replace(self.shape, after=False, tokens=places, ring=False)
        bits = dict(self.shape.weights.bits)
        names = {name: name.removeprefix(WEIGHTS) for name in self.owner}
        owner = {name: decode(self.owner[name], bits.get(names[name], WEIGHT_BITS), self.shape.ring) for name in names}
        values = text_values(whole, ids[None, :places], np.ones((1, places)), self.table)
        caches = in_plaintext(TextTask(whole, owner, values, {}))
        kept = {name: caches[name] * (np.arange(places) < place) for name in self.shape.outputs[1:]}
        client, public = token_values(self, int(ids[place]), place)
        return client | public | self.shape.encoded(kept)

    @property
    def specs(self) -> dict[str, Spec]:
        """Specs of the values, and of the keys and values that parties have from the runs before."""
        ring = FULL if self.shape.protocols.small_bits is None else HALF
        held = Spec((1, self.shape.config.width, self.shape.places), ring=ring)
        return super().specs | dict.fromkeys(self.shape.outputs[1:], held)


def token_values(task: TextTask, token: int, place: int) -> tuple[Values, Values]:
    """Return what the client shares for a token at a place, and what is public."""
    shape = task.shape
    table = task.table and (task.table[0], task.table[1][[place]])
    values = text_values(shape, np.array([[token]]), np.ones((1, 1)), table)
    public = place_of(place, shape.places, shape.config.tokens)
    return values, shape.encoded(
        {name: array for name, array in public.items() if name != "place" or not shape.embedded}
    )


Runs = Generator[tuple[np.ndarray, CostReport | None], tuple[Values, Values], None]
"""Yields the logits of each run with its cost, and is sent what the client shares for the next one, and what is public."""


def _plaintext(first: TextTask, after: TextTask) -> Runs:
    found = in_plaintext(first)
    while True:
        client, public = yield first.decoded(found["logits"]), None
        kept = {name: found[name] for name in first.shape.outputs[1:]}
        found = in_plaintext(replace(after, client=client | kept, public=public))


def _on_parties(
    first: TextTask, after: TextTask, session: Session, granularity: str, progress: Progress | None
) -> Runs:
    keep, names = first.shape.outputs, {*first.specs, *after.specs, *first.shape.outputs}
    plans = []
    for task in (first, after)[: 1 + (after.shape.places > first.shape.tokens)]:
        nodes = task.shape.nodes(granularity)
        walking = walking_of(task, nodes, progress)
        plans.append(compile_plan(nodes, task.specs, keep=keep, walking=walking, progress=progress))
    with session.alone():
        try:
            first.share(session)
            while True:
                cost = session.run(plans[0], progress)
                client, public = yield first.decoded(session.reveal("logits")), cost
                plans = plans[-1:]
                session.share(client)
                session.share(public, public=True)
        finally:
            if not session.closed:
                session.delete(names)
