"""Which ring each value of a walk needs: bits backwards from the results, and a search for the truncations to cut.

A value needs the bits that its readers ask for, and a truncation that is local s more. So a long way to a result needs many
bits. A cut ends that: what it reads needs the bits of the largest number that calibration met, and a margin; nothing is ever
capped. Where to cut is a search over bytes and rounds, since both are exact functions of a plan.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import CipherDMError
from ..files import kept
from .cut import Cut
from .ring_program import FULL, MOVES, PRODUCTS, SUMS, RingProgram, WalkPlan
from .rounds import whole_bytes

MARGIN = 2  # bits above the largest number met, beyond the two that a cut needs: numbers may be 4 times as large
ROUNDED = (
    256  # room for errors: those of 5,000 local truncations add up to 35 typically, and hardly ever to seven times that
)
ROUND = 8_000  # bytes that a round counts as
NEIGHBOURS = 2  # truncations on either side that a cut may be moved to
PASSES = 3


def planned(program: RingProgram, sizes: Mapping[int, float], margin: int = MARGIN) -> WalkPlan:
    """Choose cuts and rings for a program.

    Args:
        program: what to compute.
        sizes: largest size of each secret value's words, by number.
        margin: bits to leave above them.

    Raises:
        CipherDMError: numbers are too large for a cut in the ring of 64 bits.
    """
    ledger = _Ledger(program, sizes, margin)
    asked = repr((program.digest, sorted(sizes.items()), margin)).encode()
    cuts = json.loads(kept(asked, lambda: json.dumps(_searched(ledger)).encode()))
    return WalkPlan(program, ledger.rings(cuts), frozenset(program.operations[place].output for place in cuts))


def costs(plan: WalkPlan) -> tuple[int, int]:
    """Return the bytes of all parties, without the heads of messages, and the rounds of a plan."""
    places = {place for place, operation in enumerate(plan.program.operations) if operation.output in plan.cuts}
    return _Ledger(plan.program).costs(places, plan.bits)


@dataclass(frozen=True)
class Made:
    """What an operation on secrets makes.

    Attributes:
        kind: "product", "cut", "local" for a truncation without messages, or "sum" for all else.
        bits: bits of its ring.
        numbers: how many numbers.
    """

    kind: str
    bits: int
    numbers: int


def made_by(plan: WalkPlan) -> list[Made]:
    """Return what the operations of a plan make, in order; those that only move data, or compute in public, are left out."""
    program, found = plan.program, []
    for operation in program.operations:
        if operation.output in program.public or operation.kind in MOVES:
            continue
        kind = "product" if operation.kind in PRODUCTS else "sum"
        if operation.kind == "truncate":
            kind = "cut" if operation.output in plan.cuts else "local"
        found.append(Made(kind, plan.bits[operation.output], math.prod(operation.shape)))
    return found


def _searched(ledger: "_Ledger") -> list[int]:
    """Change one truncation, or exchange a cut with a neighbour, as long as it pays; return the places of the cuts."""
    cuts = ledger.with_room(ledger.shared())
    cost, places = ledger.cost(cuts), ledger.truncations
    for _ in range(PASSES):
        before = cost
        for index, place in enumerate(places):
            moves = [cuts ^ {place}]
            if place in cuts:
                near = places[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1]
                moves += [cuts - {place} | {other} for other in near if other not in cuts]
            for changed in moves:
                if (found := ledger.cost(changed)) < cost:
                    cost, cuts = found, changed
        if cost == before:
            break
    return sorted(cuts)


class _Ledger:
    """Bits, bytes and rounds of a program for each choice of cuts, which are places of operations."""

    def __init__(self, program: RingProgram, sizes: Mapping[int, float] | None = None, margin: int = MARGIN):
        self._program, self._count = program, len(program.shapes)
        self._numbers = [math.prod(shape) for shape in program.shapes]
        self._right: dict[int, int] = {}  # bits in which the cut of a truncation is right, by place
        self._replicated = program.replicated
        self._operations = []
        given = {*program.inputs, *program.public}  # and what follows without messages: to cut these does not pay
        self._like = list(range(self._count))  # values with the same bits, rounds and kind of shares
        for place, operation in enumerate(program.operations):
            output, kind, bits = operation.output, operation.kind, operation.parameters.get("bits", 0)
            if output in program.public:
                continue
            if kind not in PRODUCTS and given.issuperset(operation.inputs):
                given.add(output)
            if kind == "truncate" and sizes is not None:
                self._right[place] = max(bits + 1, int(sizes[operation.inputs[0]] + ROUNDED).bit_length() + 2 + margin)
            secret = tuple(dict.fromkeys(number for number in operation.inputs if number not in program.public))
            passed = kind in MOVES | SUMS | {"scale", "offset"} and kind != "shift" and len(secret) == 1
            if passed and (output not in self._replicated or secret[0] in self._replicated):
                self._like[output] = self._like[secret[0]]
            else:
                like = tuple(self._like[number] for number in secret)
                self._operations.append((place, kind, like, output, bits))
        self.truncations = [place for place in self._right if program.operations[place].output not in given]

    def with_room(self, cuts: Iterable[int]) -> set[int]:
        """Return these cuts, and those without which there would be no room."""
        found = set(cuts)
        self.bits(found, add=True)
        return found

    def shared(self) -> set[int]:
        """Return the truncations of products whose results have to be pairs."""
        parts, found = [False] * self._count, set()
        for place, kind, secret, output, _ in self._operations:
            additive = kind in PRODUCTS or any([parts[number] for number in secret])
            if additive and output in self._replicated:
                additive = False
                if kind == "truncate":
                    found.add(place)
            parts[output] = additive
        return found

    def bits(self, cuts: set[int], *, add: bool = False) -> list[int] | None:
        """Return the bits that each value needs, or None if a local truncation has no room; with `add`, it becomes a cut."""
        need = [1] * self._count
        for number in self._program.outputs:
            need[self._like[number]] = FULL
        for place, kind, secret, output, bits in reversed(self._operations):
            wanted = need[output]
            if kind == "truncate":
                if place not in cuts and wanted + bits > FULL and add:
                    cuts.add(place)
                wanted = self._right[place] if place in cuts else wanted + bits
                if wanted > FULL:
                    if add:
                        raise CipherDMError(
                            f"operation {output} reads numbers of {wanted} bits, more than {FULL}; take fast-64"
                        )
                    return None
            elif kind == "shift":
                wanted = max(1, wanted - bits)
            for number in secret:
                if need[number] < wanted:
                    need[number] = wanted
        return need

    def rings(self, cuts: set[int]) -> tuple[int, ...]:
        """Return the bits of each value."""
        need = self.bits(cuts)
        return tuple(need[like] for like in self._like)

    def cost(self, cuts: set[int]) -> float:
        """Return the bytes of all parties, and ROUND for each round; infinite where there is no room."""
        need = self.bits(cuts)
        if need is None:
            return math.inf
        size, rounds = self.costs(cuts, need)
        return size + ROUND * rounds

    def costs(self, cuts: set[int], need: Sequence[int]) -> tuple[int, int]:
        """Return the bytes of all parties and the rounds."""
        total, depth, parts = 0, [0] * self._count, [False] * self._count  # additive parts, not pairs
        for place, kind, secret, output, bits in self._operations:
            begun, additive = 0, kind in PRODUCTS
            for number in secret:
                if depth[number] > begun:
                    begun = depth[number]
                additive = additive or parts[number]
            if kind == "truncate" and place in cuts:
                size, rounds = _cut_costs(self._numbers[output], need[secret[0]], bits, need[output], additive)
                total += size
                begun += rounds
                additive = False
            elif additive and output in self._replicated:
                total += self._numbers[output] * 3 * whole_bytes(need[output])
                begun += 1
                additive = False
            depth[output], parts[output] = begun, additive
        return total, max((depth[self._like[number]] for number in self._program.outputs), default=0)


@lru_cache(maxsize=1 << 16)
def _cut_costs(numbers: int, bits: int, shift: int, result: int, additive: bool) -> tuple[int, int]:
    """Return the bytes and the rounds of a cut."""
    messages = Cut(bits, shift, result).messages(numbers, replicated=not additive)
    return sum(message.bytes for message in messages), 1 + max(message.round for message in messages)
