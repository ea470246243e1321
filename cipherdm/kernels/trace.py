"""Reading a JAX function on words of the ring as a `RingProgram`."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from ..errors import CipherDMError
from .operation import NAME as CONV2D
from .ring_program import MOVES, SUMS, Operation, RingProgram


def trace(function: Callable, specs: Sequence, fraction_bits: int) -> RingProgram:
    """Read a function of arrays as operations on words.

    Args:
        function: pure JAX function that computes on words, as `protocols.fixed` does with `ring=True`.
        specs: shape, dtype and visibility of each argument (`engine.Spec`).
        fraction_bits: fraction bits in which the engine counts a float's word.

    Raises:
        CipherDMError: the function needs an operation that a program does not have, such as a comparison of secrets.
    """
    arguments = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in specs]
    closed = jax.make_jaxpr(function)(*arguments)
    return _Tracer(closed, [spec.public for spec in specs], fraction_bits).program()


class _Tracer:
    """Reads the equations of a traced function one by one."""

    def __init__(self, closed, public: Sequence[bool], fraction_bits: int):
        self._jaxpr, self._bits = closed.jaxpr, fraction_bits
        self._made: dict[int, Operation] = {}
        self._there: dict[tuple, int] = {}  # values by what they are
        self._shapes: list[tuple[int, ...]] = []
        self._constants: dict[int, np.ndarray] = {}
        self._public: set[int] = set()
        # A variable is a number, or an array if it is the same in each run.
        self._values: dict[Any, int | np.ndarray] = dict(
            zip(self._jaxpr.constvars, map(np.asarray, closed.consts), strict=True)
        )
        for variable, is_public in zip(self._jaxpr.invars, public, strict=True):
            self._values[variable] = self._new(variable.aval.shape, public=is_public)

    def program(self) -> RingProgram:
        """Read all equations."""
        for equation in self._jaxpr.eqns:
            self._read(equation)
        if any(atom.aval.dtype != np.float32 for atom in self._jaxpr.outvars):
            raise CipherDMError("results of a walk are words of float32 values.")
        outputs = tuple(self._secret(atom) for atom in self._jaxpr.outvars)
        needed, kept = set(outputs), []
        for operation in reversed(self._made.values()):
            if operation.output in needed:
                kept.append(operation)
                needed.update(operation.inputs)
        inputs = tuple(self._values[variable] for variable in self._jaxpr.invars)
        constants = {number: array for number, array in self._constants.items() if number in needed}
        return RingProgram(tuple(kept[::-1]), tuple(self._shapes), inputs, outputs, frozenset(self._public), constants)

    def _new(self, shape: Sequence[int], *, public: bool) -> int:
        self._shapes.append(tuple(shape))
        number = len(self._shapes) - 1
        if public:
            self._public.add(number)
        return number

    def _add(self, kind: str, shape: Sequence[int], inputs: Iterable[int], **parameters) -> int:
        """Add an operation, unless its value is there already, and return the number of its value."""
        inputs, shape = tuple(inputs), tuple(shape)
        if kind == "sum" and all(self._shapes[inputs[0]][axis] == 1 for axis in parameters["axes"]):
            kind, parameters = "reshape", {}
        if kind == "reshape":
            while (before := self._made.get(inputs[0])) is not None and before.kind == "reshape":
                inputs = before.inputs
            if self._shapes[inputs[0]] == shape:
                return inputs[0]
        same = (kind, inputs, shape, repr(parameters))
        if same in self._there:
            return self._there[same]
        public = kind != "share" and self._public.issuperset(inputs)
        if public and kind not in MOVES | SUMS:
            raise CipherDMError(f"{kind} of values that depend on public arguments is not walked.")
        output = self._there[same] = self._new(shape, public=public)
        self._made[output] = Operation(kind, inputs, output, shape, parameters)
        return output

    def _value(self, atom) -> int | np.ndarray:
        return np.asarray(atom.val) if isinstance(atom, Literal) else self._values[atom]

    def _number(self, atom) -> int:
        value = self._value(atom)
        return self._constant(value) if isinstance(value, np.ndarray) else value

    def _constant(self, array: np.ndarray) -> int:
        number = self._new(array.shape, public=True)
        # A float is a word as the engine makes it.
        self._constants[number] = _words(array, self._bits) if array.dtype.kind == "f" else array.astype(np.int64)
        return number

    def _secret(self, atom) -> int:
        number = self._number(atom)
        return self._add("share", self._shapes[number], [number]) if number in self._public else number

    def _fixed(self, atom, name: str) -> np.ndarray:
        """Return a value that must be the same in each run."""
        value = self._value(atom)
        if not isinstance(value, np.ndarray):
            raise CipherDMError(
                f"{name} is secret or depends on a public argument; a walk needs it to be always the same."
            )
        return value

    def _one(self, atom, name: str) -> float:
        """Return the number that an array repeats."""
        numbers = np.unique(self._fixed(atom, name))
        if len(numbers) != 1:
            raise CipherDMError(f"{name} has {len(numbers)} different numbers; a walk needs one.")
        return numbers[0]

    def _read(self, equation) -> None:
        name, atoms = equation.primitive.name, equation.invars
        if name == "pjit":
            inner = equation.params["jaxpr"]
            self._values |= zip(inner.jaxpr.constvars, map(np.asarray, inner.consts), strict=True)
            self._values |= zip(inner.jaxpr.invars, map(self._value, atoms), strict=True)
            for nested in inner.jaxpr.eqns:
                self._read(nested)
            self._values |= zip(equation.outvars, map(self._value, inner.jaxpr.outvars), strict=True)
        elif all(isinstance(self._value(atom), np.ndarray) for atom in atoms):
            self._values |= zip(equation.outvars, self._computed(equation), strict=True)
        elif name in ("bitcast_convert_type", "copy", "copy_p"):
            self._values[equation.outvars[0]] = self._value(atoms[0])
        else:
            read = _READERS.get(name)
            secret = any(self._number(atom) not in self._public for atom in atoms)
            if read is None or (secret and name in ("lt", "select_n")):
                raise CipherDMError(f"{name} is no sum, product or movement of data; SPU has to compute it.")
            (result,) = equation.outvars
            self._values[result] = read(self, equation, result.aval.shape)

    def _computed(self, equation) -> list[np.ndarray]:
        """Compute an equation on arrays; a float's word is round(float 2^fraction_bits)."""
        operands = [self._value(atom) for atom in equation.invars]
        if equation.primitive.name == "bitcast_convert_type":
            (value,) = operands
            if equation.params["new_dtype"].kind == "i":
                return [_words(value, self._bits)]
            return [(value.astype(np.float64) * 2.0**-self._bits).astype(np.float32)]
        results = equation.primitive.bind(*operands, **equation.params)
        return [np.asarray(result) for result in (results if equation.primitive.multiple_results else [results])]

    def _move(self, equation, shape) -> int:
        """Reshape, broadcast, transpose, slice."""
        p, x = equation.params, self._number(equation.invars[0])
        match equation.primitive.name:
            case "broadcast_in_dim":
                return self._add("broadcast", shape, [x], axes=p["broadcast_dimensions"])
            case "transpose":
                return self._add("transpose", shape, [x], axes=p["permutation"])
            case "slice":
                ends = {
                    "start": p["start_indices"],
                    "stop": p["limit_indices"],
                    "step": p["strides"] or (1,) * len(shape),
                }
                ends = {name: tuple(map(int, places)) for name, places in ends.items()}  # jnp.split has NumPy's numbers
                return self._add("slice", shape, [x], **ends)
        return self._add("reshape", shape, [x])

    def _dynamic_slice(self, equation, shape) -> int:
        numbers = [self._number(atom) for atom in equation.invars]
        if not self._public.issuperset(numbers[1:]):
            raise CipherDMError("a secret place cannot be looked up without telling it; multiply by a one-hot row.")
        return self._add("dynamic_slice", shape, numbers)

    def _gather(self, equation, shape) -> int:
        """Read an index at a fixed place, as JAX writes it, as the slice that it is."""
        x, places = equation.invars
        extents = x.aval.shape
        numbers = np.arange(math.prod(extents), dtype=np.int32).reshape(extents)
        index = np.asarray(equation.primitive.bind(numbers, self._fixed(places, "an index"), **equation.params))
        along = [np.unique(axis) for axis in np.unravel_index(index.reshape(-1), extents)]
        step = [int(axis[1] - axis[0]) if axis.size > 1 else 1 for axis in along]
        start, stop = [int(axis[0]) for axis in along], [int(axis[-1]) + 1 for axis in along]
        part = numbers[tuple(map(slice, start, stop, step))]
        if not np.array_equal(part.reshape(-1), index.reshape(-1)):
            raise CipherDMError("an index that is no slice is not walked; slice and concatenate.")
        part = self._add("slice", part.shape, [self._number(x)], start=start, stop=stop, step=step)
        return self._add("reshape", shape, [part])

    def _concatenate(self, equation, shape) -> int:
        numbers = [self._number(atom) for atom in equation.invars]
        if not self._public.issuperset(numbers):
            numbers = [self._secret(atom) for atom in equation.invars]
        return self._add("concatenate", shape, numbers, axis=equation.params["dimension"])

    def _pad(self, equation, shape) -> int:
        x, value = equation.invars
        config = equation.params["padding_config"]
        if np.any(self._fixed(value, "what is padded with")) or any(inner for *_, inner in config):
            raise CipherDMError("a walk pads with zeros, around an array.")
        edges = [(int(low), int(high)) for low, high, _ in config]  # jnp.pad has NumPy's numbers
        if not any(map(any, edges)):  # and pads one edge after the other
            return self._number(x)
        return self._add("pad", shape, [self._number(x)], edges=edges)

    def _sum_of_two(self, equation, shape) -> int | np.ndarray:
        minus = equation.primitive.name == "sub"
        first, second = (self._number(atom) for atom in equation.invars)
        if minus and first == second:
            return np.zeros(shape, np.int64)
        if (first in self._public) == (second in self._public):
            return self._add("subtract" if minus else "add", shape, [first, second])
        if minus:
            second = self._add("negate", self._shapes[second], [second])
        secret, public = (second, first) if first in self._public else (first, second)
        return self._add("offset", shape, [secret, public])

    def _negate(self, equation, shape) -> int:
        return self._add("negate", shape, [self._number(equation.invars[0])])

    def _shift(self, equation, shape) -> int:
        return self._add(
            "shift", shape, [self._number(equation.invars[0])], bits=int(self._one(equation.invars[1], "a shift"))
        )

    def _times(self, equation, shape) -> int:
        first, second = (self._number(atom) for atom in equation.invars)
        if self._public.isdisjoint((first, second)):
            _check_words(equation)
            return self._add("multiply", shape, [first, second])
        x, other = (first, equation.invars[1]) if second in self._public else (second, equation.invars[0])
        if equation.outvars[0].aval.dtype.kind == "i":
            return self._add("scale", shape, [x, self._number(other)])
        # A float times 2^-s is a word of which s bits are cut off.
        factor = self._one(other, "a factor")
        bits = -math.log2(factor) if factor > 0 else 0
        if bits != int(bits) or not 0 <= bits < 64 or factor <= 0:
            raise CipherDMError(f"a product with {factor} is no truncation; a program on words multiplies by 2^-s.")
        return self._add("truncate", shape, [x], bits=int(bits))

    def _dot_general(self, equation, shape) -> int:
        _check_words(equation)
        contracted, batched = equation.params["dimension_numbers"]
        numbers = [self._number(atom) for atom in equation.invars]
        if self._public.isdisjoint(numbers):
            return self._product(numbers, contracted, batched, shape)
        side = 0 if numbers[1] in self._public else 1
        x, extents, axes = numbers[side], self._shapes[numbers[side]], list(contracted[side])
        factor = self._one(equation.invars[1 - side], "a public matrix")
        rest = [extent for axis, extent in enumerate(extents) if axis not in axes]
        if batched[0]:
            raise CipherDMError("a public matrix for each of a batch is not walked.")
        x = self._add("sum", rest, [x], axes=axes)
        if shape != tuple(rest):  # columns of ones: the sum is repeated
            first = 0 if side == 0 else len(shape) - len(rest)
            x = self._add("broadcast", shape, [x], axes=list(range(first, first + len(rest))))
        return x if factor == 1 else self._add("scale", shape, [x, self._constant(np.asarray(factor))])

    def _product(self, numbers, contracted, batched, shape) -> int:
        """Add a general product of two secrets as one of [batch, M, K] and [batch, K, N]."""
        arranged, free = [], []
        for side, x in enumerate(numbers):
            extents, axes, batch = self._shapes[x], list(contracted[side]), list(batched[side])
            others = [axis for axis in range(len(extents)) if axis not in axes + batch]
            order = batch + (others + axes if side == 0 else axes + others)
            if order != list(range(len(extents))):
                x = self._add("transpose", [extents[axis] for axis in order], [x], axes=order)
            lead, inner, outer = ([extents[axis] for axis in some] for some in (batch, axes, others))
            ends = [math.prod(outer), math.prod(inner)]
            arranged.append(self._add("reshape", [*lead, *(ends if side == 0 else ends[::-1])], [x]))
            free.append(math.prod(outer))
        return self._add("reshape", shape, [self._add("matmul", [*lead, *free], arranged)])

    def _conv2d(self, equation, shape) -> int:
        _check_words(equation)
        return self._add("conv2d", shape, map(self._secret, equation.invars), **equation.params)


def _words(array: np.ndarray, fraction_bits: int) -> np.ndarray:
    return np.round(array.astype(np.float64) * 2.0**fraction_bits).astype(np.int64)


def _check_words(equation) -> None:
    """Refuse a product of floats, which SPU truncates by itself."""
    if equation.outvars[0].aval.dtype.kind == "f":
        raise CipherDMError("a product of floats has a truncation that is not written out; SPU has to compute it.")


_MOVES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "slice")
_READERS: dict[str, Callable] = dict.fromkeys(_MOVES, _Tracer._move) | {
    "dynamic_slice": _Tracer._dynamic_slice,
    "gather": _Tracer._gather,
    "concatenate": _Tracer._concatenate,
    "pad": _Tracer._pad,
    "add": _Tracer._sum_of_two,
    "sub": _Tracer._sum_of_two,
    "neg": _Tracer._negate,
    "shift_left": _Tracer._shift,
    "mul": _Tracer._times,
    "dot_general": _Tracer._dot_general,
    CONV2D: _Tracer._conv2d,
    "lt": lambda tracer, equation, shape: tracer._add("less", shape, map(tracer._number, equation.invars)),
    "select_n": lambda tracer, equation, shape: tracer._add("select", shape, map(tracer._number, equation.invars)),
}
