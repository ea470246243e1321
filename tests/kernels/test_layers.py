"""Kernels of three parties against direct integer arithmetic, and what their messages give away: nothing."""

import queue
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from cipherdm import CipherDMError
from cipherdm.kernels import layers
from cipherdm.kernels.products import FLOAT64, INT8, INTEGERS
from cipherdm.kernels.shares import bytes_from_pair, finish, joined, pair_from_bytes, replicate
from cipherdm.kernels.zero import AgreedKeys, agree, fresh_key

WORDS = (np.uint64, np.uint32)
PATHS = (INT8, FLOAT64, INTEGERS)
KEYS = [bytes([number]) * 32 for number in (1, 2, 3)]


def random_words(generator, shape, word=np.uint64):
    return generator.integers(0, np.iinfo(word).max, shape, dtype=word, endpoint=True)


def shared(generator, secret):
    """The three parties' pairs of a secret."""
    first, second = random_words(generator, (2, *secret.shape), secret.dtype.type)
    return replicate(np.stack([first, second, secret - first - second]))


def lockstep(function, *secrets, run=b"run", keys=KEYS, seed=0):
    """function(rank's pairs..., zeros) -> z for each party in turn.

    Returns:
        (result, messages, z): the joined result, the bytes that each rank sent, and each rank's z.
    """
    generator = default_rng(seed)
    pairs = [shared(generator, secret) for secret in secrets]
    zeros = [AgreedKeys(keys[rank], keys[(rank + 1) % 3]).zero_shares(run) for rank in range(3)]
    z = [function(*(pair[rank] for pair in pairs), zeros[rank]) for rank in range(3)]
    messages = []

    def exchange(rank, message):
        messages.append(message)
        return z[(rank + 1) % 3].tobytes()

    results = [finish(z[rank], lambda message, rank=rank: exchange(rank, message)) for rank in range(3)]
    return joined(results), messages, z


def direct_convolution(w, x, stride, padding):
    """Convolution by its definition, one kernel position after the other, in wrapping words."""
    size = w.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    rows, columns = ((length - size) // stride + 1 for length in x.shape[2:])
    y = np.zeros((x.shape[0], w.shape[0], rows, columns), x.dtype)
    for u in range(size):
        for v in range(size):
            met = x[:, :, u : u + stride * (rows - 1) + 1 : stride, v : v + stride * (columns - 1) + 1 : stride]
            y += np.einsum("oc,bcij->boij", w[:, :, u, v], met)
    return y


def convolution(path, stride, padding):
    def party(w, x, zeros):
        return layers.conv2d(layers.prepare(path, w), x, zeros, stride=stride, padding=padding)

    return party


@st.composite
def convolutions(draw):
    size = draw(st.integers(1, 3))
    stride = draw(st.integers(1, 3))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(2))
    height, width = (draw(st.integers(max(1, size - sum(around)), 7)) for around in padding)
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 5, 20, 50))), height, width)
    return draw(st.sampled_from(WORDS)), draw(st.integers(1, 4)), shape, size, stride, padding, draw(st.integers(0, 99))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_convolution_equals_its_definition(path, case):
    word, outputs, shape, size, stride, padding, seed = case
    generator = default_rng(seed)
    x, w = random_words(generator, shape, word), random_words(generator, (outputs, shape[1], size, size), word)
    result, *_ = lockstep(convolution(path, stride, padding), w, x, seed=seed)
    assert result.dtype == word
    np.testing.assert_array_equal(result, direct_convolution(w, x, stride, padding))


def test_convolution_is_pytorchs():
    generator = default_rng(3)
    x, w = generator.integers(-99, 99, (2, 5, 8, 9)), generator.integers(-99, 99, (4, 5, 3, 3))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(w).double(), stride=2, padding=1
    )
    around = ((1, 1), (1, 1))
    result, *_ = lockstep(convolution(INT8, 2, around), w.astype(np.uint64), x.astype(np.uint64))
    np.testing.assert_array_equal(result.astype(np.int64), expected.numpy())


