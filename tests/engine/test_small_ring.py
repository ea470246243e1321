"""The ring of 32 bits: values on their way between the rings, SPU's program in it, and what is refused there."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cipherdm import CipherDMError, EngineConfig
from cipherdm.engine import Node, Spec, Walking, compile_plan
from cipherdm.protocols.fixed import Fixed, encode

SMALL, LARGE = 8, 18


@dataclass(frozen=True)
class Between:
    """A value of `before` fraction bits with `after`, by a truncation, even of no bits."""

    before: int
    after: int
    __name__ = "between"

    def __call__(self, x):
        x = Fixed.load(x, self.before, True)
        return (x.renewed().raised(self.after) if self.after >= self.before else x.truncated(self.after)).store()


def halves(x):
    return jnp.maximum(x[:, :3], x[:, 3:])


def product(x, y):
    a, b = (Fixed.load(each, SMALL, True) for each in (x, y))
    return (a * b).truncated(SMALL).store()


def doubled(x):
    x = Fixed.load(x, SMALL, True)
    return (x + x).store()


DOWN, UP = Between(LARGE, SMALL), Between(SMALL, LARGE)


@pytest.fixture(scope="module")
def session(cluster):
    return cluster.session(EngineConfig(fraction_bits=LARGE, small_fraction_bits=SMALL))


def run(session, nodes, arrays):
    specs = {name: Spec.of(array) for name, array in arrays.items()}
    plan = compile_plan(nodes, specs, keep=["result"], walking=Walking(LARGE))
    session.share(arrays)
    session.run(plan)
    try:
        return session.reveal("result")
    finally:
        session.delete([*arrays, "result"])


def test_numbers_go_down_are_compared_and_come_up_again(session):
    x = np.float32(np.random.default_rng(0).uniform(-1000, 1000, (50, 6)))
    nodes = [
        Node("down", DOWN, ("x",), ("small",), ring=32),
        Node("halves", halves, ("small",), ("larger",), ring=32),
        Node("up", UP, ("larger",), ("result",)),
    ]
    np.testing.assert_allclose(run(session, nodes, {"x": x}), halves(x), atol=2.0**-SMALL + 1e-4)


def test_coming_up_is_exact_over_the_whole_range_of_a_cut(session):
    # Words below 2^30 in a ring of 32 bits; of both signs, and their ends.
    words = np.r_[np.random.default_rng(1).integers(-(2**23), 2**23, 500), -(2**23) + 1, 2**23 - 1, 0]
    x = encode(words * 2.0**-SMALL, SMALL, True, LARGE)
    nodes = [
        Node("start", Between(SMALL, SMALL), ("x",), ("small",), ring=32),
        Node("up", Between(SMALL, SMALL), ("small",), ("result",)),
    ]
    found = run(session, nodes, {"x": x})
    np.testing.assert_array_equal(np.round(found * 2.0**LARGE), words)


def test_products_in_the_small_ring_take_operands_of_both(session):
    generator = np.random.default_rng(2)
    x, y = (generator.uniform(-30, 30, 200) for _ in range(2))
    nodes = [
        Node("down", DOWN, ("x",), ("small",), ring=32),
        Node("product", product, ("small", "y"), ("smaller",), ring=32),
        Node("up", UP, ("smaller",), ("result",)),
    ]
    found = run(session, nodes, {"x": x.astype(np.float32), "y": encode(y, SMALL, True, LARGE)})
    # x is up or down by a last place, y is rounded, and so is the product.
    np.testing.assert_allclose(found, x * y, atol=(30 + 30 / 2 + 2) * 2.0**-SMALL)


@pytest.mark.parametrize(
    "function, name",
    [(jnp.exp, "exp"), (lambda x: x / x, "div"), (lambda x: x @ x.T, "dot_general"), (jax.jit(jnp.tanh), "tanh")],
)
def test_what_the_small_ring_cannot_do_is_refused_when_the_plan_is_made(function, name):
    nodes = [Node("down", DOWN, ("x",), ("small",), ring=32), Node("wrong", function, ("small",), ("result",), ring=32)]
    with pytest.raises(CipherDMError, match=f"{name}.*ring of 32 bits"):
        compile_plan(nodes, {"x": Spec((4, 4))}, keep=["result"], walking=Walking(LARGE))


def test_a_constant_that_the_small_ring_would_round_away_is_refused():
    nodes = [
        Node("scaled", lambda x: jnp.maximum(x, jnp.float32(0)) * jnp.float32(1 / 100), ("x",), ("result",), ring=32)
    ]
    with pytest.raises(CipherDMError, match="'mul'.*ring of 32 bits"):
        compile_plan(nodes, {"x": Spec((4, 4), ring=32)}, keep=["result"], walking=Walking(LARGE))


def test_a_value_of_the_other_ring_is_refused_when_the_plan_is_made():
    with pytest.raises(CipherDMError, match="held in 64 bits, and SPU computes in 32"):
        compile_plan([Node("n", halves, ("x",), ("y",), ring=32)], {"x": Spec((4, 6))}, keep=["y"])


def test_a_public_argument_and_an_input_taken_for_a_larger_one_are_refused():
    add = Node("n", lambda x, y: x + y, ("x", "y"), ("z",), ring=32)
    specs = {"x": Spec((4,), ring=32), "y": Spec((4,), public=True)}
    with pytest.raises(CipherDMError, match="argument 1 .* is public"):
        compile_plan([add], specs, keep=["z"])
    with pytest.raises(CipherDMError, match="renew it first"):
        compile_plan([Node("n", doubled, ("x",), ("z",))], specs, keep=["z"], walking=Walking(LARGE))


def test_what_is_in_the_small_ring_cannot_be_revealed(session):
    plan = compile_plan(
        [Node("down", DOWN, ("x",), ("small",), ring=32)], {"x": Spec((2,))}, ["small"], walking=Walking(LARGE)
    )
    session.share({"x": np.ones(2, np.float32)})
    session.run(plan)
    with pytest.raises(CipherDMError, match="ring of 32 bits"):
        session.reveal("small")
    session.delete(["x", "small"])


def test_a_session_without_the_small_ring_refuses_its_programs(cluster):
    session = cluster.session(EngineConfig(fraction_bits=16))
    nodes = [
        Node("down", Between(16, SMALL), ("x",), ("small",), ring=32),
        Node("n", halves, ("small",), ("y",), ring=32),
    ]
    plan = compile_plan(nodes, {"x": Spec((4, 6))}, keep=["y"], walking=Walking(16))
    with pytest.raises(CipherDMError, match="down is for the ring of 32 bits, and this session has none"):
        session.run(plan)
