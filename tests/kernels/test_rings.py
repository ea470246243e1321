"""Rings by value: the same results with fewer bits and bytes, and refusals of what would not be right."""

import numpy as np
import pytest
from jax import lax
from scipy import stats
from walking import BITS, met, read, walked

from cipherdm import CipherDMError
from cipherdm.engine import Spec
from cipherdm.kernels import walk as walk_module
from cipherdm.kernels.apart import MOST, apart
from cipherdm.kernels.cut import Cut
from cipherdm.kernels.narrow import ELEMENTWISE, NEAR, narrowed
from cipherdm.kernels.ring_program import PRODUCTS, WalkPlan, in_the_clear
from cipherdm.kernels.rings import MARGIN, costs, planned
from cipherdm.kernels.rounds import mask, unpacked
from cipherdm.protocols.fast import VALUE_BITS
from cipherdm.protocols.fixed import Fixed

SIGNIFICANT = 12


@pytest.fixture(scope="module")
def small(step):
    """The step with few significant bits, the sizes of its values, and a plan."""
    program, arrays, _ = step
    program = apart(program)
    program, sizes = narrowed(program, met(program, arrays), SIGNIFICANT)
    return program, sizes, planned(program, sizes)


def test_a_steps_factors_have_few_bits_and_its_sample_is_as_good(step, small):
    _, arrays, expected = step
    program, sizes, _ = small
    for operation in program.operations:
        if operation.kind in PRODUCTS:
            bits = SIGNIFICANT + (ELEMENTWISE if operation.kind == "multiply" else 0)
            assert all(int(sizes[number]).bit_length() <= bits + 2 * NEAR for number in operation.inputs)
    clear = in_the_clear(program, arrays)
    error = clear[program.outputs[0]] * 2.0**-VALUE_BITS - expected
    assert np.sqrt(np.mean(error**2)) < 12 * 2.0**-VALUE_BITS
    for number, size in sizes.items():  # as foretold from the sizes before
        if number in clear and size > 2**12:
            assert np.abs(clear[number]).max() == pytest.approx(size, rel=0.2)


def test_a_step_walks_in_small_rings(step, small):
    program, arrays, expected = step
    _, _, plan = small
    (sample,), log = walked(plan, arrays)
    error = sample * 2.0**-VALUE_BITS - expected
    assert np.sqrt(np.mean(error**2)) < 12 * 2.0**-VALUE_BITS
    size, rounds = costs(plan)
    assert size == sum(content.size for *_, content in log)
    assert rounds == 1 + max(number for number, *_ in log)
    before, _ = costs(WalkPlan.in_64_bits(step[0]))
    assert size < before / 1.4
    assert WalkPlan.from_json(plan.to_json()).to_json() == plan.to_json()


def uniform(words, bits):
    """p-values of the upper and of the lower bits of words modulo 2^bits, if uniform."""
    width = min(bits, 4)
    words = words & mask(bits)
    parts = (words >> np.uint64(bits - width), words & mask(width))
    return [stats.chisquare(np.bincount(part.astype(int), minlength=1 << width)).pvalue for part in parts]


def test_all_that_a_party_sees_of_a_step_is_uniform_also_beside_what_it_holds(step, small, monkeypatch):
    """Each message, that with the receiver's own components added, and the pairs that come of it: 2,000 sets of words.

    A component that a party lacks would be uniform by itself, but not with its own two.
    """
    sent, ended = {}, []
    for name in ("cut", "reshare"):
        protocol = getattr(walk_module, name)

        def recorded(streams, rank, x, of, address, protocol=protocol):
            steps, got = protocol(streams, rank, x, of, address), None
            while True:
                try:
                    messages = steps.send(got)
                except StopIteration as end:
                    ended.append((rank, np.atleast_2d(x), of, address, end.value))
                    return end.value
                for receiver, content in messages.sends.items():
                    sent.setdefault((address, rank, receiver), []).append(content.copy())
                got = yield messages

        monkeypatch.setattr(walk_module, name, recorded)
    walked(small[2], step[1])
    found = []
    for rank, x, of, address, pair in ended:
        if x.shape[1] < 400:  # too few to tell
            continue
        for sender in {0, 1, 2} - {rank}:
            content = np.concatenate(sent.get((address, sender, rank), [np.empty(0, np.uint8)]))
            for bits, words in fields(content, of, sender, rank, x.shape):
                held = [np.zeros_like(words), x[0], x.sum(0)] if bits > 1 else [np.zeros_like(words)]
                found += [p for own in held for p in uniform(words + own, bits)]
        bits = of.result if isinstance(of, Cut) else of
        found += [p for words in (*pair, pair.sum(0)) for p in uniform(words, bits)]
    assert len(found) > 2000
    assert min(found) > 1e-3 / len(found) and stats.kstest(found, "uniform").pvalue > 1e-4


