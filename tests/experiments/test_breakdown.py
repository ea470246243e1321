"""The breakdown of a step adds up to the step, and books each call on the layer that made it."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest
from small import ONE_LEVEL, SCHEDULER
from typer.testing import CliRunner

from cipherdm import DIRECT, CipherDMError, LocalCluster
from cipherdm.cli import build
from cipherdm.engine import Graph, Node, Spec
from cipherdm.models import init_unet, save_unet
from cipherdm.models.blocks import attention, resnet
from cipherdm.records import read_record
from cipherdm.sampling.steps import BlockFunction
from cipherdm_experiments import breakdown
from cipherdm_experiments.breakdown import KINDS, QUANTITIES, REST, split
from cipherdm_experiments.breakdown_calls import calls_of
from cipherdm_experiments.variants import prepare, variants

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"
COUNTS = [quantity for quantity in QUANTITIES if quantity != "seconds"]


@pytest.fixture(scope="module")
def unet():
    """A small model with attention, and random weights."""
    return replace(init_unet(replace(ONE_LEVEL, num_class_embeds=None)), scheduler_config=SCHEDULER)


@pytest.fixture(scope="module")
def record(unet, tmp_path_factory):
    """What the command writes for it."""
    folder = tmp_path_factory.mktemp("breakdown")
    save_unet(unet, folder / "small")
    arguments = [str(folder / "small"), "--protocols", "direct,cipherdm", "--repetitions", "1", "--steps", "2"]
    result = CliRunner().invoke(build(), ["bench", "breakdown", *arguments, "--record", str(folder / "found.json")])
    assert result.exit_code == 0, result.output
    assert "residual blocks" in result.output
    return read_record(folder / "found.json")


@pytest.fixture(scope="module")
def whole(unet):
    """The same step of each variant as one program."""
    found = {}
    with LocalCluster() as cluster:
        for index, variant in enumerate(variants(["direct", "cipherdm"])):
            step = prepare(unet, replace(variant, granularity="step"), batch=1, steps=2, prefix=f"{index}/")
            step.start(cluster)
            found[variant.name] = step.run(cluster)
    return found


def sums(record, variant, **where):
    """Of each quantity, over the rows of a variant with these values."""
    rows = [row for row in record["rows"] if row["variant"] == variant]
    rows = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return {quantity: sum(row[quantity] for row in rows) for quantity in QUANTITIES}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["direct", "cipherdm"])
def test_bytes_and_rounds_add_up_to_the_steps(record, whole, variant):
    found, step = sums(record, variant), whole[variant]
    assert found["bytes"] == pytest.approx(step.bytes, rel=0.01)
    if variant == "cipherdm":  # in one program, direct computes the activation of its time projections once for all
        assert found["sends"] == pytest.approx(step.sends, rel=0.01)
        assert found["rounds"] == pytest.approx(step.rounds, rel=0.01)
    else:
        spared = sums(record, variant, group="time embedding", kind="activation")
        assert step.rounds <= found["rounds"] <= step.rounds + spared["rounds"]


@pytest.mark.slow
def test_calls_explain_nearly_all_that_the_parties_send(record):
    for variant in ("direct", "cipherdm"):
        everything = sums(record, variant)
        assert sums(record, variant, kind=REST)["bytes"] < 0.05 * everything["bytes"]
        assert all(row[quantity] >= 0 for row in record["rows"] for quantity in QUANTITIES)
        kinds = {row["kind"] for row in record["rows"] if row["variant"] == variant}
        assert kinds == set(KINDS.values()) | {REST}


@pytest.mark.slow
def test_a_softmax_is_booked_with_what_it_costs_by_itself(record, session):
    """64 tokens, 2 heads: the attention block's softmax is that of two 64 x 64 matrices of scores."""
    _, alone = session.run_once(DIRECT.softmax, jnp.zeros((1, 2, 64, 64), jnp.float32))
    found = sums(record, "direct", part="mid_block.attentions.0", kind="softmax")
    assert found["bytes"] == pytest.approx(alone.bytes, rel=0.01)
    assert found["rounds"] == pytest.approx(alone.rounds, rel=0.01)


