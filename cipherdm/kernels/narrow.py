"""Factors with fewer significant bits, so that products of them fit into smaller rings.

FAST gives numbers the fraction bits for which the ring of 64 bits has room; a normalisation's gain has 42. A result is not
better than the worse of two factors, so most of them only cost bytes. Here each tensor that is multiplied keeps a few bits
below those of its largest number: a static, public scale, a power of two. All other operations follow: a truncation takes what
the factors before it have left to take, and operands of a sum are brought to the coarser one's last place.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import CipherDMError
from .ring_program import FULL, MOVES, PRODUCTS, Operation, RingProgram, computed

NEAR = 2  # bits that a factor may have more or fewer, rather than be truncated once more
ELEMENTWISE = 2  # bits more for factors of elementwise products, whose errors no sum averages
_MOVED = frozenset(("reshape", "broadcast", "transpose", "pad", "negate"))


def sizes_of(program: RingProgram, inputs: Sequence[np.ndarray]) -> tuple[dict[int, float], list[np.ndarray]]:
    """Return the largest size of each secret value's words, by number, and the results, all in float64.

    Args:
        program: program to compute, without truncation errors and without a limit to its numbers.
        inputs: arguments: words as float64 of the secret ones, int64 of the public ones.
    """
    sizes, results = {}, {}
    for number, array in computed(program, inputs):
        if number not in program.public:
            sizes[number] = float(np.abs(array).max(initial=0))
        if number in program.outputs:
            results[number] = array
    return sizes, [results[number] for number in program.outputs]


def narrowed(
    program: RingProgram, sizes: Mapping[int, float], significant: int
) -> tuple[RingProgram, dict[int, float]]:
    """Return a program of the same results whose factors have `significant` bits, and the sizes of its values.

    Factors of elementwise products keep ELEMENTWISE bits more. `sizes` has the largest size of each secret value's words.
    Raises CipherDMError if one of them leaves the ring of 64 bits.
    """
    largest = max(sizes.values(), default=0.0)
    if not largest < 2.0 ** (FULL - 1):  # NaN is refused too
        raise CipherDMError(
            f"rings cannot be planned: numbers of size {largest:.1e} leave that of {FULL} bits. The images that rings are "
            "planned from have values outside of what calibration met; calibrate with more images."
        )
    return _Narrowing(program, sizes, significant).done()


@dataclass(frozen=True)
class _Value:
    """A value of the new program: the old one's words over 2^drop, of which errors of factors reach up to 2^rough."""

    number: int
    drop: int = 0
    rough: int = 0


