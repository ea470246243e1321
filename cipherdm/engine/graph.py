"""Functions on named values: small graphs that run in plaintext, compile into one program, or become a plan of several."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .programs import Call, Plan, Spec, compile_program


@dataclass(frozen=True)
class Node:
    """A pure JAX function with the names of the values that it reads and writes.

    Attributes:
        label: the row of the cost report that it is booked on.
        function: takes and returns arrays (one, or a tuple of as many as there are outputs). It must be hashable, with
            equal functions computing the same, and have a `__name__`.
        inputs: names of its arguments.
        outputs: names of its results.
    """

    label: str
    function: Callable
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run. A graph is itself a function, so it can be a node's, or be jitted."""

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names that some node reads and no node before it writes, in order of first use."""
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
        """The outputs' values from the inputs' values, both in the order of the names."""
        values = dict(zip(self.inputs, arrays, strict=True))
        for node in self.nodes:
            results = node.function(*(values[name] for name in node.inputs))
            values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        return tuple(values[name] for name in self.outputs)

    def as_node(self, label: str | None = None) -> Node:
        """This graph as one node: one program when it is compiled."""
        return Node(label or self.name, self, self.inputs, self.outputs)


def compile_plan(nodes: Iterable[Node], specs: Mapping[str, Spec], keep: Iterable[str]) -> Plan:
    """Compile each node's function and list the calls, in order.

    Values that nodes write are freed after their last use, unless they are in `keep`. Programs of equal functions on
    equal shapes are compiled once.

    Args:
        nodes: what to run. A name that is written twice is overwritten.
        specs: shape, dtype and visibility of every value that is read before it is written.
        keep: names that must still be there when the plan has run.
    """
    specs = dict(specs)
    calls = []
    for node in nodes:
        program = compile_program(node.function, tuple(specs[name] for name in node.inputs))
        specs.update(zip(node.outputs, program.outputs, strict=True))
        calls.append(Call(program, node.inputs, node.outputs, node.label))
    return Plan(_with_frees(calls, frozenset(keep)))


def _with_frees(calls: list[Call], keep: frozenset[str]) -> tuple[Call, ...]:
    """Each call with the written values that no later call reads."""
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
