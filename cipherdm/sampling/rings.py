"""How large numbers become in a run that parties walk: what rings by value are planned from, and whether they hold it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from ..engine import Node, Plan, Walking, sizes_met
from ..engine.graph import as_words
from ..files import kept
from ..kernels.cut import Cut
from ..kernels.narrow import sizes_of
from ..kernels.ring_program import WalkPlan
from ..progress import Progress
from ..protocols import named
from .roles import Task, Values

IMAGES_MET = 20  # images that the owner draws, to see how large numbers become
STEPS_MET = 100  # of all images together, but at least 4 are drawn


def walking_of(task: Task, nodes: Sequence[Node], progress: Progress | None = None) -> Walking | None:
    """Return how parties walk a run, given by its nodes from the first step to the last; None if its protocols have no walk.

    Rings by value are planned by the model's owner, who draws images of its own, with captions of its own where the model takes
    prompts. Nothing of the client's is looked at.
    """
    protocols = task.shape.protocols
    if protocols.walk_bits is None:
        return None
    if protocols.significant_bits is None:
        return Walking(protocols.walk_bits)
    images = max(4, min(IMAGES_MET, STEPS_MET // task.shape.steps))

    def met() -> bytes:
        runs = drawn(task, range(0, images, task.shape.batch), progress, "planning rings")
        found = sizes_met(nodes, runs, task.specs, protocols.walk_bits)
        return json.dumps({digest: sorted(sizes.items()) for digest, sizes in found.items()}).encode()

    # Names say what nodes compute, and arrays on what, if the protocols are those of their name.
    known = named(protocols.name) == protocols
    made = kept(_digest(task, nodes, images), met) if known else met()
    sizes = {digest: dict(found) for digest, found in json.loads(made).items()}
    return Walking(protocols.walk_bits, protocols.significant_bits, sizes)


def _digest(task: Task, nodes: Sequence[Node], images: int) -> bytes:
    """Hash of all that an owner's drawing depends on."""
    names = [(node.label, node.inputs, node.outputs) for node in nodes]
    shape = replace(task.shape, protocols=task.shape.protocols.name, weights=None)
    digest = hashlib.sha256(repr((names, shape, images)).encode())
    arrays = task.owner | task.public | task.examples
    for name, array in sorted(arrays.items()):
        digest.update(repr((name, array.shape, str(array.dtype))).encode() + np.ascontiguousarray(array).tobytes())
    return digest.digest()


def drawn(task: Task, seeds: Sequence[int], progress: Progress | None, label: str) -> Iterator[Values]:
    """Yield the arrays of a run of the owner's for each seed."""
    for done, seed in enumerate(seeds):
        if progress is not None:
            progress(done, len(seeds), label)
        yield task.owner | task.public | task.of_owner(seed)


def room_taken(task: Task, plan: Plan, runs: Iterator[Values]) -> Iterator[tuple[str, int, float]]:
    """Yield for each call of a plan in each run its label, its step, and what `share_taken` returns.

    Calls without cuts that count wraps are left out, and so is what SPU computes and what depends on it.
    """

    @cache
    def read(code: bytes) -> WalkPlan:
        return WalkPlan.from_json(code.decode())

    fraction_bits = task.shape.protocols.walk_bits
    for arrays in runs:
        words = {name: as_words(np.asarray(array), fraction_bits) for name, array in arrays.items()}
        step = 0
        for call in plan.calls:
            if not call.program.walk or any(name not in words for name in call.inputs):
                for name in call.outputs:
                    words.pop(name, None)
                continue
            walk = read(call.program.code)
            sizes, results = sizes_of(walk.program, [words[name] for name in call.inputs])
            words |= dict(zip(call.outputs, results, strict=True))
            step = next((int(name[5:]) for name in call.inputs if name.startswith("step.")), step)
            share = share_taken(walk, sizes)
            if share is not None:
                yield call.label, step, share


def share_taken(walk: WalkPlan, sizes: Mapping[int, float]) -> float | None:
    """Return how much of its room a walk's cuts take at most, from the sizes of its values; None if no cut counts wraps.

    1 is all of it: a cut that counts wraps is wrong for numbers beyond a quarter of its ring.
    """
    cuts = (o for o in walk.program.operations if o.output in walk.cuts)
    kinds = ((o.inputs[0], Cut(walk.bits[o.inputs[0]], o.parameters["bits"], walk.bits[o.output])) for o in cuts)
    shares = [sizes[number] / 2.0 ** (cut.bits - 2) for number, cut in kinds if cut.wrap]
    return float(np.max(shares)) if shares else None
