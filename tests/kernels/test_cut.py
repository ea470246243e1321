"""The cut: on all numbers and all randomness of small rings against integer arithmetic, each party's view, bytes and rounds."""

import itertools
from collections import Counter

import numpy as np
import pytest
from three_parties import run, three_streams

from cipherdm import CipherDMError
from cipherdm.kernels.cut import Cut, cut
from cipherdm.kernels.rounds import packed, reshare, unpacked, whole_bytes
from cipherdm.kernels.shares import joined
from cipherdm.kernels.streams import STRIP, Address, Purpose, Streams

AT = Address(0, 0)
U64 = np.uint64


class Chosen:
    """Streams whose words a test chooses: `words[component][purpose]` for each number."""

    def __init__(self, component, words):
        self.component, self.chosen = component, words[component]

    def words(self, address, purpose, start, count, word=U64):
        chosen = self.chosen.get(purpose, np.zeros(1, U64))
        if purpose in (Purpose.A, Purpose.B):
            chosen = np.packbits(chosen.astype(np.uint8), bitorder="little")
        return np.resize(chosen, start + count)[start:].astype(word)


def chosen_streams(words, first=0):
    """Each rank's streams. Component i of the cut's parts is that of rank i + first."""
    by_rank = [words[(rank - first) % 3] for rank in range(3)]
    return [Streams(Chosen(rank, by_rank), Chosen((rank + 1) % 3, by_rank)) for rank in range(3)]


def cut_by_three(parts, words, of, replicated):
    """Cut additive parts or components [3, N] with chosen words by component, both in the order of P0, P1, P2."""
    streams = chosen_streams(words, of.first)
    steps = []
    for rank in range(3):
        part = (rank - of.first) % 3
        x = parts[[part, (part + 1) % 3]] if replicated else parts[[part]]
        steps.append(cut(streams[rank], rank, x, of, AT))
    return run(steps)


def all_of(*ranges):
    """All combinations as arrays of words."""
    return [grid.reshape(-1).astype(U64) for grid in np.meshgrid(*(np.arange(n) for n in ranges), indexing="ij")]


def signed(words, bits):
    """Words of a ring as whole numbers."""
    low = (words & U64((1 << bits) - 1)).astype(np.int64)
    return np.where(low >= 1 << (bits - 1), low - (1 << bits), low)


@pytest.mark.parametrize("k", range(2, 7))
@pytest.mark.parametrize("replicated", [False, True])
def test_every_number_with_all_masks_in_small_rings(k, replicated):
    """Result, its error bit and the range, for all splits of all z, all s and k', and all masks of the wraps."""
    for s, out in itertools.product(range(k), range(1, 8)):
        of = Cut(k, s, out)
        z, x1, a, b = all_of(1 << k, 1 << k, 2, 2)
        c0 = np.random.default_rng(0).integers(0, 1 << max(1, of.wrap), z.size).astype(U64)
        y0, y2 = np.random.default_rng(1).integers(0, 1 << out, (2, z.size)).astype(U64)
        garbage = np.random.default_rng(2).integers(0, 1 << 63, (3, z.size)).astype(U64) << U64(k)
        words = [{Purpose.A: a, Purpose.C: c0, Purpose.Y0: y0}, {}, {Purpose.B: b, Purpose.Y2: y2}]
        # P1 has x_1, less 1; the rest is split at random between P0 and P2, or between components 0 and 1.
        piece = np.random.default_rng(3).integers(0, 1 << k, z.size).astype(U64)
        parts = np.stack([z - x1 - piece, piece, x1] if replicated else [z - x1 - piece, x1, piece]) + garbage
        pairs, _ = cut_by_three(parts, words, of, replicated)
        low = U64((1 << out) - 1)
        pairs = [pair & low for pair in pairs]
        result = joined(pairs) & low
        number = signed(z, k)
        floor = number >> s
        r = ((x1.astype(np.int64) - 1) % (1 << k)) % (1 << s)
        expected = ((number - 1 - r) >> s) + 1
        inside = np.full(z.size, True) if not of.wrap else np.abs(number) <= 1 << (k - 2)
        np.testing.assert_array_equal(result[inside], (expected[inside] % (1 << out)).astype(U64), f"{of}")
        assert set((expected - floor).tolist()) <= {0, 1}
        # Over all splits the result is right on average, for each number.
        for value in np.unique(number[inside]):
            assert (expected[number == value] - value / 2**s).mean() == pytest.approx(0, abs=1e-12)
        if of.wrap:  # one step outside it is wrong for some splits
            outside = number == (1 << (k - 2)) + 1 if k > 2 else number == -2
            assert k < 3 or (result[outside] != (expected[outside] % (1 << out)).astype(U64)).any(), f"{of}"


