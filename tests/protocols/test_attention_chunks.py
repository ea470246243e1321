"""Attention in parts of its queries: the same numbers, whatever the parts are, and one part after the other."""

import jax.numpy as jnp
import numpy as np
import pytest
from fast_layers import number, numbers, on_shares

from cipherdm.engine import EngineConfig, Node, Spec, compile_plan
from cipherdm.engine.kernel_stages import split_at_kernels
from cipherdm.engine.programs import KernelProgram
from cipherdm.kernels.operation import Kernel, after, apply
from cipherdm.protocols import fast, fast_attention
from cipherdm.protocols.fast_attention import by_query_chunks
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed, decode, encode

HEADS = ((0, 1), (0, 1))
PARAMS = {
    "to_q.h": (np.float32(0.75), fast_attention.FEATURE_BITS),
    "to_q.c": (np.float32(0.25), 20),
    "to_q.r0": (np.float32(-2.5), fast_attention.MIXED_BITS),
    "to_q.r1": (np.float32(0.125), 2 * fast_attention.MIXED_BITS),
    "to_q.squarings": 1,
    "to_q.newton": 0,
    "to_q.centred": 1,
}


def inputs(batch, heads, size, queries, tokens, seed=0):
    """Queries, keys and values of about 1/4."""
    generator = np.random.default_rng(seed)
    shapes = ((batch, heads, size, count) for count in (queries, tokens, tokens))
    return [generator.standard_normal(shape).astype(np.float32) / 4 for shape in shapes]


def attention(params, q, k, v, **rest):
    return fast_attention.attention(params, q, k, v, scale=1, softmax=None, **rest)


@pytest.mark.parametrize(("batch", "scores"), [(1, 1), (1, 30), (2, 50), (2, 1000)])
def test_parts_give_the_same_numbers(batch, scores):
    """As near as float32 sums are: on some processors their order depends on the shape of the product."""
    numbers_in = [number(x) for x in inputs(batch, 2, 3, 7, 5)]
    whole = attention(numbers(PARAMS), *numbers_in)
    parts = attention(numbers(PARAMS), *numbers_in, chunk_scores=scores)
    assert parts.bits == whole.bits
    np.testing.assert_allclose(parts.array, whole.array, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scores", "expected"), [(1, [1] * 7), (24, [2, 2, 2, 1]), (36, [3, 3, 1]), (1000, [7])])
def test_no_part_has_more_scores_than_allowed(scores, expected):
    q, _, _ = inputs(1, 2, 3, 7, 6)
    widths = []

    def attend(part):
        widths.append(part.shape[3])
        return part

    np.testing.assert_array_equal(by_query_chunks(attend, q, 6, scores), q)
    assert widths == expected


def test_parts_on_shares_are_what_plaintext_computes(cluster):
    values = inputs(1, 2, 4, 6, 5)
    expected = attention(numbers(PARAMS), *(number(x) for x in values)).truncated(fast.VALUE_BITS).array

    def in_parts(params, q, k, v):
        return attention(params, q, k, v, chunk_scores=2 * 5 * 2)

    np.testing.assert_allclose(on_shares(cluster, in_parts, PARAMS, *values), expected, atol=0.02)


def squared_scores(q, k, v):
    """v (q k)^2 in parts of two queries, its products as kernels, on words."""
    q, k, v = (Fixed.load(array, 0, ring=True) for array in (q, k, v))

    def attend(part):
        scores = apply(Kernel("products"), jnp.swapaxes(part.array, 2, 3), k.array)
        powers = jnp.swapaxes(scores * scores, 2, 3)
        return Fixed(apply(Kernel("products"), v.array, powers), 0, ring=True)

    return by_query_chunks(attend, q, k.shape[3], 2 * k.shape[1] * k.shape[3]).store()


SHAPES = ((1, 2, 3, 6), (1, 2, 3, 5), (1, 2, 3, 5))


def test_kernels_of_one_part_come_after_those_of_the_part_before():
    stages = split_at_kernels(squared_scores, tuple((shape, "float32") for shape in SHAPES))
    kernels = [stage for stage in stages if isinstance(stage.function, KernelProgram)]
    shapes = [stage.function.outputs[0].shape for stage in kernels]
    assert shapes == [(1, 2, 2, 5), (1, 2, 3, 2)] * 3  # scores and values of one part after the other
    # What a part has as scores is read by nobody once the next part has begun.
    for index, stage in enumerate(stages):
        if stage in kernels[2::2]:
            later = {name for following in stages[index:] for name in following.inputs}
            assert not later & {name for kernel in kernels[: kernels.index(stage) : 2] for name in kernel.outputs}


def test_parties_compute_kernels_in_parts(cluster):
    generator = np.random.default_rng(1)
    values = {
        name: generator.integers(-9, 10, shape).astype(np.float32) for name, shape in zip("qkv", SHAPES, strict=True)
    }
    encoded = {name: encode(value, 0, ring=True) for name, value in values.items()}
    node = Node("attention", squared_scores, ("q", "k", "v"), ("y",))
    session = cluster.session(EngineConfig(fraction_bits=ENGINE_FRACTION_BITS))
    session.share(encoded)
    session.run(compile_plan([node], {name: Spec.of(array) for name, array in encoded.items()}, keep=["y"]))
    scores = np.einsum("bhdn,bhdm->bhnm", values["q"], values["k"])
    expected = np.einsum("bhdm,bhnm->bhdn", values["v"], scores**2)
    np.testing.assert_array_equal(decode(session.reveal("y"), 0, ring=True), expected)


def test_after_is_the_value_itself():
    np.testing.assert_array_equal(after(jnp.arange(3), jnp.zeros((2, 2))), np.arange(3))
