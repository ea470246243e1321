"""The engine on three real parties: values survive sharing, programs compute, secrets stay secret."""

import resource

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from spu import api, libspu
from spu.experimental import reveal

from cipherdm import CipherDMError, LocalCluster
from cipherdm.engine import Call, EngineConfig, Node, Plan, Spec, compile_plan, compile_program
from cipherdm.engine.profile import parse_profile

LARGEST = 2.0**26


@pytest.mark.parametrize(
    "value",
    [
        np.float32(3.25),
        np.zeros((0, 3), np.float32),
        np.linspace(-5, 5, 24, dtype=np.float32).reshape(2, 3, 4),
        np.arange(-3, 4, dtype=np.int32),
        np.array([True, False, True]),
        np.array([-LARGEST + 1, LARGEST - 1, 2.0**-18, 0.0]),
    ],
    ids=["scalar", "empty", "3d", "int32", "bool", "extremes"],
)
@pytest.mark.parametrize("public", [False, True], ids=["secret", "public"])
def test_what_is_shared_comes_back(session, value, public):
    session.share({"value": value}, public=public)
    returned = session.reveal("value")
    assert returned.shape == value.shape
    np.testing.assert_allclose(returned, value, atol=2.0**-18, rtol=0)


def test_a_value_split_into_several_chunks_comes_back(session):
    value = np.random.default_rng(0).standard_normal((3000, 3000)).astype(np.float32)  # 144 MB a party
    session.share({"large": value})
    np.testing.assert_allclose(session.reveal("large"), value, atol=2.0**-18, rtol=0)
    session.delete(["large"])


def test_products_are_right_up_to_the_limit(session):
    """Truncation goes wrong at random beyond it, so one product would prove little."""
    values = (LARGEST - 8) * np.linspace(-1, 1, 20_000, dtype=np.float32)  # float32 knows steps of 4 up there
    session.share({"values": values, "one": np.float32(1)})
    program = compile_program(jnp.multiply, (Spec.of(values), Spec(())))
    session.run(Plan((Call(program, ("values", "one"), ("same",), "product"),)))
    np.testing.assert_allclose(session.reveal("same"), values, atol=2.0**-17, rtol=1e-6)


def test_a_plan_computes_what_its_functions_compute(session):
    generator = np.random.default_rng(1)
    x, w = (generator.standard_normal(shape).astype(np.float32) for shape in ((8, 30), (8, 8)))
    product = compile_program(jnp.matmul, (Spec.of(w), Spec.of(x)))
    square = compile_program(jnp.square, product.outputs)
    session.share({"x": x, "w": w})
    plan = Plan(
        (
            Call(product, ("w", "x"), ("y",), "product"),
            Call(square, ("y",), ("y",), "square"),
            Call(square, ("y",), ("z",), "square", frees=("y",)),
        )
    )
    seen = []
    cost = session.run(plan, progress=lambda *event: seen.append(event))
    np.testing.assert_allclose(session.reveal("z"), (w @ x) ** 4, rtol=1e-3, atol=1e-2)
    assert seen == [(1, 3, "product"), (2, 3, "square"), (3, 3, "square")]
    with pytest.raises(CipherDMError, match="no variable 'y'"):
        session.reveal("y")
    # A replicated product sends one ring element an entry and party, and its truncation two more.
    programs = cost.by_program()
    assert list(programs["calls"]) == [1, 2]
    assert programs.loc["square", "bytes"] == pytest.approx(2 * 3 * x.size * 8 * 2, rel=0.35)
    assert cost.bytes == programs["bytes"].sum() > 0
    assert cost.sends == programs["sends"].sum() > 0
    assert set(cost.by_operator().index) >= {"dot", "multiply"}


def test_equal_functions_share_a_program():
    spec = Spec((2, 3))
    assert compile_program(jnp.square, (spec,)) is compile_program(jnp.square, (Spec((2, 3)),))
    assert compile_program(jnp.square, (spec,)).id != compile_program(jnp.square, (Spec((3, 3)),)).id


def test_compiling_a_plan_reports_each_function_before_it_is_compiled():
    nodes = [
        Node("square", jnp.square, ("x",), ("y",)),
        Node("square again", jnp.square, ("y",), ("y",)),
        Node("product", jnp.matmul, ("w", "y"), ("z",)),
        Node("square of another shape", jnp.square, ("w",), ("w",)),
    ]
    specs = {"x": Spec((2, 5)), "w": Spec((2, 2))}
    events = []
    plan = compile_plan(nodes, specs, keep=["z"], progress=lambda *event: events.append(event))
    assert events == [
        (0, 2, "compiling square"),
        (1, 2, "compiling product"),
        (1, 2, "compiling square of another shape"),
    ]
    assert plan == compile_plan(nodes, specs, keep=["z"])


def test_a_function_is_run_once_and_leaves_nothing(session):
    x, y = np.float32([1, 2, 3]), np.float32([-2, 0.5, 4])
    result, cost = session.run_once(jnp.multiply, x, y)
    np.testing.assert_allclose(result, x * y, atol=1e-4)
    assert cost.sends > 0 and list(cost.by_program().index) == ["trial"]
    for name in ("trial.in0", "trial.in1", "trial.out"):
        with pytest.raises(CipherDMError, match="no variable"):
            session.reveal(name)


