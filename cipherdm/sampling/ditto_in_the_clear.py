"""Ditto's steps in the clear: how large the words become that its cuts read, and what comes of numbers that do not fit.

Nothing tells parties that a number left the ring of 32 bits. So a model's owner looks beforehand, on inputs of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..engine import Node, Spec, Walking
from ..engine.graph import as_words
from ..kernels.narrow import sizes_of
from ..kernels.ring_program import FULL, HALF, RingProgram, WalkPlan
from ..protocols import Protocols
from .ditto_functions import Walked
from .rings import share_taken
from .roles import Task, Values


@dataclass(frozen=True, eq=False)
class Computed:
    """A step that was computed in the clear.

    Attributes:
        node: the step.
        results: its results, float64.
        walk: its plan if parties walk it, else None.
        sizes: largest size of words by the number of a value in the plan's program.
    """

    node: Node
    results: tuple[np.ndarray, ...]
    walk: WalkPlan | None = None
    sizes: Mapping[int, float] | None = None


def computed_steps(
    nodes: Sequence[Node], specs: Mapping[str, Spec], values: Values, protocols: Protocols, *, rounded: bool = False
) -> Iterator[Computed]:
    """Compute Ditto's steps one after the other: those of SPU on real numbers, and those that parties walk on words.

    Args:
        nodes: steps in the order in which they run, made for three parties.
        specs: shape and visibility of the values that are read before they are written.
        values: these values, as they would be shared.
        protocols: the set, with `small_bits`.
        rounded: whether words are whole numbers that wrap around as those of the ring do; without, they have no limit. A cut
            of the parties is wrong at times from a quarter of the ring on, these only from half of it on.
    """
    known, words = dict(specs), {n: as_words(np.asarray(array), protocols.walk_bits) for n, array in values.items()}
    for node in nodes:
        bits = protocols.small_bits if node.ring == HALF else protocols.walk_bits
        inputs, read = [words[name] for name in node.inputs], tuple(known[name] for name in node.inputs)
        if isinstance(node.function, Walked):
            program = Walking(protocols.walk_bits).read(node.function, read)
            walk = WalkPlan.in_rings(program, [spec.ring for spec in read], node.ring)
            program, inputs = _in_ring(walk, inputs) if rounded else (program, inputs)
            sizes, made = sizes_of(program, inputs)
            made = [array.astype(np.float64) for array in made]
        else:
            walk, sizes = None, None
            # Whole numbers, of steps, stay such.
            found = node.function(*(x if x.dtype.kind == "i" else np.float32(x * 2.0**-bits) for x in inputs))
            made = [np.float64(each) * 2.0**bits for each in (found if isinstance(found, tuple) else (found,))]
        words |= zip(node.outputs, made, strict=True)
        known |= {name: Spec(array.shape, ring=node.ring) for name, array in zip(node.outputs, made, strict=True)}
        yield Computed(node, tuple(array * 2.0**-bits for array in made), walk, sizes)


def _in_ring(walk: WalkPlan, inputs: Sequence[np.ndarray]) -> tuple[RingProgram, list[np.ndarray]]:
    """A walk's program and inputs in whole words of its ring; of 64 bits where a conversion begins or ends there."""
    kind, program = np.int64 if FULL in walk.bits else np.int32, walk.program
    constants = {number: array.astype(kind) for number, array in program.constants.items()}
    return replace(program, constants=constants), [np.round(array).astype(np.int64).astype(kind) for array in inputs]


def room_of_steps(task: Task, nodes: Sequence[Node], runs: Iterator[Values]) -> Iterator[tuple[str, int, float]]:
    """Yield for each walked step in each run its first result's name, its step of sampling, and what `share_taken` returns.

    Steps without cuts that count wraps, as conversions down are, are left out.
    """
    for values in runs:
        at = 0
        for done in computed_steps(nodes, task.specs, values, task.shape.protocols):
            at = next((int(name[5:]) for name in done.node.inputs if name.startswith("step.")), at)
            share = None if done.walk is None else share_taken(done.walk, done.sizes)
            if share is not None:
                yield done.node.outputs[0], at, share
