"""Functions with kernels in them: how they are cut into programs and kernels, and that parties compute them."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from spu import libspu
from words import on_words

from cipherdm import CipherDMError
from cipherdm.engine import EngineConfig, Node, Spec, compile_plan, kernels
from cipherdm.engine.kernel_stages import split_at_kernels
from cipherdm.engine.programs import KernelProgram
from cipherdm.kernels.operation import Kernel, apply
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed, decode, encode

RANDOM = np.random.default_rng(0)
CONVOLUTION = Kernel("conv2d", stride=2, padding=((0, 1), (1, 1)))


@dataclass(frozen=True)
class TwoLayers:
    """Weights, a bias and x to two layers with a square between them, and what is between them."""

    __name__ = "two_layers"

    def __call__(self, w1, bias, w2, x):
        hidden = apply(Kernel("matmul"), w1, x) + bias[:, None]
        hidden = hidden * hidden
        return apply(Kernel("matmul"), w2, hidden) + x[:3], hidden


SHAPES = tuple((shape, "float32") for shape in ((4, 5), (4,), (3, 4), (5, 6)))


def random_integers(*shape):
    return RANDOM.integers(-9, 10, shape).astype(np.float32)


@pytest.fixture(scope="module")
def words(cluster):
    """A session whose values are words of the ring, and words(node, values) to the node's outputs and the cost."""
    session = cluster.session(EngineConfig(fraction_bits=ENGINE_FRACTION_BITS))

    def run(node: Node, values: dict):
        encoded = {name: encode(value, 0, ring=True) for name, value in values.items()}
        plan = compile_plan([node], {name: Spec.of(value) for name, value in encoded.items()}, keep=node.outputs)
        session.share(encoded)
        cost = session.run(plan)
        return [decode(session.reveal(name), 0, ring=True) for name in node.outputs], cost

    return run


def test_a_function_is_cut_at_its_kernels():
    """Weights and x reach kernels under their own names; what no kernel needs is left for the last program."""
    kernel, square, second, last = split_at_kernels(TwoLayers(), SHAPES)
    assert [type(stage.function) is KernelProgram for stage in (kernel, square, second, last)] == [1, 0, 1, 0]
    assert kernel.inputs == ("in0", "in3") and second.inputs[0] == "in2"
    assert "out1" in square.outputs and last.outputs == ("out0",)
    assert set(square.inputs) == {"in1", *kernel.outputs} and "in3" in last.inputs