def fields(content, of, sender, receiver, shape):
    """(bits, words) of each field that one party sends another in a protocol."""
    if not isinstance(of, Cut):
        return [(of, unpacked(content, of))] if content.size else []
    found, stop = [], 0
    bits = {"z": of.sent, "c": of.wrap, "t0": of.result, "t1": of.result}
    messages = of.messages(shape[1], replicated=shape[0] == 2)
    for message in sorted(messages, key=lambda message: message.round):
        if ((message.sender + of.first) % 3, (message.receiver + of.first) % 3) == (sender, receiver):
            part = content[stop : stop + message.bytes]
            stop += message.bytes
            if message.name in bits:
                found.append((bits[message.name], unpacked(part, bits[message.name])))
            else:
                found.append((1, np.unpackbits(part, count=shape[1], bitorder="little").astype(np.uint64)))
    return found


def test_joined_products_come_apart(step):
    """The same words in the end, and no product of numbers that are joined from two."""
    program, arrays, _ = step
    parts = apart(program)
    made = {operation.output: operation for operation in parts.operations}
    for operation in parts.operations:
        if operation.kind == "multiply":
            joined = [made[number] for number in operation.inputs if number in made]
            assert all(len(one.inputs) > MOST for one in joined if one.kind == "concatenate")
    clear, expected = in_the_clear(parts, arrays), in_the_clear(program, arrays)
    for number, before in zip(parts.outputs, program.outputs, strict=True):
        np.testing.assert_array_equal(clear[number], expected[before])


def square(x):
    number = Fixed.load(x, BITS, True)
    return (number * number).truncated(BITS).store()


def test_numbers_may_be_as_large_as_the_margin_says():
    """And beyond it the result is wrong: a square's ring has two bits for the cut, the margin, and no more."""
    program, words = read(square, [Spec((100,))]), np.arange(-50, 50) << 8
    plan = planned(program, met(program, [words]))
    for factor, right in ((2 ** (MARGIN / 2), True), (2 ** (2 + MARGIN / 2), False)):
        larger = (words * factor).astype(np.int64)
        (result,), _ = walked(plan, [larger])
        assert (np.abs(result - (larger * larger >> BITS)).max() <= 1) == right


def test_numbers_that_no_ring_holds_are_refused():
    program = read(square, [Spec((1,))])
    with pytest.raises(CipherDMError, match="numbers of 65 bits, more than 64"):
        planned(program, met(program, [np.array([1 << 30])]))
    for far in (1 << 33, 1 << 60):
        with pytest.raises(CipherDMError, match="leave that of 64 bits.*calibrate with more images"):
            narrowed(program, met(program, [np.array([far])]), SIGNIFICANT)


def test_what_a_row_of_zeros_and_a_one_picks_is_exact():
    def pick(row, table):
        words = (Fixed.load(array, 0, True).array for array in (row, table))
        return Fixed(lax.dot_general(*words, (((1,), (0,)), ((), ()))), 0, True).store()

    program = read(pick, [Spec((1, 2)), Spec((2, 3))])
    arrays = [np.array([[0, 1]]), np.array([[1, 2, 3], [(1 << 40) + 1, 5, 1]])]
    program, sizes = narrowed(program, met(program, arrays), SIGNIFICANT)
    (result,), _ = walked(planned(program, sizes), arrays)
    np.testing.assert_array_equal(result, arrays[1][1:])