def test_two_parties_words_are_the_value_and_one_partys_are_not(session):
    value = np.linspace(-5, 5, 11, dtype=np.float32)
    session.share({"value": value})
    words = [session.words_of("value", rank) for rank in range(3)]
    assert all(held.shape == (11, 2) for held in words)
    for rank in range(3):
        np.testing.assert_array_equal(words[rank][:, 1], words[(rank + 1) % 3][:, 0])
    opened = (words[0][:, 0] + words[0][:, 1] + words[1][:, 1]).view(np.int64) / 2**18
    np.testing.assert_allclose(opened, value, atol=2**-18)
    assert np.abs(words[0].astype(np.int64) / 2**18).max() > 1e9
    with pytest.raises(CipherDMError, match="no variable 'other'"):
        session.words_of("other", 0)


def test_sessions_do_not_mix(cluster):
    one, other = cluster.session(), cluster.session(EngineConfig(exp="pade"))
    one.share({"name": np.float32(1)})
    other.share({"name": np.float32(2)})
    assert one.reveal("name") == 1 and other.reveal("name") == 2


def test_pade_is_closer_than_taylor(cluster):
    x = np.linspace(-10, 2, 200, dtype=np.float32)
    program = compile_program(jnp.exp, (Spec.of(x),))
    errors = {}
    for kind in ("taylor", "pade"):
        session = cluster.session(EngineConfig(exp=kind))
        session.share({"x": x})
        session.run(Plan((Call(program, ("x",), ("y",), "exp"),)))
        errors[kind] = np.abs(session.reveal("y") - np.exp(x)).max()
    assert errors["pade"] < 1e-3 < errors["taylor"] < 0.1


@pytest.mark.parametrize("value", [np.nan, np.inf, LARGEST, -1e30])
def test_values_outside_the_fixed_point_range_are_refused(session, value):
    with pytest.raises(CipherDMError, match="culprit.*(finite|fixed-point range)"):
        session.share({"culprit": np.array([0.0, value])})


def test_a_missing_input_is_named(session):
    program = compile_program(jnp.square, (Spec((2,)),))
    with pytest.raises(CipherDMError, match="never-shared"):
        session.run(Plan((Call(program, ("never-shared",), ("y",), "square"),)))
    session.share({"value": np.float32(1)})  # the mistake has harmed nothing
    assert session.reveal("value") == 1


def test_programs_that_reveal_are_refused():
    def opens_a_secret(x):
        return reveal(x) + 1

    with pytest.raises(CipherDMError, match="opens_a_secret reveals a secret"):
        compile_program(opens_a_secret, (Spec((2,)),))


def test_one_partys_share_is_uniform_and_independent_of_the_value():
    """Bytes of a share against chi-squared, for constant and for random secrets, and against each other."""
    io = api.Io(3, EngineConfig().runtime_config())
    generator = np.random.default_rng(2)
    secrets = [np.zeros(20_000, np.float32), np.full(20_000, -1234.5, np.float32), generator.normal(size=20_000)]
    for secret in secrets:
        first, second = (io.make_shares(np.asarray(secret, np.float32), libspu.Visibility.VIS_SECRET) for _ in range(2))
        for rank in range(3):
            stored = _bytes_of(first[rank])
            assert len(stored) == 20_000 * 16
            assert stats.chisquare(np.bincount(stored, minlength=256)).pvalue > 1e-6
            # Byte by byte, two sharings of the same secret agree as often as chance has it: 1 in 256.
            agreeing = int((stored == _bytes_of(second[rank])).sum())
            assert stats.binomtest(agreeing, len(stored), 1 / 256).pvalue > 1e-6


def test_the_profile_is_read():
    text = """
[api.cc:printProfilingData:172] [Profiling] SPU execution f completed, total time 7.1s.
[api.cc:220] HLO profiling: total time 2.5
[api.cc:223] - pphlo.divide, executed 1 times, duration 2.5s, send bytes 852 recv bytes 875, send actions 51, recv actions 50
[api.cc:223] - pphlo.free, executed 24 times, duration 0.0014s, send bytes 0 recv bytes 0, send actions 0, recv actions 0
[api.cc:220] HAL profiling: total time 2.5
[api.cc:220] MPC profiling: total time 2.5
[api.cc:233] Link details: total send bytes 900, recv bytes 901, send actions 60, recv actions 61
"""
    done = parse_profile(text)
    assert (done.sent_bytes, done.received_bytes, done.sends, done.receives) == (900, 901, 60, 61)
    (operator,) = done.operators
    assert (operator.name, operator.calls, operator.seconds, operator.sends) == ("divide", 1, 2.5, 51)
    for lost in ("Link details", "HLO profiling", "MPC profiling"):
        with pytest.raises(ValueError, match="link totals"):
            parse_profile("".join(line for line in text.splitlines(keepends=True) if lost not in line))


def test_costs_that_cannot_be_measured_are_an_error():
    """A party whose log cannot grow, as in a full folder: its costs are not 0, and the folder is named."""
    with LocalCluster() as cluster:
        session, folder = cluster.session(), cluster.folder
        resource.prlimit(cluster.pids[1], resource.RLIMIT_FSIZE, (0, 0))
        with pytest.raises(CipherDMError, match=f"party 1: .*costs cannot be measured.*{folder} full.*TMPDIR"):
            session.run_once(jnp.square, np.float32([1, 2]))


def _bytes_of(share: libspu.Share) -> np.ndarray:
    chunks = []
    for data in share.share_chunks:
        chunk = libspu.ValueChunk()
        chunk.ParseFromString(data)
        chunks.append(chunk.content)
    return np.frombuffer(b"".join(chunks), np.uint8)