@pytest.mark.parametrize("path", (INT8, FLOAT64), ids=lambda path: path.name)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "shape", [(3, 40, 30, 30), (1, 24, 9, 150)], ids=["several images a block", "several blocks an image"]
)
def test_convolution_in_blocks_and_parts(path, word, shape, monkeypatch):
    """More pixels than a block has, and more inner elements (2 x 9 x 40) than the parts that a small limit leaves."""
    monkeypatch.setattr(layers, "BLOCK_BYTES", 1 << 10)  # 128 columns at a time
    path = replace(path, forms=tuple(replace(form, limit=100) for form in path.forms))
    generator = default_rng(4)
    x, w = random_words(generator, shape, word), random_words(generator, (6, shape[1], 3, 3), word)
    around = ((1, 1), (1, 1))
    result, *_ = lockstep(convolution(path, 1, around), w, x)
    np.testing.assert_array_equal(result, direct_convolution(w, x, 1, around))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("leading", ((), (3,), (2, 2)))
def test_matrix_product(word, leading):
    generator = default_rng(6)
    w, x = random_words(generator, (5, 7), word), random_words(generator, (*leading, 7, 6), word)
    result, *_ = lockstep(lambda w, x, zeros: layers.matmul(layers.prepare(INT8, w), x, zeros), w, x)
    np.testing.assert_array_equal(result, w @ x)


@pytest.mark.parametrize("word", WORDS)
@settings(max_examples=25, deadline=None)
@given(
    leading=st.lists(st.integers(1, 3), max_size=2),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    transposed=st.booleans(),
)
def test_batched_product_of_two_secrets(word, leading, shape, transposed):
    rows, inner, columns = shape
    generator = default_rng(7)
    x = random_words(generator, (*leading, rows, inner), word)
    y = random_words(generator, (*leading, columns, inner) if transposed else (*leading, inner, columns), word)

    def party(x, y, zeros):
        return layers.batched_product(INT8, x, y.swapaxes(-1, -2) if transposed else y, zeros)

    result, *_ = lockstep(party, x, y)
    np.testing.assert_array_equal(result, x @ (y.swapaxes(-1, -2) if transposed else y))


def test_batched_product_in_blocks_of_columns(monkeypatch):
    monkeypatch.setattr(layers, "BLOCK_BYTES", 1)
    generator = default_rng(8)
    x, y = random_words(generator, (2, 5, 4)), random_words(generator, (2, 4, 300))
    result, *_ = lockstep(lambda x, y, zeros: layers.batched_product(INT8, x, y, zeros), x, y)
    np.testing.assert_array_equal(result, x @ y)


def test_three_threads_that_agree_on_keys_over_their_links():
    """Every party on its own: keys, kernel and message go through queues, and both products use one sequence of zero shares."""
    generator = default_rng(9)
    w, x = random_words(generator, (4, 6)), random_words(generator, (6, 5))
    pairs = shared(generator, w), shared(generator, x)
    inboxes = [queue.Queue() for _ in range(3)]
    results, told, everybody = {}, [None] * 3, threading.Barrier(3)

    def party(rank):
        def exchange(message):
            inboxes[(rank - 1) % 3].put(message)
            return inboxes[rank].get(timeout=30)

        def gather(text):
            told[rank] = text
            everybody.wait(timeout=30)
            return told

        zeros = agree(exchange, gather, b"run").zero_shares(b"run")
        weights = layers.prepare(INT8, pairs[0][rank])
        y = finish(layers.matmul(weights, pairs[1][rank], zeros), exchange)
        results[rank] = y, finish(layers.batched_product(INT8, y.swapaxes(-1, -2), y, zeros), exchange)

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    y = w @ x
    np.testing.assert_array_equal(joined([results[rank][0] for rank in range(3)]), y)
    np.testing.assert_array_equal(joined([results[rank][1] for rank in range(3)]), y.T @ y)


def kernel_calls():
    """Each kind of kernel, with secrets of shapes that give some thousand words."""
    around = ((1, 1), (1, 1))
    return {
        "matmul": (lambda w, x, zeros: layers.matmul(layers.prepare(INT8, w), x, zeros), (64, 8), (8, 64)),
        "conv2d": (convolution(INT8, 1, around), (16, 2, 3, 3), (1, 2, 16, 16)),
        "batched": (lambda x, y, zeros: layers.batched_product(INT8, x, y, zeros), (4, 32, 3), (4, 3, 32)),
    }


def chi_squared(message):
    """Of the counts of byte values, in standard deviations from what uniform bytes give."""
    counts = np.bincount(np.frombuffer(message, np.uint8), minlength=256)
    expected = counts.sum() / 256
    return (((counts - expected) ** 2 / expected).sum() - 255) / np.sqrt(2 * 255)