class _Narrowing:
    """Writes the new program, operation by operation."""

    def __init__(self, program: RingProgram, sizes: Mapping[int, float], significant: int):
        self._program, self._old_sizes, self._significant = program, sizes, significant
        self._shapes = list(program.shapes)
        self._public, self._constants = set(program.public), dict(program.constants)
        self._operations: list[Operation] = []
        self._made: dict[int, Operation] = {}
        self._sizes = {number: size for number, size in sizes.items() if number in program.inputs}
        self._rounded: dict[tuple[int, int], int] = {}
        self._given = set(program.inputs)  # and what moves make of them: pairs from the beginning
        self._values = {number: _Value(number) for number in (*program.inputs, *program.constants)}

    def done(self) -> tuple[RingProgram, dict[int, float]]:
        for operation in self._program.operations:
            x = [self._values[number] for number in operation.inputs]
            if operation.output in self._program.public:
                self._operations.append(operation)
                self._values[operation.output] = _Value(operation.output)
            else:
                self._values[operation.output] = self._read(operation, x)
        outputs = tuple(self._lifted(self._values[number], 0).number for number in self._program.outputs)
        operations = _merged(self._operations, outputs)
        read = {number for operation in operations for number in operation.inputs}
        constants = {number: array for number, array in self._constants.items() if number in read}
        inputs, public = self._program.inputs, frozenset(self._public)
        return RingProgram(operations, tuple(self._shapes), inputs, outputs, public, constants), self._sizes

    def _read(self, operation: Operation, x: list[_Value]) -> _Value:
        """Return the new value of an old operation of secrets."""
        kind, p = operation.kind, operation.parameters
        first = x[0]
        match kind:
            case "shift":
                return _moved(first, p["bits"])
            case "truncate" if p["bits"] <= first.drop:
                return _moved(first, -p["bits"])
            case "truncate":
                return _Value(self._truncated(first.number, p["bits"] - first.drop, operation.shape))
            case "scale" if operation.inputs[1] in self._program.constants:
                factor = self._program.constants[operation.inputs[1]]
                zeros = _trailing_zeros(factor)
                scaled = self._again(operation, [first.number, self._constant(factor >> zeros)], first.drop + zeros)
                return _Value(scaled, first.drop + zeros, first.rough + zeros if first.rough else 0)
            case "offset":
                return self._offset(operation, *x)
            case _ if kind in PRODUCTS:
                bits = self._significant + (ELEMENTWISE if kind == "multiply" else 0)
                # A row of zeros and a one picks words, and is exact.
                if all(self._sizes[value.number] > 1 for value in x):
                    x = [self._factor(value, bits) for value in x]
                one, other = x
                drop = one.drop + other.drop
                rough = drop if one.rough or other.rough else 0
                return _Value(self._again(operation, [one.number, other.number], drop), drop, rough)
            case "add" | "subtract" | "concatenate":
                rough = max(value.rough for value in x)
                drop = max(rough, min(value.drop for value in x))
                numbers = [self._lifted(value, drop).number for value in x]
                return _Value(self._again(operation, numbers, drop), drop, rough)
        numbers = [first.number, *operation.inputs[1:]]
        return _Value(self._again(operation, numbers, first.drop), first.drop, first.rough)

    def _offset(self, operation: Operation, x: _Value, public: _Value) -> _Value:
        array = self._program.constants.get(public.number)
        if array is None:
            return _Value(self._again(operation, [self._lifted(x, 0).number, public.number], 0))
        drop = max(x.rough, min(x.drop, _trailing_zeros(array)))
        rounded = (array >> drop) + (array >> drop - 1 & 1 if drop else 0)
        numbers = [self._lifted(x, drop).number, self._constant(rounded)]
        return _Value(self._again(operation, numbers, drop), drop, x.rough)

    def _factor(self, value: _Value, bits: int) -> _Value:
        excess = int(self._source_size(value.number)).bit_length() - bits
        if excess <= NEAR:
            return value
        for near in sorted(range(excess - NEAR, excess + NEAR + 1), key=lambda bits: abs(bits - excess)):
            if (value.number, near) in self._rounded:
                excess = near
                break
        return self._lifted(value, value.drop + excess)

    def _source_size(self, number: int) -> float:
        """Return the size of what `_round` would truncate."""
        made = self._made.get(number)
        if made is not None and made.kind in _MOVED:
            return self._source_size(made.inputs[0])
        if made is not None and self._adds_given(made):
            return max(self._source_size(source) for source in made.inputs if source not in self._given)
        return self._sizes[number]

    def _adds_given(self, made: Operation) -> bool:
        given = self._given.intersection(made.inputs)
        return made.kind in ("add", "subtract") and bool(given) and not given.issuperset(made.inputs)

    def _passes(self, made: Operation, bits: int) -> bool:
        """Return whether to truncate what an operation reads, in the place of its value."""
        if made.kind in _MOVED or self._adds_given(made):
            return True
        return made.kind in ("add", "subtract") and all(self._is_there(source, bits) for source in made.inputs)

    def _is_there(self, number: int, bits: int) -> bool:
        """Return whether a value with so many bits less costs nothing: it is given, was made, or ends in zeros."""
        made = self._made.get(number)
        if (number, bits) in self._rounded or number in self._given or made is None:
            return True
        if made.kind == "shift":
            return made.parameters["bits"] >= bits
        return self._passes(made, bits) and all(self._is_there(source, bits) for source in made.inputs)

    def _lifted(self, value: _Value, drop: int) -> _Value:
        """Return a value with so many bits dropped: by zeros below, or by a truncation."""
        if drop > value.drop:
            return _Value(self._round(value.number, drop - value.drop), drop, drop)
        if drop == value.drop:
            return value
        number = self._add(
            "shift", self._shapes[value.number], [value.number], value.drop - drop, bits=value.drop - drop
        )
        return _Value(number, drop, min(value.rough, drop))

    def _round(self, number: int, bits: int) -> int:
        """Truncate a value, before it was repeated or moved, or something given was added."""
        if (number, bits) not in self._rounded:
            made = self._made.get(number)
            if made is not None and made.kind == "shift" and made.parameters["bits"] >= bits:
                left = made.parameters["bits"] - bits
                result = self._add("shift", made.shape, made.inputs, left, bits=left) if left else made.inputs[0]
            elif made is not None and self._passes(made, bits):
                inner = [self._round(source, bits) for source in made.inputs]
                result = self._add(made.kind, made.shape, inner, -bits, of=number, **made.parameters)
            else:
                result = self._truncated(number, bits, self._shapes[number])
            self._rounded[number, bits] = result
        return self._rounded[number, bits]

    def _truncated(self, number: int, bits: int, shape: tuple[int, ...]) -> int:
        return self._add("truncate", shape, [number], -bits, bits=bits)

    def _again(self, operation: Operation, inputs: Sequence[int], drop: int) -> int:
        number = self._new(operation.shape, self._old_sizes[operation.output] / 2.0**drop)
        return self._write(Operation(operation.kind, tuple(inputs), number, operation.shape, operation.parameters))

    def _add(
        self, kind: str, shape: tuple[int, ...], inputs: Sequence[int], up: int, of: int | None = None, **p
    ) -> int:
        """Add an operation whose value is 2^up times that of its input, or of the value `of`."""
        number = self._new(shape, self._sizes[inputs[0] if of is None else of] * 2.0**up)
        return self._write(Operation(kind, tuple(inputs), number, tuple(shape), p))

    def _write(self, operation: Operation) -> int:
        self._operations.append(operation)
        self._made[operation.output] = operation
        if operation.kind in MOVES and self._given.union(self._public).issuperset(operation.inputs):
            self._given.add(operation.output)
        return operation.output

    def _new(self, shape: tuple[int, ...], size: float) -> int:
        self._shapes.append(tuple(shape))
        self._sizes[len(self._shapes) - 1] = size
        return len(self._shapes) - 1

    def _constant(self, array: np.ndarray) -> int:
        self._shapes.append(array.shape)
        number = len(self._shapes) - 1
        self._constants[number] = array
        self._public.add(number)
        return number


