"""The engine on three real parties: values survive sharing, programs compute, secrets stay secret."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from scipy import stats
from spu import api, libspu
from spu.experimental import reveal

from cipherdm import CipherDMError, LocalCluster
from cipherdm.engine import Call, EngineConfig, Node, Plan, Spec, compile_plan, compile_program, party
from cipherdm.engine import cluster as cluster_module
from cipherdm.engine.config import PartyConfig
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


def test_a_killed_party_ends_the_run_with_a_clear_error():
    x = np.ones((64, 3000), np.float32)
    program = compile_program(jax.nn.silu, (Spec.of(x),))
    with LocalCluster() as cluster:
        session, pids = cluster.session(), cluster.pids
        session.share({"x": x})
        plan = Plan((Call(program, ("x",), ("x",), "silu"),) * 200)
        start = time.monotonic()
        killed = []

        def kill_once(*_):
            if not killed:
                killed.append(pids[1])
                os.kill(pids[1], signal.SIGKILL)

        with pytest.raises(CipherDMError, match="party 1 was killed by signal 9"):
            session.run(plan, progress=kill_once)
        assert time.monotonic() - start < 15
        assert not any(_alive(pid) for pid in pids)
        with pytest.raises(CipherDMError, match="cannot be used: .*party 1 was killed.*start a new"):
            session.share({"x": x})


def test_parties_listen_where_only_this_user_may_look():
    """No process of a cluster has a TCP port; its sockets are in one folder of mode 0700."""
    with LocalCluster() as cluster:
        cluster.session()
        folder = cluster.folder
        assert folder.stat().st_mode & 0o777 == 0o700
        for pid in cluster.pids:
            held = psutil.Process(pid).net_connections("all")
            assert {item.family for item in held} == {socket.AF_UNIX}
            listening = {Path(item.laddr).parent for item in held if isinstance(item.laddr, str) and item.laddr}
            assert listening <= {folder}
        assert len(list(folder.glob("*.sock"))) == 6
    assert not folder.exists()


def test_names_of_links_are_random(monkeypatch):
    """Both clusters hand their parties one name, and not the same; the parties' links take it."""
    configs = []

    def start(config):
        configs.append(config)
        (config.work / f"party{config.rank}.err").touch()
        return subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(cluster_module, "start_party", start)
    for _ in range(2):
        with pytest.raises(CipherDMError, match="did not start"):
            with LocalCluster():
                pass
    names = [config.link_id for config in configs]
    assert len(names) == 6 and len(set(names[:3])) == len(set(names[3:])) == 1 and names[0] != names[3]
    assert all(len(name) == 32 for name in names)
    taken = []
    monkeypatch.setattr(libspu.link, "create_brpc", lambda description, rank: taken.append(description.id))
    party.connect(configs[0])
    assert taken == names[:1]


def test_no_process_reads_a_configuration_of_openssl(cluster):
    """SPU's OpenSSL looks for one in /tmp, where anybody could place it, with code to load."""
    assert os.environ["OPENSSL_CONF"] == os.devnull
    for pid in cluster.pids:
        assert psutil.Process(pid).environ()["OPENSSL_CONF"] == os.devnull
    check = "import os, sys, cipherdm; assert 'spu' not in sys.modules; print(os.environ['OPENSSL_CONF'])"
    environment = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    found = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True)
    assert found.stdout == f"{os.devnull}\n"


def test_a_long_temporary_folder_is_too_long_for_sockets_and_not_taken(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with LocalCluster() as cluster:
        assert cluster.session().run_once(jnp.square, np.float32(3))[0] == pytest.approx(9, abs=1e-3)


@pytest.mark.parametrize("ending", ["normal", "exception", "SIGKILL", "SIGINT"])
def test_no_process_outlives_its_client(ending, tmp_path):
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, ending], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in client.stdout.readline().split()]
    assert len(pids) == 3
    if ending.startswith("SIG"):
        time.sleep(0.5)
        client.send_signal(getattr(signal, ending))
    try:
        client.wait(timeout=15)
    finally:
        client.kill()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in pids)


def test_the_party_configuration_survives_its_json(tmp_path):
    config = PartyConfig(0, tmp_path, (tmp_path / "a", tmp_path / "b", tmp_path / "c"), "name")
    assert PartyConfig.from_json(config.to_json()) == config


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


# A client that starts a cluster, keeps it busy, and ends in one of several ways.
_CLIENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it, and so would its children
import jax, numpy as np
from cipherdm.engine import Call, LocalCluster, Plan, Spec, compile_program

with LocalCluster() as cluster:
    session = cluster.session()
    x = np.ones((64, 1000), np.float32)
    session.share({"x": x})
    program = compile_program(jax.nn.silu, (Spec.of(x),))
    print(*cluster.pids, flush=True)
    if sys.argv[1] == "exception":
        raise ValueError("on purpose")
    if sys.argv[1] != "normal":
        session.run(Plan((Call(program, ("x",), ("x",), "silu"),) * 1000))
"""


def _bytes_of(share: libspu.Share) -> np.ndarray:
    chunks = []
    for data in share.share_chunks:
        chunk = libspu.ValueChunk()
        chunk.ParseFromString(data)
        chunks.append(chunk.content)
    return np.frombuffer(b"".join(chunks), np.uint8)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for (state Z) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