@pytest.mark.parametrize("name", kernel_calls())
@pytest.mark.parametrize("word", WORDS)
def test_messages_are_uniform_whatever_the_inputs(name, word):
    """Even where all shares are zero, or repeat one word, so that the products alone would be far from uniform."""
    function, *shapes = kernel_calls()[name]
    for number in (0, 1, np.iinfo(word).max):
        pairs = [np.full((2, *shape), number, word) for shape in shapes]
        for rank in range(3):
            zeros = AgreedKeys(KEYS[rank], KEYS[(rank + 1) % 3]).zero_shares(b"run")
            assert abs(chi_squared(function(*pairs, zeros).tobytes())) < 6


@pytest.mark.parametrize("name", kernel_calls())
def test_messages_differ_from_the_product_by_the_zero_share_alone(name):
    """z_i minus its zero share is the three products of components; what hides it is drawn without a look at the inputs."""
    function, *shapes = kernel_calls()[name]
    generator = default_rng(10)
    secrets = [random_words(generator, shape) for shape in shapes]
    *_, z = lockstep(function, *secrets)
    *_, other = lockstep(function, *secrets, run=b"another run")
    for rank in range(3):
        zeros = [
            AgreedKeys(KEYS[rank], KEYS[(rank + 1) % 3]).zero_shares(run).draw(z[rank].shape)
            for run in (b"run", b"another run")
        ]
        np.testing.assert_array_equal(z[rank] - zeros[0], other[rank] - zeros[1])


@pytest.mark.parametrize("name", kernel_calls())
def test_two_runs_on_the_same_shares_have_no_word_of_a_message_in_common(name):
    function, *shapes = kernel_calls()[name]
    secrets = [np.ones(shape, np.uint64) for shape in shapes]
    keys = [fresh_key() for _ in range(3)]
    runs = [
        lockstep(function, *secrets, keys=keys, run=b"first"),
        lockstep(function, *secrets, keys=keys, run=b"second"),
        lockstep(function, *secrets, keys=[fresh_key() for _ in range(3)], run=b"first"),
    ]
    words = np.concatenate([np.frombuffer(message, np.uint64) for _, messages, _ in runs for message in messages])
    assert np.unique(words).size == words.size
    for result, *_ in runs:
        np.testing.assert_array_equal(result, runs[0][0])


@pytest.mark.parametrize("word", WORDS)
def test_shares_travel_as_spu_stores_them(word):
    """Word after word: the own component, then the next party's; rank i's second are rank i + 1's first."""
    secret = np.arange(6, dtype=word).reshape(2, 3)
    pairs = shared(default_rng(11), secret)
    contents = [bytes_from_pair(pair) for pair in pairs]
    stored = [np.frombuffer(content, word).reshape(6, 2) for content in contents]
    for rank in range(3):
        np.testing.assert_array_equal(stored[rank][:, 1], stored[(rank + 1) % 3][:, 0])
        np.testing.assert_array_equal(pair_from_bytes(contents[rank], (2, 3), word), pairs[rank])
    np.testing.assert_array_equal(sum(column[:, 0] for column in stored).reshape(2, 3), secret)


def images(*shape, word=np.uint64):
    return np.zeros(shape, word)


ZEROS = AgreedKeys(*KEYS[:2]).zero_shares(b"refused")
PLAIN = layers.prepare(INT8, images(2, 3, 4, 3, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: layers.prepare(INT8, images(3, 3, 4, 3, 3)), "weights have the shape"),
        (lambda: layers.prepare(INT8, np.zeros((2, 3, 4))), "float64"),
        (lambda: layers.conv2d(PLAIN, images(2, 1, 5, 8, 8), ZEROS), "4 channels"),
        (lambda: layers.conv2d(PLAIN, images(2, 1, 4, 8, 8, word=np.uint32), ZEROS), "uint32"),
        (lambda: layers.conv2d(PLAIN, images(2, 1, 4, 2, 8), ZEROS), "smaller than a kernel"),
        (lambda: layers.matmul(PLAIN, images(2, 4, 8), ZEROS), "matrix product"),
        (lambda: layers.batched_product(INT8, images(2, 3, 4), images(2, 3, 4), ZEROS), "no product"),
        (lambda: layers.batched_product(INT8, images(2, 3, 4), images(2, 4, 4, word=np.uint32), ZEROS), "uint32"),
        (lambda: finish(images(3), lambda message: message[:8]), "8 bytes of a product of 24"),
        (lambda: pair_from_bytes(bytes(24), (2,)), "24 bytes"),
        (lambda: joined([images(2, 3), images(2, 3) + np.uint64(1), images(2, 3)]), "ranks 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(CipherDMError, match=message):
        call()