def _moved(value: _Value, bits: int) -> _Value:
    """Return the value of 2^bits times the old one, which has the same words."""
    return _Value(value.number, value.drop + bits, max(0, value.rough + bits) if value.rough else 0)


def _trailing_zeros(array: np.ndarray) -> int:
    """Return how many low bits of all words are zero; FULL - 1 if all are."""
    joined = int(np.bitwise_or.reduce(array.reshape(-1), initial=0))
    return (joined & -joined).bit_length() - 1 if joined else FULL - 1


def _merged(operations: Sequence[Operation], outputs: Sequence[int]) -> tuple[Operation, ...]:
    """Leave out what nobody reads, and make one truncation of two if nobody reads what is between them."""
    needed, kept = set(outputs), []
    for operation in reversed(operations):
        if operation.output in needed:
            kept.append(operation)
            needed.update(operation.inputs)
    readers = Counter(number for operation in kept for number in operation.inputs)
    readers.update(outputs)
    made: dict[int, Operation] = {}
    for operation in reversed(kept):
        before = made.get(operation.inputs[0])
        if operation.kind == "truncate" == getattr(before, "kind", None) and readers[before.output] == 1:
            bits = before.parameters["bits"] + operation.parameters["bits"]
            operation = replace(operation, inputs=before.inputs, parameters={"bits": bits})
            del made[before.output]
        made[operation.output] = operation
    return tuple(made.values())