def columns(log, of, count, replicated):
    """The messages of a cut by name, a number each for each of the numbers cut."""
    fields, at = {}, Counter()
    for m in of.messages(count, replicated=replicated):
        ends = (m.round, (m.sender + of.first) % 3, (m.receiver + of.first) % 3)
        (content,) = [content for *where, content in log if tuple(where) == ends]
        part = content[at[ends] : at[ends] + m.bytes]
        at[ends] += m.bytes
        if m.name in "ef":
            fields[m.name] = np.unpackbits(part, count=count, bitorder="little").astype(U64)
        else:
            fields[m.name] = unpacked(part, 8 * m.bytes // count)
    return fields


def distance(inputs, view):
    """Largest total variation between the views for one value of the others' inputs and for any other, over all masks.

    inputs, view: lists of arrays, a number for each combination of inputs and masks.
    """

    def code(arrays):
        number = np.zeros(arrays[0].size, np.int64)
        for array in arrays:
            number = number * (int(array.max()) + 1) + array.astype(np.int64)
        return np.unique(number, return_inverse=True)[1]

    rows, seen = code(inputs), code(view)
    table = np.zeros((rows.max() + 1, seen.max() + 1))
    np.add.at(table, (rows, seen), 1)
    table /= table.sum(axis=1, keepdims=True)
    return np.abs(table - table[0]).sum(axis=1).max() / 2


RING3 = Cut(3, 2, 2)  # one bit of wraps
UP = Cut(2, 0, 3)  # nothing is cut off, and the ring becomes larger, as from 32 bits to 64
# What each part knows and receives; F_i(ZERO) of components 0 and 1 are 0 here, which only moves z_0.
KNOWN = (("a", "c0", "y0"), ("zero", "b", "y2"), ("zero", "a", "b", "c0", "y0", "y2"))
RECEIVED = (("z", "f", "t1"), ("c", "e", "t0"), ())


def enumerated(of, *, replicated=False, misuse=None):
    """All inputs and masks of a cut of one number: an array for each variable and each message.

    misuse: names of two variables; the first one is given the second one's value.
    """
    ring, out = 1 << of.bits, 1 << of.result
    sizes = {"z0": 1, "z1": ring, "z2": ring, "zero": 1 if replicated else ring, "a": 2, "b": 2}
    sizes |= {"c0": 1 << of.wrap, "y0": out, "y2": out}
    v = dict(zip(sizes, all_of(*sizes.values()), strict=True))
    if misuse:
        v[misuse[0]] = v[misuse[1]] % U64(sizes[misuse[0]])
    words = [{Purpose.A: v["a"], Purpose.C: v["c0"], Purpose.Y0: v["y0"]}, {}]
    words += [{Purpose.B: v["b"], Purpose.Y2: v["y2"], Purpose.ZERO: v["zero"]}]  # of P1 and P2
    count = v["a"].size
    pairs, log = cut_by_three(np.stack([v["z0"], v["z1"], v["z2"]]), words, of, replicated)
    v |= columns(log, of, count, replicated)
    return v | {"result": joined([pair & U64(out - 1) for pair in pairs]) & U64(out - 1)}


def of_names(variables, *names):
    return [variables[name] for name in names]


@pytest.mark.parametrize("of", [RING3, UP], ids=["cut", "up"])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("replicated", [False, True])
def test_messages_are_the_same_whatever_the_others_hold(part, replicated, of):
    """P2 receives none. For P1 the others hold z_0, of which any part is as good as z_2, to which P0 adds it."""
    v = enumerated(of, replicated=replicated)
    others = ("z2",) if replicated and part == 0 else ("z1", "z2") if part == 0 else ("z2",)
    own = [name for name in ("z1", "z2") if name not in others] if replicated else []
    received = [name for name in RECEIVED[part] if name in v]
    assert distance(of_names(v, *others), of_names(v, *own, *KNOWN[part], *received)) == 0


@pytest.mark.parametrize("of", [RING3, UP], ids=["cut", "up"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_with_the_result_a_view_depends_on_the_others_inputs_through_their_sum_alone(part, of):
    v = enumerated(of)
    ring = U64((1 << of.bits) - 1)
    v["z of all"] = (v["z0"] + v["z1"] + v["z2"]) & ring
    own = f"z{part}"
    for value in range(1 << of.bits):
        for mine in {0, int(v[own].max())}:
            some = (v["z of all"] == value) & (v[own] == mine)
            view = of_names(v, *KNOWN[part], *RECEIVED[part], "result")
            assert distance([v["z1"][some], v["z2"][some]], [array[some] for array in view]) == 0


@pytest.mark.parametrize(
    ("part", "misuse", "least"),
    [
        (0, ("y2", "zero"), 0.9),  # a component from the stream of zero shares
        (0, ("b", "zero"), 0.9),
        (1, ("c0", "y0"), 0.5),  # two purposes of one key with one word
    ],
)
def test_a_word_with_two_purposes_shows_something(part, misuse, least):
    v = enumerated(RING3, misuse=misuse)
    others = ("z1", "z2") if part == 0 else ("z2",)
    assert distance(of_names(v, *others), of_names(v, *KNOWN[part], *RECEIVED[part])) >= least


def test_e_and_f_are_not_for_p2():
    v = enumerated(RING3)
    assert distance([v["z1"]], of_names(v, *KNOWN[2], "e", "f")) >= 0.5


@pytest.mark.parametrize(
    ("twice", "part", "first"),
    [
        ("a", 1, 0),
        ("b", 0, 0),
        ("c0", 1, 0),
        ("y0", 1, 0),
        ("y2", 0, 0),
        ("y0 as y2", 1, 1),
        (None, 1, 0),
        (None, 0, 0),
        (None, 1, 1),
    ],
)
def test_a_mask_that_is_used_twice_shows_something(twice, part, first):
    """Two cuts in the smallest ring, the second one with its parts turned by `first`; None uses every mask once."""
    of, turned = Cut(2, 1, 2), Cut(2, 1, 2, first)
    names = ["x", "X", "a", "b", "c0", "y0", "y2", "A", "B", "C0", "Y0", "Y2"]
    sizes = dict.fromkeys(names, 2) | dict.fromkeys(("x", "X", "y0", "y2", "Y0", "Y2"), 4)
    v = dict(zip(names, all_of(*sizes.values()), strict=True))
    if twice == "y0 as y2":
        v["Y2"] = v["y0"]
    elif twice:
        v[twice.upper()] = v[twice]
    views = []
    for cut_of, x, a, b, c0, y0, y2 in ((of, *names[:1], *names[2:7]), (turned, "X", *names[7:])):
        words = [{Purpose.A: v[a], Purpose.C: v[c0], Purpose.Y0: v[y0]}, {}, {Purpose.B: v[b], Purpose.Y2: v[y2]}]
        # Replicated, so that one word decides: component 2 for P0's view, and component 0 for P1's and P2's.
        mine = (part - cut_of.first) % 3
        parts = np.zeros((3, v[x].size), U64)
        parts[2 if mine == 0 else 0] = v[x]
        _, log = cut_by_three(parts, words, cut_of, True)
        messages = columns(log, cut_of, v[x].size, True)
        known = {0: (a, c0, y0), 1: (b, y2), 2: ()}[mine]
        views += of_names(v, *known) + [messages[name] for name in RECEIVED[mine] if name in messages]
    seen = distance([v["x"], v["X"]], views)
    assert seen >= 0.5 if twice else seen == 0


@pytest.mark.parametrize(
    ("k", "s", "out"), [(20, 7, 20), (40, 12, 33), (64, 24, 64), (64, 18, 32), (32, 0, 64), (64, 63, 8)]
)
@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("replicated", [False, True])
def test_large_rings_over_several_strips(k, s, out, first, replicated):
    of, generator = Cut(k, s, out, first), np.random.default_rng(k + first)
    limit = 1 << min(k - 2, s + out - 2)  # so that the result fits as well
    z = generator.integers(-limit, limit, STRIP + 77)
    z[:3] = limit, -limit, 0
    words = generator.integers(0, 1 << 64, (3, z.size), dtype=U64)  # with garbage above the ring
    words[2] = z.view(U64) - words[0] - words[1]
    streams = three_streams()
    inputs = [words[[r, (r + 1) % 3]] if replicated else words[[r]] for r in range(3)]
    pairs, log = run([cut(streams[rank], rank, inputs[rank], of, AT) for rank in range(3)])
    low = U64((1 << out) - 1)
    result = signed(joined([pair & low for pair in pairs]), out) if out < 64 else joined(pairs).view(np.int64)
    assert set((result - (z >> s)).tolist()) <= {0, 1}
    if s:
        assert (result - (z >> s)).mean() == pytest.approx(((z % (1 << s)) / 2.0**s).mean(), abs=0.02)
    messages = of.messages(z.size, replicated=replicated)
    assert sum(content.size for *_, content in log) == sum(m.bytes for m in messages)


@pytest.mark.parametrize(
    ("k", "s", "out", "replicated", "expected", "messages"),
    [
        (32, 10, 32, False, 14.25, 5),
        (32, 8, 32, False, 13.25, 5),
        (64, 18, 64, False, 27.25, 5),
        (64, 24, 64, False, 27.25, 5),
        (64, 32, 32, False, 16, 3),
        (64, 18, 32, False, 15, 3),
        (32, 10, 64, False, 26.25, 5),
        (64, 18, 32, True, 8, 2),
        (32, 0, 64, True, 20.25, 5),
    ],
)
def test_bytes_of_the_shapes_in_use(k, s, out, replicated, expected, messages):
    found = Cut(k, s, out).messages(8, replicated=replicated)
    assert sum(m.bytes for m in found) / 8 == expected
    assert len({(m.round, m.sender, m.receiver) for m in found}) == messages


def test_flags_of_numbers_that_fill_no_byte_end_in_zeros():
    streams = three_streams()
    _, log = run([cut(streams[r], r, np.full((1, 3), 1 << 60, U64), Cut(64, 20, 64), AT) for r in range(3)])
    flags = [content for number, sender, receiver, content in log if (number, sender, receiver) == (0, 1, 0)]
    assert len(flags) == 1 and flags[0].size == 1 and flags[0][0] < 8


@pytest.mark.parametrize("bits", [1, 12, 32, 64])
def test_additive_parts_become_pairs(bits):
    z = np.random.default_rng(0).integers(0, 1 << 64, (3, STRIP + 5), dtype=U64)
    streams = three_streams()
    pairs, log = run([reshare(streams[rank], rank, z[rank], bits, AT) for rank in range(3)])
    low = U64((1 << bits) - 1)
    np.testing.assert_array_equal(joined([pair & low for pair in pairs]) & low, z.sum(axis=0) & low)
    assert [content.size for *_, content in log] == 3 * [z.shape[1] * whole_bytes(bits)]
    assert {(sender, receiver) for _, sender, receiver, _ in log} == {(0, 2), (1, 0), (2, 1)}


def test_messages_of_a_large_cut_are_uniform_bytes():
    """Chi-squared of the bytes of each message about a constant number; two cuts of it have nothing in common."""
    streams, count = three_streams(), 50_000
    seen = []
    for operation in range(2):
        x = [np.full((1, count), 12345, U64) for _ in range(3)]
        _, log = run([cut(streams[r], r, x[r], Cut(64, 16, 64), Address(0, operation)) for r in range(3)])
        seen.append(log)
    for (*_, one), (*_, other) in zip(*seen, strict=True):
        expected = one.size / 256
        chi = ((np.bincount(one, minlength=256) - expected) ** 2 / expected).sum()
        assert 130 < chi < 420  # 255 degrees of freedom: 5 standard deviations below and above
        assert (one == other).mean() < 0.01


def test_packing_keeps_the_lower_bits():
    words = np.array([0x0123456789ABCDEF, 0xFFFFFFFFFFFFFFFF], U64)
    for bits in (1, 8, 9, 24, 33, 63, 64):
        content = packed(words, bits)
        assert content.size == 2 * whole_bytes(bits)
        np.testing.assert_array_equal(unpacked(content, bits), words & U64((1 << bits) - 1))


@pytest.mark.parametrize("wrong", [(1, 0, 1), (65, 0, 1), (8, 8, 8), (8, -1, 8), (8, 0, 65), (8, 0, 0)])
def test_impossible_cuts_are_refused(wrong):
    with pytest.raises(CipherDMError, match="cannot be"):
        Cut(*wrong)
