"""Walks on three real parties: a model's steps, beside SPU in one plan, and parties that do not run the same program."""

import jax.numpy as jnp
import numpy as np
import pytest

import cipherdm as cdm
from cipherdm import CipherDMError, EngineConfig
from cipherdm.engine import Node, Spec, compile_plan, party_pb2
from cipherdm.engine.programs import compile_walk
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed, encode

BITS = 10
ENGINE = EngineConfig(fraction_bits=ENGINE_FRACTION_BITS)
X = np.linspace(-3, 3, 50, dtype=np.float32)


def square(x, bits=BITS):
    """x^2 of words, at so many bits."""
    number = Fixed.load(x, BITS, ring=True)
    return (number * number).truncated(bits).store()


def at_least_one(x):
    """A comparison, which a walk does not do."""
    number = Fixed.load(x, BITS, ring=True)
    return number.with_array(jnp.maximum(number.array, np.int32(1 << BITS))).store()


def test_a_model_is_sampled_with_the_results_of_fast(cluster):
    unet, settings = cdm.load_unet("data/models/mnist01-tiny"), {"steps": 4, "labels": [1], "granularity": "step"}
    expected = cdm.sample(unet, None, protocols=cdm.FAST, steps=4, labels=[1])
    result = cdm.sample(unet, cluster, protocols=cdm.FAST_64, **settings)
    assert np.sqrt(np.mean((result.images - expected.images) ** 2)) < 0.02
    operators = result.cost.by_operator()
    assert set(operators.index) == {"walk"}
    # Bytes are exact: each message of each cut is in the formula.
    again = cdm.sample(unet, cluster, protocols=cdm.FAST_64, **settings)
    assert again.cost.bytes == pytest.approx(result.cost.bytes, abs=4096)  # all but the keys of the first walk
    assert result.cost.rounds < result.cost.sends


def test_spu_takes_over_within_a_plan(cluster):
    session = cluster.session(ENGINE)
    nodes = [
        Node("square", square, ("x",), ("y",)),
        Node("compare", at_least_one, ("y",), ("z",)),
        Node("square again", square, ("z",), ("w",)),
    ]
    encoded = encode(X, BITS, ring=True)
    plan = compile_plan(nodes, {"x": Spec.of(encoded)}, keep=["w"], walk_bits=ENGINE_FRACTION_BITS)
    assert [call.program.walk for call in plan.calls] == [True, False, True]
    session.share({"x": encoded})
    cost = session.run(plan)
    result = session.reveal("w") * 2.0 ** (ENGINE_FRACTION_BITS - BITS)
    np.testing.assert_allclose(result, np.maximum(np.round(X, 3) ** 2, 1) ** 2, atol=0.1)
    assert cost.by_operator().loc["walk", "calls"] == 2


def test_a_party_with_another_program_ends_the_run():
    """Party 1 has a program of the same name that cuts one bit less, with messages of the same lengths.

    Before that, all are right over a network.
    """
    encoded = encode(X, BITS, ring=True)
    with cdm.LocalCluster(network=cdm.LAN) as cluster:
        session = cluster.session(ENGINE)
        plan = compile_plan(
            [Node("square", square, ("x",), ("y",))], {"x": Spec.of(encoded)}, ["y"], walk_bits=ENGINE_FRACTION_BITS
        )
        session.share({"x": encoded})
        session.run(plan)
        result = session.reveal("y") * 2.0 ** (ENGINE_FRACTION_BITS - BITS)
        np.testing.assert_allclose(result, np.round(X * 2**BITS) ** 2 / 4**BITS, atol=2.0**-BITS)
        other = compile_walk(lambda x: square(x, BITS + 1), (Spec.of(encoded),), ENGINE_FRACTION_BITS)
        message = party_pb2.Program(session=session.name, id=plan.calls[0].program.id, walk=other.code)
        session._stubs[1].AddProgram(message)
        with pytest.raises(CipherDMError, match="party . runs another program"):
            session.run(plan)