def test_the_parts_together_are_the_function():
    arrays = [jnp.asarray(random_integers(*shape)) for shape, _ in SHAPES]
    values = {f"in{index}": array for index, array in enumerate(arrays)}
    for stage in split_at_kernels(TwoLayers(), SHAPES):
        inputs = [values[name] for name in stage.inputs]
        function = stage.function.kernel if isinstance(stage.function, KernelProgram) else stage.function
        results = function(*inputs)
        values.update(zip(stage.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    w1, bias, w2, x = (np.asarray(array) for array in arrays)
    hidden = (w1 @ x + bias[:, None]) ** 2
    np.testing.assert_array_equal(values["out1"], hidden)
    np.testing.assert_array_equal(values["out0"], w2 @ hidden + x[:3])


def test_an_argument_that_is_returned_becomes_a_result():
    def layer(w, x):
        return apply(Kernel("matmul"), w, x), x

    stages = split_at_kernels(layer, (((2, 2), "float32"), ((2, 2), "float32")))
    assert {name for stage in stages for name in stage.outputs} >= {"out0", "out1"}


def test_a_function_without_kernels_is_one_program():
    assert split_at_kernels(lambda x: x + x, (((2,), "float32"),)) is None


def test_a_kernel_in_a_loop_is_refused():
    def loop(w, x):
        return lax.fori_loop(0, 3, lambda _, state: apply(Kernel("matmul"), w, state), x)

    with pytest.raises(CipherDMError, match="kernel is inside a .*granularity"):
        split_at_kernels(loop, (((2, 2), "float32"), ((2, 2), "float32")))


def test_a_result_may_not_take_the_name_of_what_is_still_read():
    node = Node("layers", TwoLayers(), ("w1", "bias", "w2", "x"), ("y", "x"))
    with pytest.raises(CipherDMError, match="layers writes x, which it still reads"):
        compile_plan([node], {name: Spec(shape) for name, (shape, _) in zip(node.inputs, SHAPES, strict=True)}, ["y"])


@pytest.mark.parametrize("ring", [64, 32])
@pytest.mark.parametrize(
    ("kernel", "first", "second"),
    [
        (Kernel("matmul"), (3, 5), (2, 5, 4)),
        (CONVOLUTION, (3, 2, 3, 3), (2, 2, 6, 8)),
        (Kernel("products"), (2, 3, 4), (2, 4, 5)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_parties_compute_a_kernel(words, kernel, first, second, ring):
    """Exactly, on whole numbers, against PyTorch; one message of 8 or 4 bytes a number from each party."""
    kernel = replace(kernel, ring=ring)
    a, b = random_integers(*first), random_integers(*second)
    (result,), cost = words(Node("layer", on_words(kernel), ("a", "b"), ("y",)), {"a": a, "b": b})
    if kernel.kind == "conv2d":
        (above, below), (left, right) = kernel.padding
        padded = torch.nn.functional.pad(torch.from_numpy(b), (left, right, above, below))
        expected = torch.nn.functional.conv2d(padded, torch.from_numpy(a), stride=kernel.stride).numpy()
    else:
        expected = np.matmul(a, b)
    np.testing.assert_array_equal(result, expected * 2.0 ** (64 - ring))
    sent = cost.by_operator().loc[f"kernel_{kernel.kind}", ["bytes", "sends"]].tolist()
    assert sent == [3 * ring // 8 * expected.size, 3]
    assert cost.rounds == 1


def test_in_the_small_ring_products_are_right_to_the_last_bit_up_to_its_edges(cluster, words):
    """2^31 - 1 and -2^31 are; 2^31 wraps around. Read as words, because a float32 has too few bits."""
    first = np.array([[2**16 - 1, 2**15 - 1], [-(2**16), 0], [2**16, 0]], np.float32)
    second = np.array([[2**15], [1]], np.float32)
    expected = np.array([2**31 - 1, -(2**31), -(2**31)])
    kernel = Kernel("matmul", ring=32)
    words(Node("layer", on_words(kernel), ("a", "b"), ("y",)), {"a": first, "b": second})
    session = cluster.session(EngineConfig(fraction_bits=ENGINE_FRACTION_BITS))
    total = sum(session.words_of("y", rank)[:, 0] for rank in range(3))
    np.testing.assert_array_equal(total, expected.astype(np.uint64) << np.uint64(32))


def test_weights_that_were_kept_are_forgotten_with_a_new_value(words):
    x = random_integers(5, 4)
    node = Node("layer", on_words(Kernel("matmul")), ("w", "x"), ("y",))
    for _ in range(3):
        w = random_integers(3, 5)
        np.testing.assert_array_equal(words(node, {"w": w, "x": x})[0][0], w @ x)


def test_the_result_of_a_program_is_not_kept(words):
    """The first operand is computed anew by each run, under the same name."""

    def layer(a, b):
        a, b = (Fixed.load(array, 0, ring=True).array for array in (a, b))
        return Fixed(apply(Kernel("matmul"), a + a, b), 0, ring=True).store()

    for _ in range(2):
        a, b = random_integers(2, 3), random_integers(3, 2)
        (result,), _ = words(Node("layer", layer, ("a", "b"), ("y",)), {"a": a, "b": b})
        np.testing.assert_array_equal(result, 2 * a @ b)


def test_a_public_operand_is_refused():
    node = Node("layer", on_words(Kernel("matmul")), ("a", "b"), ("y",))
    with pytest.raises(CipherDMError, match="one operand is public"):
        compile_plan([node], {"a": Spec((2, 2)), "b": Spec((2, 2), public=True)}, ["y"])


def test_the_operation_is_the_layer_in_plaintext():
    w, x = random_integers(3, 2, 3, 3), random_integers(2, 2, 6, 8)
    expected = lax.conv_general_dilated(x, w, (2, 2), CONVOLUTION.padding)
    np.testing.assert_array_equal(apply(CONVOLUTION, w, x), expected)


@pytest.mark.parametrize("word", [np.uint64, np.uint32])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (4, 2, 2)])
def test_shares_come_and_go_in_pieces(monkeypatch, shape, word):
    """As SPU stores them: words of both components in turns, in order, with each piece's place in the whole."""
    monkeypatch.setattr(kernels, "CHUNK_NUMBERS", 8)
    pair = RANDOM.integers(0, np.iinfo(word).max, (2, *shape), word, endpoint=True)
    share = kernels.spu_share(pair, "int32")
    count, pieces = int(np.prod(shape)), []
    for chunk in share.share_chunks:
        piece = libspu.ValueChunk()
        piece.ParseFromString(chunk)
        assert (piece.total_bytes, piece.chunk_offset) == (16 * count, sum(map(len, pieces)))
        pieces.append(piece.content)
    assert len(pieces) == max(1, -(-count // 8))
    shift = 64 - 8 * np.dtype(word).itemsize
    expected = [int(number) << shift for number in pair.reshape(2, -1).T.ravel()]
    assert np.frombuffer(b"".join(pieces), "<u8").tolist() == expected
    again = kernels.pair_of({"x": share}.get, "x", np.uint64)
    assert again.dtype == np.uint64 and np.array_equal(again, pair.astype(np.uint64) << np.uint64(shift))
    assert np.array_equal(kernels.pair_of({"x": share}.get, "x", np.uint32), again.astype(np.uint32))


@pytest.mark.parametrize("pieces", [[0], [0, 1, 1]])
def test_a_share_of_another_length_is_refused(monkeypatch, pieces):
    monkeypatch.setattr(kernels, "CHUNK_NUMBERS", 8)
    share = kernels.spu_share(RANDOM.integers(0, 2**63, (2, 16), np.uint64), "int32")
    chunks = share.share_chunks
    share.share_chunks = [chunks[index] for index in pieces]
    with pytest.raises(CipherDMError, match=f"share of x has {8 * len(pieces)} numbers"):
        kernels.pair_of({"x": share}.get, "x", np.uint64)


def test_parties_put_large_results_together(words):
    """A result of more than one piece, which is then the operand of another kernel."""
    first, second, third = random_integers(1100, 4), random_integers(4, 1000), random_integers(2, 1100)
    assert first.shape[0] * second.shape[1] > kernels.CHUNK_NUMBERS

    def twice(first, second, third):
        return on_words(Kernel("matmul"))(third, on_words(Kernel("matmul"))(first, second))

    node = Node("twice", twice, ("first", "second", "third"), ("result",))
    (result,), cost = words(node, {"first": first, "second": second, "third": third})
    assert np.array_equal(result, third @ first @ second)
    assert cost.bytes == 24 * (1100 + 2) * 1000
