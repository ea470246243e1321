"""A party's walk through a program on its own pairs: all operations that are ready, then one message to each neighbour.

Products of pairs are additive parts. They pass through sums, and are shared anew only where a product or the caller needs
pairs. Truncations are cuts (`cut`), or, into a smaller ring, local: if each component is shifted by itself, the result is
right modulo 2^(k-s) for every number, to within 1.5 of its last place. All parties have the same plan, so they come to the
same rounds with the same messages.
"""

import heapq
import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from . import layers
from .cut import Cut, cut
from .products import choose_path
from .ring_program import MOVES, SUMS, Operation, WalkPlan, local
from .rounds import Round, Steps, reshare
from .streams import Address, Streams

SMALL_PRODUCT = 1 << 12  # multiply-adds up to which NumPy's integers are taken, without the steps that digits need


class Walk:
    """One party's walk.

    Args:
        plan: what to compute.
        rank: this party's rank.
        streams: words that this party shares with the others, for this run.
        call: number of this call in the run; no other has it.
    """

    def __init__(self, plan: WalkPlan, rank: int, streams: Streams, call: int):
        self._plan, self._rank, self._streams, self._call = plan, rank, streams, call
        self._path = choose_path()

    def steps(self, inputs: Sequence[np.ndarray]) -> Generator[Round, Mapping[int, np.ndarray], list[np.ndarray]]:
        """Walk the program: yield each round's messages, be sent those that came, and return the pairs of the results.

        Args:
            inputs: arguments: pairs [2, ...] of the secret ones, words of the public ones; uint64.
        """
        plan, operations = self._plan, self._plan.program.operations
        values = {number: array.view(np.uint64) for number, array in plan.program.constants.items()}
        values |= zip(plan.program.inputs, inputs, strict=True)
        left = Counter(number for operation in operations for number in set(operation.inputs))
        left.update(plan.program.outputs)
        missing = [len(set(o.inputs).difference(values)) for o in operations]
        ready = [place for place, count in enumerate(missing) if not count]
        pending: list[tuple[int, Steps, Round]] = []

        def finish(place: int, value: np.ndarray) -> None:
            output = operations[place].output
            values[output] = value
            for reader in plan.readers.get(output, ()):
                missing[reader] -= 1
                if not missing[reader]:
                    heapq.heappush(ready, reader)

        while True:
            while ready:
                place = heapq.heappop(ready)
                operation = operations[place]
                result = self._local(operation, [values[number] for number in operation.inputs])
                protocol = self._protocol(operation, result)
                for number in set(operation.inputs):
                    left[number] -= 1
                    if not left[number]:
                        del values[number]
                if protocol is None:
                    finish(place, result)
                else:
                    pending.append((place, protocol, next(protocol)))
            if not pending:
                return [values[number] for number in plan.program.outputs]
            pending.sort(key=lambda entry: entry[0])
            came = _Inbox((yield _together([messages for *_, messages in pending])))
            still = []
            for place, protocol, messages in pending:
                try:
                    still.append((place, protocol, protocol.send(came.take(messages.receives))))
                except StopIteration as end:
                    finish(place, end.value.reshape(2, *operations[place].shape))
            pending = still

    def _protocol(self, operation: Operation, result: np.ndarray) -> Steps | None:
        """Return the protocol that makes an operation's value of what this party computed, or None if there is none to do."""
        plan, at = self._plan, Address(self._call, operation.output)
        bits = plan.bits[operation.output]
        if operation.output in plan.program.public:
            return None
        if operation.output in plan.cuts:
            of = Cut(plan.bits[operation.inputs[0]], operation.parameters["bits"], bits, plan.firsts[operation.output])
            return cut(self._streams, self._rank, result.reshape(len(result), -1), of, at)
        if len(result) == 1 and operation.output in plan.program.replicated:
            return reshare(self._streams, self._rank, result.reshape(-1), bits, at)
        return None

    def _local(self, operation: Operation, x: list[np.ndarray]) -> np.ndarray:
        """Compute on components, [2, ...] of pairs or [1, ...] of additive parts, or on public values."""
        kind, parameters = operation.kind, operation.parameters
        if operation.output in self._plan.program.public:
            return np.asarray(local(operation, x))
        if kind in ("add", "subtract", "concatenate") and len({len(part) for part in x}) > 1:
            x = [part[:1] for part in x]  # of a pair, the own component is an additive part
        if kind in MOVES or kind in SUMS:
            return local(operation, x, lead=1)
        match kind:
            case "scale":
                return x[0] * x[1]
            case "offset":
                return self._plus(*x)
            case "share":
                return self._plus(np.zeros((2, *operation.shape), np.uint64), x[0])
            case "truncate" if operation.output in self._plan.cuts:
                return x[0]
            case "truncate":
                # Three floors lose 1.5 on average.
                return self._plus(x[0], np.uint64(3 * (1 << parameters["bits"] - 1) - 1)) >> np.uint64(
                    parameters["bits"]
                )
            case "multiply":
                first, second = x
                return (first[:1] * (second[:1] + second[1:])) + first[1:] * second[:1]
            case "matmul":
                return self._matmul(*x, self._plan.bits[operation.output])
            case "conv2d":
                weights = layers.prepare(self._path, x[0], self._plan.bits[operation.output])
                return layers.conv2d(weights, x[1], **parameters)[None]
        raise ValueError(kind)

    def _matmul(self, first: np.ndarray, second: np.ndarray, bits: int) -> np.ndarray:
        if math.prod(first.shape[1:]) * second.shape[-1] <= SMALL_PRODUCT:
            return (np.matmul(first[0], second[0] + second[1]) + np.matmul(first[1], second[0]))[None]
        if first.ndim == 3:
            return layers.matmul(layers.prepare(self._path, first, bits), second)[None]
        return layers.batched_product(self._path, first, second, bits)[None]

    def _plus(self, x: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """Add a public constant to component 0, which ranks 0 and 2 hold."""
        x = np.array(np.broadcast_to(x, (len(x), *np.broadcast_shapes(x.shape[1:], constant.shape))))
        if self._rank == 0:
            x[0] += constant
        elif self._rank == 2 and len(x) == 2:
            x[1] += constant
        return x


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
