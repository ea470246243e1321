"""The functions of a protocol set that a block calls, with shapes, and each call as a function that runs by itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from jax.interpreters.batching import BatchTracer

from cipherdm.engine import Graph, Spec
from cipherdm.protocols import Protocols
from cipherdm.protocols.fixed import Fixed
from cipherdm.sampling.steps import BlockFunction


@dataclass(frozen=True)
class Slot:
    """Place of an array among a call's arguments: as it is, or as a `Fixed` number with so many fraction bits."""

    bits: int | None = None
    ring: bool = False

    def filled(self, array):
        """Return the argument that an array stands for."""
        return array if self.bits is None else Fixed.load(array, self.bits, self.ring)


@dataclass(frozen=True)
class CallFunction:
    """One call of a protocol as a function of the arrays in its arguments, all else being fixed; equal calls are equal.

    `structure` is the nesting of the arguments (a JAX tree), and `leaves` are the arguments, with a `Slot` for each array.
    """

    function: Callable
    structure: Any
    leaves: tuple[Any, ...]

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __call__(self, *arrays):
        rest = iter(arrays)
        leaves = [leaf.filled(next(rest)) if isinstance(leaf, Slot) else leaf for leaf in self.leaves]
        args, kwargs = jax.tree_util.tree_unflatten(self.structure, leaves)
        results = self.function(*args, **kwargs)
        several = results if isinstance(results, tuple) else (results,)
        stored = tuple(result.store() if isinstance(result, Fixed) else result for result in several)
        return stored if isinstance(results, tuple) else stored[0]


@dataclass(frozen=True)
class ProtocolCall:
    """A call that a block made of a field of `Protocols`."""

    name: str  # the field
    function: CallFunction
    inputs: tuple[Spec, ...]
    inner: "tuple[ProtocolCall, ...]" = ()  # calls that this one made, such as a softmax within attention


def calls_of(graph: Graph, specs: Mapping[str, Spec]) -> dict[str, tuple[ProtocolCall, ...]]:
    """Return the calls of each node of a step, by the node's label, found by tracing it on shapes alone."""
    specs = dict(specs)
    found = {}
    for node in graph.nodes:
        outputs, calls = _trace(node.function, [specs[name] for name in node.inputs])
        specs.update(zip(node.outputs, outputs, strict=True))
        found[node.label] = calls
    return found


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A protocol's function that writes down its calls, those that a call has made so far in the last list of `log`."""

    name: str
    function: Callable
    protocols: Protocols
    log: list[list[ProtocolCall]]

    def __call__(self, *args, **kwargs):
        self.log.append([])
        result = self.function(*args, **kwargs)
        inner = tuple(self.log.pop())
        self.log[-1].append(self._described(args, kwargs, inner))
        return result

    def _described(self, args, kwargs, inner: tuple[ProtocolCall, ...]) -> ProtocolCall:
        leaves, structure = jax.tree_util.tree_flatten((args, kwargs), is_leaf=lambda x: x is None)
        fixed, inputs = [], []
        for leaf in leaves:
            array = leaf.array if isinstance(leaf, Fixed) else leaf
            if isinstance(array, jax.Array | np.ndarray):
                # What a `Fixed` number holds is stored as float32, see its `load`.
                dtype = "float32" if isinstance(leaf, Fixed) else str(array.dtype)
                inputs.append(Spec(tuple(array.shape), dtype, not isinstance(array, BatchTracer)))
                fixed.append(Slot(leaf.bits, leaf.ring) if isinstance(leaf, Fixed) else Slot())
            elif isinstance(leaf, _Recorded):
                fixed.append(leaf.function)
            else:
                fixed.append(self.protocols if isinstance(leaf, Protocols) else leaf)
        return ProtocolCall(self.name, CallFunction(self.function, structure, tuple(fixed)), tuple(inputs), inner)


def _trace(function: Callable, specs: Sequence[Spec]) -> tuple[list[Spec], tuple[ProtocolCall, ...]]:
    """Return the specs of a function's outputs, and its calls of protocols."""
    log: list[list[ProtocolCall]] = [[]]
    if isinstance(function, BlockFunction):
        functions = {item.name: getattr(function.protocols, item.name) for item in fields(Protocols)}
        recorded = {name: _Recorded(name, f, function.protocols, log) for name, f in functions.items() if callable(f)}
        function = replace(function, protocols=replace(function.protocols, **recorded))
    outputs: list[Spec] = []

    def described(*arrays):
        results = function(*arrays)
        for result in results if isinstance(results, tuple) else (results,):
            outputs.append(Spec(tuple(result.shape), str(result.dtype), not isinstance(result, BatchTracer)))
        return results

    # Secret arrays get a batch axis that `vmap` takes off again: what depends on them is a `BatchTracer`.
    axes = tuple(None if spec.public else 0 for spec in specs)
    batched = described if all(spec.public for spec in specs) else jax.vmap(described, in_axes=axes)
    shapes = [spec.shape if spec.public else (1, *spec.shape) for spec in specs]
    structs = [jax.ShapeDtypeStruct(shape, spec.dtype) for shape, spec in zip(shapes, specs, strict=True)]
    jax.eval_shape(batched, *structs)
    return outputs, tuple(log[0])
