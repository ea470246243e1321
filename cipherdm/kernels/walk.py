"""A party's walk through a program on its own pairs: all operations that are ready, then one message to each neighbour.

Products of pairs are additive parts. They pass through sums, and are shared anew only where a product or the caller needs
pairs. Truncations are cuts (`cut`), or, into a smaller ring, local: if each component is shifted by itself, the result is
right modulo 2^(k-s) for every number, to within 1.5 of its last place. All parties have the same plan, so they come to the
same rounds with the same messages.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from . import layers
from .cut import Cut, cut
from .products import choose_path
from .ring_program import MOVES, SUMS, Operation, RingProgram, WalkPlan, local
from .rounds import Round, Steps, reshare
from .streams import Address, Streams

ROOM = 1 << 26  # numbers of large values that are there at a time: 1 GiB of pairs
SMALL_PRODUCT = 1 << 12  # multiply-adds up to which NumPy's integers are taken, without the steps that digits need
_PUBLIC, _PART, _PAIR = 0, 1, 2  # kinds of values: words, additive parts [1, ...], pairs [2, ...]


@dataclass(frozen=True)
class _Instruction:
    """What one party does for an operation.

    Attributes:
        operation: the operation.
        compute: function of the values that it reads, without messages.
        protocol: function of streams, the call's number and what was computed that begins the protocol of its value, or None.
        rounds: rounds of the protocol.
        frees: values that nobody reads any more.
    """

    operation: Operation
    compute: Callable[..., np.ndarray]
    protocol: Callable[[Streams, int, np.ndarray], Steps] | None
    rounds: int
    frees: tuple[int, ...] = ()


class Walk:
    """One party's walks of a plan: which operations come in which round is worked out once.

    Args:
        plan: what to compute.
        rank: this party's rank.
        room: numbers of large values, those of a 64th of it and more, that are there at a time, as far as that can be.
    """

    def __init__(self, plan: WalkPlan, rank: int, room: int = ROOM):
        self.plan, self._rank, self._room = plan, rank, room
        self._path = choose_path()
        self._kinds = dict.fromkeys(plan.program.inputs, _PAIR) | dict.fromkeys(plan.program.public, _PUBLIC)
        self._constants = {number: array.view(np.uint64) for number, array in plan.program.constants.items()}
        self._batches = self._scheduled([self._instruction(operation) for operation in plan.program.operations])

    def steps(
        self, inputs: Sequence[np.ndarray], streams: Streams, call: int
    ) -> Generator[Round, Mapping[int, np.ndarray], list[np.ndarray]]:
        """Walk the program: yield each round's messages, be sent those that came, and return the pairs of the results.

        Args:
            inputs: arguments: pairs [2, ...] of the secret ones, words of the public ones; uint64.
            streams: words that this party shares with the others, for this run and plan.
            call: number of this call in the run; no other has it.
        """
        values = self._constants | dict(zip(self.plan.program.inputs, inputs, strict=True))
        del inputs
        pending: list[tuple[int, Operation, Steps, Round]] = []
        for batch in self._batches:
            for place, instruction in batch:
                operation = instruction.operation
                result = instruction.compute(*[values[number] for number in operation.inputs])
                for number in instruction.frees:
                    del values[number]
                if instruction.protocol is None:
                    values[operation.output] = result
                else:
                    protocol = instruction.protocol(streams, call, result)
                    pending.append((place, operation, protocol, next(protocol)))
            if not pending:
                break
            # The order of the program, in which all parties join the messages of a round.
            pending.sort(key=lambda entry: entry[0])
            came = _Inbox((yield _together([messages for *_, messages in pending])))
            still = []
            for place, operation, protocol, messages in pending:
                try:
                    still.append((place, operation, protocol, protocol.send(came.take(messages.receives))))
                except StopIteration as end:
                    values[operation.output] = end.value.reshape(2, *operation.shape)
            pending = still
        return [values[number] for number in self.plan.program.outputs]

    def _scheduled(self, instructions: Iterable[_Instruction]) -> list[list[tuple[int, _Instruction]]]:
        """Return for each round what to do before its messages, with places in the program: all that is ready then.

        What makes a large value waits, too, until there is room for it (`_Room`).
        """
        program = self.plan.program
        begins, ready, room = [], dict.fromkeys((*program.inputs, *program.constants), 0), _Room(program, self._room)
        for each in instructions:
            begin = room.begin(each.operation, max(ready[number] for number in each.operation.inputs))
            begins.append((begin, each))
            ready[each.operation.output] = begin + each.rounds
        batches: list[list[tuple[int, _Instruction]]] = [[] for _ in range(1 + max(ready.values()))]
        for place, (begin, each) in enumerate(begins):
            batches[begin].append((place, each))
        read = set(program.outputs)
        for batch in reversed(batches):
            for index, (place, each) in reversed(list(enumerate(batch))):
                last = set(each.operation.inputs).difference(read)
                read |= last
                batch[index] = place, replace(each, frees=tuple(last))
        return batches

    def _instruction(self, operation: Operation) -> _Instruction:
        """Return what this party does for an operation, after those for all operations before it."""
        plan, output, shape = self.plan, operation.output, operation.shape
        kinds = [self._kinds[number] for number in operation.inputs]
        compute, kind = self._compute(operation, kinds)
        protocol, rounds = None, 0
        if output in plan.cuts:
            of = Cut(
                plan.bits[operation.inputs[0]], operation.parameters["bits"], plan.bits[output], plan.firsts[output]
            )
            messages = of.messages(math.prod(shape), replicated=kind == _PAIR)
            protocol, rounds = partial(self._cut, of, output), 1 + max(message.round for message in messages)
        elif kind == _PART and output in plan.program.replicated:
            protocol, rounds = partial(self._reshare, output), 1
        self._kinds[output] = _PAIR if protocol else kind
        return _Instruction(operation, compute, protocol, rounds)

    def _cut(self, of: Cut, output: int, streams: Streams, call: int, x: np.ndarray) -> Steps:
        return cut(streams, self._rank, x.reshape(len(x), -1), of, Address(call, output))

    def _reshare(self, output: int, streams: Streams, call: int, x: np.ndarray) -> Steps:
        return reshare(streams, self._rank, x.reshape(-1), self.plan.bits[output], Address(call, output))

    def _compute(self, operation: Operation, kinds: Sequence[int]) -> tuple[Callable[..., np.ndarray], int]:
        """Return the function that computes an operation from values of these kinds without messages, and its value's kind."""
        kind, parameters, bits = operation.kind, operation.parameters, self.plan.bits[operation.output]
        shapes = [self.plan.program.shapes[number] for number in operation.inputs]
        if operation.output in self.plan.program.public:
            return local(operation, shapes), _PUBLIC
        lead = min((kind for kind in kinds if kind), default=_PAIR)
        if kind in MOVES or kind in SUMS:
            compute = local(operation, shapes, (lead,))
            if max(kinds) > lead:  # of a pair, the own component is an additive part
                return lambda *x: compute(*(part[:1] for part in x)), lead
            return compute, lead
        if kind == "matmul" or kind == "conv2d":
            return partial(self._conv2d if kind == "conv2d" else self._matmul, bits=bits, **parameters), _PART
        match kind:
            case "multiply":
                return lambda x, y: x[:1] * (y[:1] + y[1:]) + x[1:] * y[:1], _PART
            case "scale":
                return np.multiply, lead
            case "offset":
                return self._plus((lead, *operation.shape)), lead
            case "share":
                plus = self._plus((lead, *operation.shape))
                return lambda x: plus(np.uint64(0), x), lead
            case "truncate" if operation.output in self.plan.cuts:
                return lambda x: x, lead
        plus, shift = self._plus((lead, *operation.shape)), parameters["bits"]
        lost = np.uint64(3 * (1 << shift - 1) - 1)  # three floors lose 1.5 on average
        return lambda x: plus(x, lost) >> np.uint64(shift), lead

    def _plus(self, full: tuple[int, ...]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Return the function that adds a public constant to component 0, which ranks 0 and 2 hold; `full` is its shape."""
        place = {0: 0, 2: 1}.get(self._rank, 2)

        def plus(x, constant):
            total = np.empty(full, np.uint64)
            total[:] = x
            if place < full[0]:
                total[place] += constant
            return total

        return plus

    def _conv2d(self, weights: np.ndarray, x: np.ndarray, bits: int, **parameters) -> np.ndarray:
        return layers.conv2d(layers.prepare(self._path, weights, bits), x, **parameters)[None]

    def _matmul(self, first: np.ndarray, second: np.ndarray, bits: int) -> np.ndarray:
        if math.prod(first.shape[1:]) * second.shape[-1] <= SMALL_PRODUCT:
            return (np.matmul(first[0], second[0] + second[1]) + np.matmul(first[1], second[0]))[None]
        if first.ndim == 3:
            return layers.matmul(layers.prepare(self._path, first, bits), second)[None]
        return layers.batched_product(self._path, first, second, bits)[None]


class _Room:
    """When there is room for large values: parts of an attention, which need nothing of each other, come one by one."""

    def __init__(self, program: RingProgram, room: int):
        self._room, self._large = room, room >> 6  # smaller ones are little, and do not wait
        self._readers = Counter(number for operation in program.operations for number in set(operation.inputs))
        self._readers.update(program.outputs)
        self._ends: dict[int, float] = {}  # of large values: the round in which the last reader so far begins
        self._sizes = {number: math.prod(shape) for number, shape in enumerate(program.shapes)}

    def begin(self, operation: Operation, ready: int) -> int:
        """Return the round, `ready` or later, in which an operation begins. Operations are asked for in the program's order."""
        size = self._sizes[operation.output]
        if size >= self._large:
            while True:
                held = {number: self._end(number) for number in self._ends if self._end(number) > ready}
                first = min(held.values(), default=math.inf)
                if sum(self._sizes[number] for number in held) + size <= self._room or first == math.inf:
                    break
                ready = first
            self._ends[operation.output] = ready
        for number in set(operation.inputs):
            self._readers[number] -= 1
            if number in self._ends:
                self._ends[number] = max(self._ends[number], ready)
        return ready

    def _end(self, number: int) -> float:
        """Return the round in which a value is freed; infinite if not all that read it are known."""
        return math.inf if self._readers[number] else self._ends[number]


class _Inbox:
    """Messages of a round, from which protocols take their parts in order."""

    def __init__(self, messages: Mapping[int, np.ndarray]):
        self._messages, self._taken = messages, Counter()

    def take(self, sizes: Mapping[int, int]) -> dict[int, np.ndarray]:
        found = {}
        for rank, size in sizes.items():
            start = self._taken[rank]
            found[rank] = self._messages[rank][start : start + size]
            self._taken[rank] += size
        return found


def _together(rounds: Sequence[Round]) -> Round:
    """Join the messages of several protocols, in order."""
    sends: dict[int, list[np.ndarray]] = {}
    receives: Counter[int] = Counter()
    for messages in rounds:
        for rank, content in messages.sends.items():
            sends.setdefault(rank, []).append(content)
        receives.update(messages.receives)
    return Round({rank: np.concatenate(parts) for rank, parts in sends.items()}, dict(receives))
