"""Products of joined arrays as products of their parts.

FAST joins small products for one call of SPU, which costs messages for each. A walk sends all products of a round together
anyhow, and apart each operand keeps its own scale and ring.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .ring_program import Operation, RingProgram

MOST = 3  # parts that are kept apart; more would cost more time than they save
_EACH = frozenset(("add", "subtract", "multiply", "negate", "shift", "truncate"))


def apart(program: RingProgram) -> RingProgram:
    """Return a program of the same results in which joined secrets stay apart where operations allow it."""
    return _Apart(program).done()


@dataclass(frozen=True)
class _Parts:
    """Values that are joined along an axis."""

    axis: int
    numbers: tuple[int, ...]


class _Apart:
    """Writes the new program, operation by operation."""

    def __init__(self, program: RingProgram):
        self._program, self._shapes = program, list(program.shapes)
        self._operations: list[Operation] = []
        self._values: dict[int, _Parts] = {}  # of the old program, where they are apart
        self._made: dict[int, Operation] = {}
        self._joined: set[int] = set()

    def done(self) -> RingProgram:
        for operation in self._program.operations:
            parts = None if operation.output in self._program.public else self._parts(operation)
            if parts is None:
                for number in operation.inputs:
                    self._join(number)
                self._write(operation)
            else:
                self._values[operation.output] = parts
        for number in self._program.outputs:
            self._join(number)
        return replace(self._program, operations=tuple(self._operations), shapes=tuple(self._shapes))

    def _join(self, number: int) -> None:
        """Write the operation that joins a value, if it is apart and needed whole."""
        if number in self._values and number not in self._joined:
            self._joined.add(number)
            parts = self._values[number]
            shape = self._program.shapes[number]
            if len(parts.numbers) == 1:
                self._write(Operation("reshape", parts.numbers, number, shape))
            else:
                self._write(Operation("concatenate", parts.numbers, number, shape, {"axis": parts.axis}))

    def _parts(self, operation: Operation) -> _Parts | None:
        """Return the parts of an operation's value, or None if it has none."""
        kind, p, x = operation.kind, operation.parameters, [self._values.get(number) for number in operation.inputs]
        if kind == "concatenate":
            return self._concatenated(operation)
        if not any(x):
            return None
        first = x[0]
        match kind:
            case _ if kind in _EACH:
                return self._each(operation, x)
            case "slice":
                return self._sliced(operation, first)
            case "transpose":
                return self._moved(first, p["axes"].index(first.axis), operation)
            case "broadcast" if operation.shape[p["axes"][first.axis]] == self._extent(operation.inputs[0], first.axis):
                return self._moved(first, p["axes"][first.axis], operation)
            case "reshape":
                axis = _same_axis(self._program.shapes[operation.inputs[0]], first.axis, operation.shape)
                return None if axis is None else self._moved(first, axis, operation)
        return None

    def _extent(self, number: int, axis: int) -> int:
        return self._program.shapes[number][axis]

    def _concatenated(self, operation: Operation) -> _Parts | None:
        axis, numbers = operation.parameters["axis"], []
        for number in operation.inputs:
            inner = self._values.get(number)
            if inner is not None and inner.axis != axis:
                self._join(number)
                inner = None
            numbers += [number] if inner is None else inner.numbers
        return _Parts(axis, tuple(numbers)) if len(numbers) <= MOST else None

    def _each(self, operation: Operation, x: Sequence[_Parts | None]) -> _Parts | None:
        """Compute a number by a number, part for part; what is whole is cut where the parts end."""
        there = [parts for parts in x if parts is not None]
        first = there[0]
        ends = [self._ends(parts) for parts in there]
        if any(parts.axis != first.axis for parts in there) or any(end != ends[0] for end in ends):
            return None
        axes = (first.axis, first.axis)
        columns = [
            parts.numbers if parts else self._cut(number, first.axis, ends[0])
            for parts, number in zip(x, operation.inputs, strict=True)
        ]
        return _Parts(
            first.axis,
            tuple(self._again(operation, part, axes) for part in zip(*columns, strict=True)),
        )

    def _sliced(self, operation: Operation, parts: _Parts) -> _Parts | None:
        """Return the slice of one part, if it lies in one."""
        p, axis = operation.parameters, parts.axis
        begin = 0
        for number, end in zip(parts.numbers, self._ends(parts), strict=True):
            if begin <= p["start"][axis] and p["stop"][axis] <= end:
                moved = {side: [*p[side]] for side in ("start", "stop")}
                for side in moved.values():
                    side[axis] -= begin
                if self._shapes[number] == operation.shape:
                    return _Parts(axis, (number,))
                return _Parts(axis, (self._add("slice", operation.shape, (number,), **moved, step=p["step"]),))
            begin = end
        return None

    def _moved(self, parts: _Parts, axis: int, operation: Operation) -> _Parts:
        """Move each part as the whole; `axis` is where they are joined then."""
        return _Parts(axis, tuple(self._again(operation, (number,), (axis, parts.axis)) for number in parts.numbers))

    def _ends(self, parts: _Parts) -> list[int]:
        ends, end = [], 0
        for number in parts.numbers:
            end += self._shapes[number][parts.axis]
            ends.append(end)
        return ends

    def _cut(self, number: int, axis: int, ends: Sequence[int]) -> list[int]:
        """Cut a whole value where parts end; a repeated one is repeated less."""
        shape, pieces, made = self._shapes[number], [], self._made.get(number)
        for begin, end in zip([0, *ends], ends, strict=False):
            piece = (*shape[:axis], end - begin, *shape[axis + 1 :])
            if made is not None and made.kind == "broadcast" and self._repeats(made, axis):
                pieces.append(self._add("broadcast", piece, made.inputs, **made.parameters))
            else:
                start, stop = [0] * len(shape), list(shape)
                start[axis], stop[axis] = begin, end
                pieces.append(self._add("slice", piece, (number,), start=start, stop=stop, step=[1] * len(shape)))
        return pieces

    def _repeats(self, made: Operation, axis: int) -> bool:
        axes = list(made.parameters["axes"])
        return axis not in axes or self._shapes[made.inputs[0]][axes.index(axis)] == 1

    def _again(self, operation: Operation, inputs: tuple[int, ...], axes: tuple[int, int]) -> int:
        """Write an operation for a part; `axes` is where the result is joined, and where the input was."""
        shape = list(operation.shape)
        shape[axes[0]] = self._shapes[inputs[0]][axes[1]]
        return self._add(operation.kind, tuple(shape), inputs, **operation.parameters)

    def _add(self, kind: str, shape: tuple[int, ...], inputs: tuple[int, ...], **parameters) -> int:
        self._shapes.append(shape)
        return self._write(Operation(kind, inputs, len(self._shapes) - 1, shape, parameters))

    def _write(self, operation: Operation) -> int:
        self._operations.append(operation)
        self._made[operation.output] = operation
        return operation.output


def _same_axis(before: Sequence[int], axis: int, after: Sequence[int]) -> int | None:
    """Return the axis that an axis becomes when an array is reshaped, or None if it does not stay whole."""
    for place, extent in enumerate(after):
        if extent == before[axis] and math.prod(after[:place]) == math.prod(before[:axis]):
            return place
    return None