@pytest.mark.slow
def test_time_embedding_is_inside_for_direct_and_outside_for_cipherdm(record):
    assert sums(record, "direct", group="time embedding")["bytes"] > 0
    assert sums(record, "cipherdm", group="time embedding")["bytes"] == 0
    tables = breakdown.table(record, "bytes")
    for variant in ("direct", "cipherdm"):
        assert tables.loc["all", variant] == pytest.approx(sums(record, variant)["bytes"])
        parts = ("attention", "residual blocks", "scheduler update", "first and last convolution")
        assert all(tables.loc[part, variant] > 0 for part in parts)


def traced(function, inputs, protocols=DIRECT, **static):
    """The calls of one block with these weights and inputs, by shape."""
    params = tuple(name for name in inputs if not name.startswith("x"))
    block = BlockFunction(function, tuple(static.items()), params, protocols)
    node = Node("block", block, tuple(inputs), ("y",))
    return calls_of(Graph("step", (node,), ("y",)), {name: Spec(shape) for name, shape in inputs.items()})["block"]


def test_calls_and_those_within_them_are_found():
    norm = {f"{layer}.{leaf}": (4,) for layer in ("norm1", "norm2") for leaf in ("weight", "bias")}
    convolutions = {"conv1.weight": (4, 4, 3, 3), "conv2.weight": (4, 4, 3, 3)}
    settings = {"groups": 2, "eps": 1e-5, "act_fn": "mish", "scale_shift": False, "output_scale": 1}
    calls = traced(resnet, norm | convolutions | {"x": (1, 4, 6, 6), "x term": (1, 4)}, **settings)
    assert [call.name for call in calls] == ["norm_activation", "conv2d", "norm_activation", "conv2d"]
    assert [inner.name for inner in calls[0].inner] == ["group_norm", "mish"]
    assert calls[0] == calls[2] and calls[1] == calls[3]  # which are measured once
    assert calls[0].inner[1].inputs == (Spec((1, 4, 6, 6)),)


def test_softmax_is_within_attention():
    weights = {f"{name}.weight": (8, 8) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    settings = {"groups": None, "eps": 1e-5, "heads": 2, "output_scale": 1, "kernel": "softmax"}
    calls = traced(attention, weights | {"x": (1, 8, 4, 4)}, **settings)
    assert [call.name for call in calls] == ["projections", "attention", "linear"]
    (softmax,) = calls[1].inner
    assert softmax.inputs == (Spec((1, 2, 16, 16)),) and softmax.function.function is DIRECT.softmax


def test_what_the_parties_know_is_told_from_secrets():
    function = BlockFunction(_product_with_timestep, (), ("weight",), DIRECT)
    node = Node("block", function, ("weight", "timestep"), ("y",))
    specs = {"weight": Spec((3, 2)), "timestep": Spec((1,), public=True)}
    (call,) = calls_of(Graph("step", (node,), ("y",)), specs)["block"]
    assert call.inputs == (Spec((3, 2)), Spec((1, 2), public=True))


def _product_with_timestep(params, timestep, *, protocols):
    return protocols.linear(params, jnp.stack([jnp.sin(timestep), jnp.cos(timestep)], axis=1))


def test_a_call_by_itself_computes_what_it_does_in_a_block():
    calls = traced(_product_with_timestep, {"weight": (3, 2), "x": (1,)})
    weight, wave = jnp.arange(6.0).reshape(3, 2), jnp.float32([[1, 10]])
    assert calls[0].function(weight, wave).tolist() == [[10, 32, 54]]


def costs(**quantities):
    return dict.fromkeys(QUANTITIES, 0) | quantities


def test_what_calls_do_not_explain_is_the_rest():
    found = split(costs(seconds=5, bytes=100), [("a", costs(seconds=1, bytes=30)), ("b", costs(seconds=3, bytes=70))])
    assert found["a"]["bytes"] == 30 and found["b"]["seconds"] == 3
    assert found[REST]["seconds"] == 1 and found[REST]["bytes"] == 0


def test_calls_that_take_longer_than_their_part_are_scaled():
    calls = [("a", costs(seconds=6)), ("b", costs(seconds=3)), ("b", costs(seconds=-1)), ("c", costs(seconds=-0.5))]
    found = split(costs(seconds=4), calls)
    assert [found[kind]["seconds"] for kind in ("a", "b", "c", REST)] == [3, 1, 0, 0]


def test_nothing_to_measure_is_refused(unet):
    with pytest.raises(CipherDMError, match="at least one variant"):
        breakdown.run(unet, variants=[])
    with pytest.raises(CipherDMError, match="no quantity is called 'cost'"):
        breakdown.table({"rows": []}, "cost")
