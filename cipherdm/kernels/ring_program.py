"""A function on words of the ring as a list of operations that parties can compute on their shares by themselves.

`trace` reads the same JAX function that SPU compiles, where it neither compares nor divides, and makes of it data movement,
sums, products of secrets, and truncations. A party needs no JAX to compute them. Values are secret, or public arguments and
what follows from them, or constants. One definition of what is local (`local`) serves words in the clear, public values, and a
party's components.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import CipherDMError
from .cut import Cut
from .shapes import check_shape
from .shares import PARTIES

FULL, HALF = 64, 32
RESULTS = (FULL, HALF)  # bits of the rings of results, which SPU computes on too

MOVES = frozenset(("reshape", "broadcast", "slice", "dynamic_slice", "transpose", "concatenate", "pad"))
SUMS = frozenset(("add", "subtract", "negate", "sum", "shift", "less", "select"))
PRODUCTS = frozenset(("multiply", "matmul", "conv2d"))
_WITH_PUBLIC = frozenset(("dynamic_slice", "scale", "offset"))  # of a secret and public values
_KINDS = MOVES | SUMS - {"less", "select"} | PRODUCTS | {"scale", "offset", "share", "truncate"}  # of secrets


@dataclass(frozen=True)
class Operation:
    """One operation: what it computes, on which values, and public parameters.

    Attributes:
        kind: one of MOVES, of SUMS ("sum" over axes, "shift" to the left by bits; "less" and "select" of public values), of
            PRODUCTS of secrets; "scale" by a public value; "offset", plus a public value; "share", a public value as shares;
            "truncate" by bits.
        inputs: numbers of the values that it reads.
        output: number of the value that it makes.
        shape: shape of that value.
        parameters: numbers, and lists of them.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RingProgram:
    """Operations in an order in which each reads only what is there.

    Attributes:
        operations: the operations.
        shapes: shape of each value, by number.
        inputs: numbers of the arguments, in order.
        outputs: numbers of the results, in order; all of them secret.
        public: numbers of public values, constants among them.
        constants: int64 arrays by number.
    """

    operations: tuple[Operation, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    public: frozenset[int]
    constants: Mapping[int, np.ndarray]

    def __post_init__(self):
        there, made = {*self.inputs, *self.constants}, [*self.inputs, *self.constants]
        for operation in self.operations:
            made.append(operation.output)
            if not there.issuperset(operation.inputs):
                raise CipherDMError(f"operation {operation.output} reads what is not there yet")
            there.add(operation.output)
            kind, secret = operation.kind, [number not in self.public for number in operation.inputs]
            public = kind != "share" and not any(secret)
            first, rest = {"share": (False, False)}.get(kind, (True, kind not in _WITH_PUBLIC))
            wanted = [first] + [rest] * (len(secret) - 1)
            known = kind in MOVES | SUMS if public else kind in _KINDS and secret == wanted
            if public != (operation.output in self.public) or not known:
                raise CipherDMError(f"operation {operation.output} is none that a walk computes on such values")
            check_shape(kind, [self.shapes[n] for n in operation.inputs], operation.shape, operation.parameters)
            if operation.shape != self.shapes[operation.output]:
                raise CipherDMError(f"operation {operation.output} has two shapes")
        if not self.public.issuperset(self.constants):
            raise CipherDMError("a constant of a program is secret")
        # Masks are drawn by the number of a value, so no two operations may have the same.
        if len(set(made)) != len(made) or not set(made) <= set(range(len(self.shapes))):
            raise CipherDMError("a program has two values of one number, or numbers without a shape")
        if not there.issuperset(self.outputs) or not self.public.isdisjoint(self.outputs):
            raise CipherDMError("a result of a program is public or is not there")

    @cached_property
    def replicated(self) -> frozenset[int]:
        """Values that have to be pairs: factors of products, results, what is repeated, and what is summed with several pairs.

        Numbers are sent once, before they are repeated or go several ways.
        """
        size = [math.prod(shape) for shape in self.shapes]
        wanted, ways = set(self.outputs), Counter()
        for operation in reversed(self.operations):
            made, read = size[operation.output], sum(size[number] for number in operation.inputs)
            moves = operation.kind in MOVES and (made > read or (made == read and operation.output in wanted))
            if moves or operation.kind in PRODUCTS:
                wanted.update(operation.inputs)
        parts = self._parts - wanted
        for operation in reversed(self.operations):
            output, additive = operation.output, parts.intersection(operation.inputs)
            if ways[output] > 1:
                wanted.add(output)
            if len(additive) == 1:  # with others, the sum has to be sent anyhow
                ways.update({number: 1 if output in wanted else ways[output] for number in additive})
        return frozenset(wanted)

    @property
    def _parts(self) -> set[int]:
        """Values that are additive parts if all truncations are local."""
        found: set[int] = set()
        for operation in self.operations:
            if operation.kind in PRODUCTS or not found.isdisjoint(operation.inputs):
                found.add(operation.output)
        return found

    @cached_property
    def digest(self) -> str:
        """Hash of all that it consists of, as text."""
        return hashlib.sha256(json.dumps(self.fields()).encode()).hexdigest()

    def fields(self) -> dict[str, Any]:
        """Return what it consists of in types that JSON has."""
        operations = [[o.kind, o.inputs, o.output, dict(sorted(o.parameters.items()))] for o in self.operations]
        constants = {number: array.tolist() for number, array in sorted(self.constants.items())}
        rest = {"inputs": self.inputs, "outputs": self.outputs, "public": sorted(self.public)}
        return {"operations": operations, "shapes": self.shapes, "constants": constants} | rest

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> "RingProgram":
        """Invert `fields`, also after JSON has made texts of the constants' numbers."""
        shapes = tuple(map(tuple, fields["shapes"]))
        operations = tuple(
            Operation(kind, tuple(inputs), output, shapes[output], parameters)
            for kind, inputs, output, parameters in fields["operations"]
        )
        constants = {
            int(n): np.array(values, np.int64).reshape(shapes[int(n)]) for n, values in fields["constants"].items()
        }
        numbers = (tuple(fields["inputs"]), tuple(fields["outputs"]), frozenset(fields["public"]))
        return cls(operations, shapes, *numbers, constants)


@dataclass(frozen=True)
class WalkPlan:
    """Everything public that a walk depends on.

    Attributes:
        program: operations to compute.
        bits: bits of the ring of each value, by number.
        cuts: outputs of the truncations that are cuts; the others are local.
    """

    program: RingProgram
    bits: tuple[int, ...]
    cuts: frozenset[int]

    def __post_init__(self):
        bits, program = self.bits, self.program
        if len(bits) != len(program.shapes) or any(bits[number] not in RESULTS for number in program.outputs):
            raise CipherDMError(f"a plan has a ring for each value, and one of {FULL} or {HALF} bits for each result")
        if not all(type(ring) is int and 1 <= ring <= FULL for ring in bits):
            raise CipherDMError(f"a ring of a plan has 1 to {FULL} bits")
        truncations = {o.output for o in program.operations if o.kind == "truncate"}
        if not truncations.issuperset(self.cuts):
            raise CipherDMError("a cut of a plan is no truncation")
        for operation in program.operations:
            shift = {"truncate": 1, "shift": -1}.get(operation.kind, 0) * operation.parameters.get("bits", 0)
            secret = [number for number in operation.inputs if number not in program.public]
            if operation.output in self.cuts:
                Cut(bits[operation.inputs[0]], shift, bits[operation.output])  # which refuses what cannot be
            elif operation.kind == "truncate" and not 0 < shift < bits[operation.inputs[0]]:
                raise CipherDMError(f"operation {operation.output} cuts off {shift} bits")
            elif any(bits[number] - shift < bits[operation.output] for number in secret):
                raise CipherDMError(f"operation {operation.output} makes bits that what it reads does not have")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the plan's text."""
        return hashlib.sha256(self.to_json().encode()).digest()

    @classmethod
    def in_64_bits(cls, program: RingProgram) -> "WalkPlan":
        """Return the plan in which all values have the ring of 64 bits, and all truncations are cuts."""
        cuts = frozenset(o.output for o in program.operations if o.kind == "truncate")
        return cls(program, (FULL,) * len(program.shapes), cuts)

    @classmethod
    def in_rings(cls, program: RingProgram, inputs: Sequence[int], result: int) -> "WalkPlan":
        """Return the plan in which all values have the ring of the results, but inputs that truncations alone read.

        These have the ring in which they are held, and all truncations are cuts. So a truncation takes a value from one ring to
        another, by no bits where it is to be the same.

        Args:
            program: what to compute.
            inputs: bits of the ring in which each argument is held.
            result: bits of the ring of the results.
        """
        cuts = {o.output: o for o in program.operations if o.kind == "truncate"}
        others = {number for o in program.operations if o.output not in cuts for number in o.inputs}
        bits = [result] * len(program.shapes)
        for number, ring in zip(program.inputs, inputs, strict=True):
            if number not in others:
                bits[number] = ring
        return cls(program, tuple(bits), frozenset(cuts))

    def to_json(self) -> str:
        """Return it as text, which is the same for equal plans."""
        fields = {"program": self.program.fields(), "bits": self.bits, "cuts": sorted(self.cuts)}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "WalkPlan":
        """Invert `to_json`. Raises CipherDMError if the text is no plan."""
        try:
            fields = json.loads(text, parse_float=_no_number, parse_constant=_no_number)
            return cls(RingProgram.of_fields(fields["program"]), tuple(fields["bits"]), frozenset(fields["cuts"]))
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise CipherDMError(f"its text cannot be read ({type(error).__name__})") from None

    @cached_property
    def firsts(self) -> Mapping[int, int]:
        """Rank that takes the part of P0 in each cut, in turn."""
        return {output: place % PARTIES for place, output in enumerate(sorted(self.cuts))}


def _no_number(text: str) -> None:
    raise ValueError(text)


def local(
    operation: Operation, shapes: Sequence[tuple[int, ...]], lead: tuple[int, ...] = ()
) -> Callable[..., np.ndarray]:
    """Return the function of arrays that computes an operation of MOVES or SUMS on words, or on each component of a pair.

    Args:
        operation: operation to compute, on int64 or uint64; the places of a "dynamic_slice" are public.
        shapes: shapes of the values that it reads.
        lead: extents of the axes before those of the operation, which do not take part.
    """
    p, shape, axes = operation.parameters, operation.shape, len(lead)
    full, whole = (*lead, *shape), (slice(None),) * axes
    match operation.kind:
        case "reshape":
            return lambda x: x.reshape(full)
        case "broadcast":
            extents = [1] * len(shape)
            for axis, extent in zip(p["axes"], shapes[0], strict=True):
                extents[axis] = extent
            once = (*lead, *extents)
            return lambda x: np.broadcast_to(x.reshape(once), full)
        case "slice":
            index = (*whole, *(slice(*ends) for ends in zip(p["start"], p["stop"], p["step"], strict=True)))
            return lambda x: x[index]
        case "dynamic_slice":
            last = [extent - size for extent, size in zip(shapes[0], shape, strict=True)]

            def sliced(x, *starts):  # moved inside, as JAX does
                places = [
                    min(max(0, int(start.view(np.int64))), most) for start, most in zip(starts, last, strict=True)
                ]
                return x[(*whole, *(slice(first, first + size) for first, size in zip(places, shape, strict=True)))]

            return sliced
        case "transpose":
            order = (*range(axes), *(axis + axes for axis in p["axes"]))
            return lambda x: x.transpose(order)
        case "concatenate":
            axis = p["axis"] + axes
            return lambda *arrays: np.concatenate(arrays, axis=axis)
        case "pad":
            edges = list(zip(p["edges"], shapes[0], strict=True))
            kept = (*whole, *(slice(max(-low, 0), extent - max(-high, 0)) for (low, high), extent in edges))
            around = [(0, 0)] * axes + [(max(low, 0), max(high, 0)) for (low, high), _ in edges]
            return lambda x: np.pad(x[kept], around)
        case "add":
            return np.add
        case "subtract":
            return np.subtract
        case "negate":
            return np.negative
        case "sum":
            summed = tuple(axis + axes for axis in p["axes"])
            return lambda x: x.sum(axis=summed, dtype=x.dtype)
        case "shift":
            return lambda x: x << x.dtype.type(p["bits"])
        case "less":
            return lambda x, y: (x.view(np.int64) < y.view(np.int64)).astype(x.dtype)
        case "select":
            return lambda x, zero, one: np.where(x, one, zero)
    raise ValueError(operation.kind)


def in_the_clear(program: RingProgram, inputs: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Compute a program in the clear, on int64 words that wrap around; truncations are to the nearest. All values by number."""
    return dict(computed(program, inputs))


def computed(program: RingProgram, inputs: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each value of a program in the clear, with its number; none is kept longer than another operation reads it.

    Args:
        program: program to compute.
        inputs: arguments: int64 words, which wrap around and are truncated to the nearest; or float64, which do neither.
    """
    values = dict(program.constants) | dict(zip(program.inputs, inputs, strict=True))
    yield from values.items()
    left = Counter(number for operation in program.operations for number in set(operation.inputs))
    for operation in program.operations:
        x, bits = [values[number] for number in operation.inputs], operation.parameters.get("bits")
        match operation.kind:
            case "offset":
                result = x[0] + x[1]
            case "share":
                result = x[0]
            case "scale" | "multiply":
                result = x[0] * x[1]
            case "truncate" | "shift" if x[0].dtype.kind == "f":
                result = np.ldexp(x[0], -bits if operation.kind == "truncate" else bits)
            case "truncate":
                result = (x[0] >> bits) + (x[0] >> bits - 1 & 1) if bits else x[0]
            case "matmul":
                result = np.matmul(*x)
            case "conv2d":
                result = _convolution(*x, **operation.parameters)
            case _:
                result = local(operation, [program.shapes[number] for number in operation.inputs])(*x)
        yield operation.output, result
        values[operation.output] = result
        for number in set(operation.inputs):
            left[number] -= 1
            if not left[number]:
                del values[number]


def _convolution(weights: np.ndarray, x: np.ndarray, *, stride: int, padding) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    patches = np.lib.stride_tricks.sliding_window_view(x, weights.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    # Of real numbers, this is a product of matrices that BLAS computes.
    return np.einsum("ocij,bcrsij->bors", weights, patches, optimize=x.dtype.kind == "f")
