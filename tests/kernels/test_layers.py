"""Layers of three parties against direct integer arithmetic, in rings of several sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from three_parties import shared

from cipherdm import CipherDMError
from cipherdm.kernels import layers
from cipherdm.kernels.digits import Format
from cipherdm.kernels.products import FLOAT64, INT8, INTEGERS
from cipherdm.kernels.rounds import mask
from cipherdm.kernels.shares import bytes_from_pair, joined, pair_from_bytes, replicate

BITS = (64, 40, 37, 8)
PATHS = (INT8, FLOAT64, INTEGERS)


def random_words(generator, shape):
    return generator.integers(0, 1 << 64, shape, dtype=np.uint64)


def parts(function, *secrets):
    """The sum of the three parties' results of function(pairs...)."""
    return sum(function(*pairs) for pairs in zip(*map(shared, secrets), strict=True))


def assert_equal_in_ring(result, expected, bits):
    assert result.dtype == np.uint64
    np.testing.assert_array_equal(result & mask(bits), expected & mask(bits))


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


@st.composite
def convolutions(draw):
    size = draw(st.integers(1, 3))
    stride = draw(st.integers(1, 3))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(2))
    height, width = (draw(st.integers(max(1, size - sum(around)), 7)) for around in padding)
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 5, 20, 50))), height, width)
    return draw(st.sampled_from(BITS)), draw(st.integers(1, 4)), shape, size, stride, padding, draw(st.integers(0, 99))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_convolution_equals_its_definition(path, case):
    bits, outputs, shape, size, stride, padding, seed = case
    generator = default_rng(seed)
    x, w = random_words(generator, shape), random_words(generator, (outputs, shape[1], size, size))

    def party(w, x):
        return layers.conv2d(layers.prepare(path, w, bits), x, stride=stride, padding=padding)

    assert_equal_in_ring(parts(party, w, x), direct_convolution(w, x, stride, padding), bits)


def test_convolution_is_pytorchs():
    generator = default_rng(3)
    x, w = generator.integers(-99, 99, (2, 5, 8, 9)), generator.integers(-99, 99, (4, 5, 3, 3))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(w).double(), stride=2, padding=1
    )

    def party(w, x):
        return layers.conv2d(layers.prepare(INT8, w), x, stride=2, padding=((1, 1), (1, 1)))

    result = parts(party, w.astype(np.uint64), x.astype(np.uint64))
    np.testing.assert_array_equal(result.astype(np.int64), expected.numpy())


@pytest.mark.parametrize("path", (INT8, FLOAT64), ids=lambda path: path.name)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "shape", [(3, 40, 30, 30), (1, 24, 9, 150)], ids=["several images a block", "several blocks an image"]
)
def test_convolution_in_blocks_and_parts(path, bits, shape, monkeypatch):
    """More pixels than a block has, and more inner elements (2 x 9 x 40) than the parts that a small limit leaves."""
    monkeypatch.setattr(layers, "BLOCK_BYTES", 1 << 10)  # 128 columns at a time
    monkeypatch.setattr(Format, "limit", 100)
    generator = default_rng(4)
    x, w = random_words(generator, shape), random_words(generator, (6, shape[1], 3, 3))
    around = ((1, 1), (1, 1))
    result = parts(lambda w, x: layers.conv2d(layers.prepare(path, w, bits), x, padding=around), w, x)
    assert_equal_in_ring(result, direct_convolution(w, x, 1, around), bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("leading", ((), (3,), (2, 2)))
def test_matrix_product(bits, leading):
    generator = default_rng(6)
    w, x = random_words(generator, (5, 7)), random_words(generator, (*leading, 7, 6))
    assert_equal_in_ring(parts(lambda w, x: layers.matmul(layers.prepare(INT8, w, bits), x), w, x), w @ x, bits)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=25, deadline=None)
@given(
    leading=st.lists(st.integers(1, 3), max_size=2),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    transposed=st.booleans(),
)
def test_batched_product_of_two_secrets(bits, leading, shape, transposed):
    rows, inner, columns = shape
    generator = default_rng(7)
    x = random_words(generator, (*leading, rows, inner))
    y = random_words(generator, (*leading, columns, inner) if transposed else (*leading, inner, columns))

    def turned(y):
        return y.swapaxes(-1, -2) if transposed else y

    result = parts(lambda x, y: layers.batched_product(INT8, x, turned(y), bits), x, y)
    assert_equal_in_ring(result, x @ turned(y), bits)


def test_batched_product_in_blocks_of_columns(monkeypatch):
    monkeypatch.setattr(layers, "BLOCK_BYTES", 1)
    generator = default_rng(8)
    x, y = random_words(generator, (2, 5, 4)), random_words(generator, (2, 4, 300))
    np.testing.assert_array_equal(parts(lambda x, y: layers.batched_product(INT8, x, y), x, y), x @ y)


def test_shares_travel_as_spu_stores_them():
    """Word after word: the own component, then the next party's; rank i's second are rank i + 1's first."""
    components = random_words(default_rng(11), (3, 2, 3))
    secret = components.sum(0)
    pairs = replicate(components)
    contents = [bytes_from_pair(pair) for pair in pairs]
    stored = [np.frombuffer(content, np.uint64).reshape(6, 2) for content in contents]
    for rank in range(3):
        np.testing.assert_array_equal(stored[rank][:, 1], stored[(rank + 1) % 3][:, 0])
        np.testing.assert_array_equal(pair_from_bytes(contents[rank], (2, 3)), pairs[rank])
    np.testing.assert_array_equal(sum(column[:, 0] for column in stored).reshape(2, 3), secret)


def images(*shape):
    return np.zeros(shape, np.uint64)


PLAIN = layers.prepare(INT8, images(2, 3, 4, 3, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: layers.prepare(INT8, images(3, 3, 4, 3, 3)), "weights have the shape"),
        (lambda: layers.prepare(INT8, np.zeros((2, 3, 4))), "float64"),
        (lambda: layers.conv2d(PLAIN, images(2, 1, 5, 8, 8)), "4 channels"),
        (lambda: layers.conv2d(PLAIN, images(2, 1, 4, 2, 8)), "smaller than a kernel"),
        (lambda: layers.matmul(PLAIN, images(2, 4, 8)), "matrix product"),
        (lambda: layers.batched_product(INT8, images(2, 3, 4), images(2, 3, 4)), "no product"),
        (lambda: layers.prepare(INT8, images(2, 3, 4), 65), "1 to 64 bits"),
        (lambda: pair_from_bytes(bytes(24), (2,)), "24 bytes"),
        (lambda: joined([images(2, 3), images(2, 3) + np.uint64(1), images(2, 3)]), "ranks 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(CipherDMError, match=message):
        call()
