"""Graphs of functions on named values, which run in plaintext, compile into one program, or become a plan of several."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..errors import CipherDMError
from ..kernels.narrow import sizes_of
from ..kernels.ring_program import FULL
from ..progress import Progress
from .programs import Call, Plan, Spec, Walking, compile_program, compile_walk, read_walk


@dataclass(frozen=True)
class Node:
    """A pure JAX function with the names of the values that it reads and writes.

    Attributes:
        label: row of the cost report for its costs.
        function: function of arrays that returns an array, or a tuple of as many as there are outputs. It must be hashable
            and have a `__name__`, and equal functions must compute the same.
        inputs: names of its arguments.
        outputs: names of its results.
        ring: bits of the ring of the results, 64 or 32; SPU computes the function in it.
    """

    label: str
    function: Callable
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ring: int = 64


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run. A graph is itself a function, so it can be a node's function or be jitted."""

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that some node reads and no node before it writes, in order of first use."""
        written: set[str] = set()
        read: dict[str, None] = {}
        for node in self.nodes:
            read.update(dict.fromkeys(name for name in node.inputs if name not in written))
            written.update(node.outputs)
        return tuple(read)

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *arrays) -> tuple:
        """Compute the values of the outputs from those of the inputs, both in the order of the names."""
        values = dict(zip(self.inputs, arrays, strict=True))
        for node in self.nodes:
            results = node.function(*(values[name] for name in node.inputs))
            values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        return tuple(values[name] for name in self.outputs)

    def as_node(self, label: str | None = None) -> Node:
        """Return this graph as one node, which compiles to one program."""
        return Node(label or self.name, self, self.inputs, self.outputs)


def compile_plan(
    nodes: Iterable[Node],
    specs: Mapping[str, Spec],
    keep: Iterable[str],
    *,
    files: Iterable[str] = (),
    walking: Walking | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Compile each node's function and list the calls in order.

    Values that nodes write are freed after their last use, unless they are in `keep`. Equal functions of equal shapes are
    compiled once.

    Args:
        nodes: nodes in the order in which they run. A name that is written twice is overwritten.
        specs: shape, dtype and visibility of every value that is read before it is written.
        keep: names that must still be there when the plan has run.
        files: names that are moved to the parties' files when they are written, and loaded for each call that reads them.
        walking: how the parties walk all functions that neither compare nor divide; None to have SPU compute all.
        progress: called before each function is compiled, with a label that begins with "compiling". It counts different
            functions, because input shapes are known only after the functions before have been compiled. Functions compiled
            earlier in this process are done at once.
    """
    nodes, specs, in_files = tuple(nodes), dict(specs), frozenset(files)
    functions = len({node.function for node in nodes})
    begun: dict[Callable, set[tuple[Spec, ...]]] = {}
    calls, walked = [], {}
    for node in nodes:
        begun_for = begun.setdefault(node.function, set())
        node_specs = tuple(specs[name] for name in node.inputs)
        if progress is not None and node_specs not in begun_for:
            progress(len(begun) - 1, functions, f"compiling {node.label}")
        begun_for.add(node_specs)
        if walking is not None and walking.read(node.function, node_specs) is not None:
            if (asked := (node.function, node_specs, node.ring)) not in walked:
                walked[asked] = compile_walk(node.function, node_specs, walking, node.ring)
            program = walked[asked]
        else:
            program = compile_program(node.function, node_specs, node.ring)
        specs.update(zip(node.outputs, program.outputs, strict=True))
        moved = tuple(name for name in node.outputs if name in in_files)
        small = node.ring != FULL and not program.walk
        calls.append(Call(program, node.inputs, node.outputs, node.label, small, files=moved))
    return Plan(_with_frees(calls, frozenset(keep)))


def sizes_met(
    nodes: Iterable[Node], runs: Iterable[Mapping[str, np.ndarray]], specs: Mapping[str, Spec], fraction_bits: int
) -> dict[str, dict[int, float]]:
    """Return the sizes of words that walks of some runs meet, as `Walking` takes them.

    What SPU computes is not followed, and neither is what depends on it.

    Args:
        nodes: nodes in the order in which they run.
        runs: for each run the arrays that are read before they are written, as they would be shared.
        specs: their specs.
        fraction_bits: fraction bits of the engine.

    Raises:
        CipherDMError: a number is not finite.
    """
    nodes = tuple(nodes)
    found: dict[str, dict[int, float]] = {}
    for arrays in runs:
        values = {name: as_words(np.asarray(array), fraction_bits) for name, array in arrays.items()}
        known = dict(specs)
        for node in nodes:
            program = None
            if all(name in values for name in node.inputs):
                inputs = tuple(known[name] for name in node.inputs)
                program = read_walk(node.function, inputs, fraction_bits, by_value=True)
            if program is None:
                for name in node.outputs:
                    values.pop(name, None)
                continue
            sizes, results = sizes_of(program, [values[name] for name in node.inputs])
            so_far = found.setdefault(program.digest, {})
            if not np.isfinite(list(sizes.values())).all():
                raise CipherDMError(
                    f"numbers of {node.label} are too large to plan rings for; calibrate the model, or take fast"
                )
            so_far.update({number: max(size, so_far.get(number, 0.0)) for number, size in sizes.items()})
            values.update(zip(node.outputs, results, strict=True))
            known.update(zip(node.outputs, (Spec(result.shape) for result in results), strict=True))
    return found


def as_words(array: np.ndarray, fraction_bits: int) -> np.ndarray:
    """Return the words that the engine makes of an array: float64 of real numbers, not rounded, and int64 of whole ones."""
    return array.astype(np.float64) * 2.0**fraction_bits if array.dtype.kind == "f" else array.astype(np.int64)


def _with_frees(calls: list[Call], keep: frozenset[str]) -> tuple[Call, ...]:
    """Add to each call the written values that no later call reads."""
    written = {name for call in calls for name in call.outputs}
    needed: set[str] = set(keep)
    marked = []
    for call in reversed(calls):
        # A name written again later is needed only from that writing on, so writing ends its need going backwards.
        frees = [name for name in (*call.inputs, *call.outputs) if name in written and name not in needed]
        needed.difference_update(call.outputs)
        needed.update(call.inputs)
        marked.append(replace(call, frees=tuple(dict.fromkeys(frees))))
    return tuple(reversed(marked))
