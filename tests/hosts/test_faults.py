"""What goes wrong at one of three hosts ends in a clear error in time, and the next request succeeds once it is mended."""

import json
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from forwarder import Forwarder
from hosting import (
    INPUT,
    LIMITS,
    TIMEOUTS,
    check_product,
    product_model,
    register_models,
    small_trial,
    some_input,
)

from cipherdm import CipherDMError
from cipherdm.engine import Node, Spec, compile_plan
from cipherdm.hosts import PARTY_NAMES, LoopbackHosts, Model, RemoteCluster, Timeouts, load_caller, load_host
from cipherdm.hosts.config import split_address

SOON = 15.0  # seconds within which a caller is told of a process that ended or was stopped, with the usual timeouts
SLACK = 20.0  # seconds beside the timeouts, for a machine that is busy with other things
INSIDE, OUTSIDE = "127.0.1.{}", "127.0.2.{}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Three hosts, each behind a forwarder of its own: (files by role, hosts, forwarders by rank)."""
    files = small_trial(tmp_path_factory.mktemp("faults") / "trial")
    ports = [_ports(files[name]) for name in PARTY_NAMES]
    for name, path in files.items():
        text = path.read_text()
        for rank in range(3):
            for port in ports[rank]:
                text = text.replace(f'"127.0.0.1:{port}"', f'"{OUTSIDE.format(rank + 1)}:{port}"')
        if name in PARTY_NAMES:
            text += f'listen = "{INSIDE.format(PARTY_NAMES.index(name) + 1)}"\n'
        path.write_text(text)
    with ExitStack() as stack:
        forwarders = [
            stack.enter_context(Forwarder(OUTSIDE.format(rank + 1), INSIDE.format(rank + 1), ports[rank]))
            for rank in range(3)
        ]
        hosts = stack.enter_context(LoopbackHosts(files))
        register_models(files)
        yield files, hosts, forwarders


@pytest.fixture
def files(network):
    return network[0]


@pytest.fixture
def hosts(network):
    return network[1]


@pytest.fixture
def alice(files):
    with RemoteCluster(files["alice"]) as cluster:
        yield cluster


def fails(cluster: RemoteCluster, break_it: Callable[[], None], within: float) -> str:
    """Break something while the slow model is computed; return the error that comes within so many seconds."""
    broken = []

    def progress(done: int, *_) -> None:
        if done >= 3 and not broken:
            broken.append(time.monotonic())
            break_it()

    with pytest.raises(CipherDMError) as failure:
        cluster.request("slow", {"x": some_input(0)}, progress)
    assert broken and time.monotonic() - broken[0] < within + SLACK
    return str(failure.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_party_is_killed_and_comes_back(files, hosts, alice, rank):
    children = []

    def kill() -> None:
        children.extend(psutil.Process(pid) for pid in children_of(hosts.pids[rank]))
        hosts.kill(rank)

    message = fails(alice, kill, within=1)
    assert f"party {rank}" in message and "is gone" in message
    psutil.wait_procs(children, timeout=10)
    assert len(children) > 1 and not any(
        child.is_running() for child in children
    )  # the process of the run, and its gate
    others = [pid for pid in hosts.pids if pid is not None]
    start = time.monotonic()
    with pytest.raises(CipherDMError, match=f"party {rank} at .* is gone"):
        alice.request("product", {"x": some_input(0)})
    assert time.monotonic() - start < TIMEOUTS.connect + SLACK
    hosts.start(rank)
    check_product(alice, rank)  # the same client, the same two other parties, and the models that were registered
    assert set(others) < set(hosts.pids)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_party_is_stopped_and_goes_on(hosts, alice, rank):
    try:
        message = fails(alice, lambda: hosts.pause(rank), within=2 * TIMEOUTS.keepalive)
    finally:
        hosts.resume(rank)
    assert f"party {rank}" in message
    check_product(alice, 10 + rank)
    assert 2 * Timeouts().keepalive < SOON


def children_of(pid: int, kind: str = "") -> list[int]:
    """The processes for runs that a party has, or those of them in whose commands this stands."""
    return [child.pid for child in psutil.Process(pid).children() if kind in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    ("number", "kind", "expected"),
    [
        (signal.SIGKILL, "engine.party", "party 1: the process of this run was killed by signal 9"),
        (
            signal.SIGKILL,
            "gate.py",
            # SPU at the other two may abort first, in one way or another.
            "party 1: the gate of this run has ended|party [02]: the process of this run (ended|was killed)",
        ),
        (signal.SIGSTOP, "engine.party", "party 1: the process of this run was stopped by a signal"),
        (signal.SIGSTOP, "gate.py", "party 1: the gate of this run was stopped by a signal"),
    ],
)
def test_a_process_of_a_run_is_killed_or_hangs(hosts, alice, number, kind, expected):
    def strike() -> None:
        for pid in children_of(hosts.pids[1], kind):
            os.kill(pid, number)

    assert re.search(expected, fails(alice, strike, 1 if number == signal.SIGKILL else SOON))
    check_product(alice, 20)


def test_a_process_ends_with_its_gate_also_while_no_message_is_on_its_way(hosts, alice):
    """SPU alone would wait for messages until its time is over."""
    check_product(alice, 23)
    gates, processes = (children_of(hosts.pids[1], kind) for kind in ("gate.py", "engine.party"))
    assert gates
    for pid in gates:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + SOON / 2
    for process in map(psutil.Process, processes):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the process waits for messages"
            time.sleep(0.1)
    with suppress(CipherDMError):  # party 1 may not have noticed yet
        check_product(alice, 24)
    check_product(alice, 24)


def test_processes_that_are_stopped_for_a_moment_harm_nothing(hosts, alice):
    check_product(alice, 21)
    stopped = [*children_of(hosts.pids[2]), hosts.pids[2]]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.5, os.kill, (pid, signal.SIGCONT)).start()
    check_product(alice, 22)
    assert [*children_of(hosts.pids[2]), hosts.pids[2]] == stopped


def test_a_host_is_cut_off_and_connected_again(network, alice):
    forwarders = network[2]
    message = fails(alice, forwarders[2].cut, within=2 * TIMEOUTS.keepalive)
    assert "party 2" in message
    start = time.monotonic()
    with pytest.raises(CipherDMError, match="party 2"):
        alice.request("product", {"x": some_input(0)})
    assert time.monotonic() - start < TIMEOUTS.connect + SLACK
    forwarders[2].mend()
    check_product(alice, 30)


def test_a_slow_link_only_takes_longer(network, alice):
    forwarders = network[2]
    forwarders[0].mend(delay=0.05)
    try:
        check_product(alice, 31)
    finally:
        forwarders[0].mend()


def test_a_party_is_killed_while_a_model_is_uploaded(files, hosts, alice):
    plan = compile_plan([Node("sum", jnp.add, ("w0", "x"), ("y",))], {"w0": INPUT, "x": INPUT}, ("y",))
    values = {f"w{index}": np.ones(INPUT.shape, np.float32) for index in range(20)}
    killed = []

    def kill_once(*_) -> None:
        if not killed:
            killed.append(hosts.kill(2))

    with RemoteCluster(files["owner"]) as owner:
        with pytest.raises(CipherDMError, match="party 2"):
            owner.register(Model("product", plan, values, {"x": INPUT}, ("y",)), kill_once)
        hosts.start(2)
        check_product(alice, 40)  # the model of this name that was there before
        owner.register(product_model())
    check_product(alice, 41)
    for rank in range(3):
        assert len(list((_state(files, rank) / "models").iterdir())) <= 3  # nothing half uploaded is kept


def test_a_party_is_killed_before_it_publishes(files, hosts, alice):
    """What was registered before answers until all three parties have published."""
    plan = compile_plan([Node("sum", jnp.add, ("w", "x"), ("y",))], {"w": INPUT, "x": INPUT}, ("y",))
    model = Model("product", plan, {"w": np.ones(INPUT.shape, np.float32)}, {"x": INPUT}, ("y",))
    with RemoteCluster(files["owner"]) as owner:
        everything = owner._all

        def publish_at_two(method, request):
            if method == "Publish":
                hosts.kill(2)
            return everything(method, request)

        owner._all = publish_at_two
        with pytest.raises(CipherDMError, match="party 2"):
            owner.register(model)
        hosts.start(2)
        check_product(alice, 42)
        owner._all = everything
        owner.register(product_model())
    check_product(alice, 43)
    for rank in range(3):
        assert len(list((_state(files, rank) / "models").iterdir())) <= 3


def test_one_bit_on_the_disk_of_a_party_changes(files, hosts, alice):
    folder = _state(files, 1)
    entry = json.loads((folder / "published" / "product.json").read_text())
    path = folder / "models" / entry["versions"][0]["registration"] / "shares"
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    before = set(children_of(hosts.pids[1]))
    with pytest.raises(CipherDMError, match="party 1: the shares of 'product' on the disk have changed"):
        alice.request("product", {"x": some_input(0)})
    path.write_bytes(data)
    deadline = time.monotonic() + SLACK
    while before <= set(children_of(hosts.pids[1])):
        assert time.monotonic() < deadline, "what a failed run held stays in memory"
        time.sleep(0.1)
    check_product(alice, 44)


def test_a_party_whose_model_is_damaged_serves_the_others(files, hosts, alice):
    path = _state(files, 1) / "published" / "product.json"
    text = path.read_text()
    hosts.kill(1)
    path.write_text("")
    hosts.start(1)
    with pytest.raises(CipherDMError, match="no model 'product' at all three parties: party 1 lacks it"):
        alice.request("product", {"x": some_input(0)})
    fails(alice, lambda: hosts.kill(2), within=1)  # the slow model still runs
    hosts.start(2)
    with RemoteCluster(files["operator"]) as operator:
        assert "product.json names cannot be read" in operator.states()[1][1].last_error
    hosts.kill(1)
    path.write_text(text)
    hosts.start(1)
    check_product(alice, 45)


def test_a_party_is_killed_while_outputs_are_fetched(files, hosts, alice):
    """Either the answer was complete by then, or there is none."""
    large = Spec((1, 1 << 18), public=True)
    plan = compile_plan([Node("outer", jnp.multiply, ("x", "row"), ("y",))], {"x": Spec((8, 1)), "row": large}, ("y",))
    row, x = np.ones(large.shape, np.float32), np.arange(8, dtype=np.float32)[:, None]
    with RemoteCluster(files["owner"]) as owner:
        owner.register(Model("large", plan, {}, {"x": Spec((8, 1))}, ("y",), public={"row": row}))
    try:
        answer = alice.request("large", {"x": x}, lambda *_: hosts.kill(1) if hosts.pids[1] else None)
        np.testing.assert_allclose(answer.outputs["y"], x * row, atol=1e-3)
    except CipherDMError as error:
        assert "party 1" in str(error)
    hosts.start(1)
    check_product(alice, 50)


def test_a_disk_is_full(files, hosts, alice):
    """The operating system refuses to write more than 64 kB to a file of party 1."""
    pid, values = hosts.pids[1], {"w": np.zeros((64, 64), np.float32)}
    plan = compile_plan([Node("sum", jnp.add, ("w", "x"), ("y",))], {n: Spec((64, 64)) for n in "wx"}, ("y",))
    model = Model("product", plan, values, {"x": Spec((64, 64))}, ("y",))
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    size = (_state(files, 1).parent / "party1.log").stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (max(size, 1 << 15) + (1 << 14), most))
    try:
        with RemoteCluster(files["owner"]) as owner, pytest.raises(CipherDMError, match="party 1.*cannot be stored"):
            owner.register(model)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    check_product(alice, 60)
    with RemoteCluster(files["owner"]) as owner:
        owner.register(product_model())
    check_product(alice, 61)


def test_nothing_runs_while_configurations_differ(files, hosts, alice):
    path = files["party2"]
    text = path.read_text()
    hosts.kill(2)
    path.write_text(text.replace(f"queue = {LIMITS.queue}", f"queue = {LIMITS.queue + 1}"))
    try:
        hosts.start(2)
        with pytest.raises(CipherDMError, match="the parties do not agree: they have a configuration"):
            alice.request("product", {"x": some_input(0)})
        with RemoteCluster(files["owner"]) as owner, pytest.raises(CipherDMError, match="do not agree"):
            owner.register(product_model())
        hosts.kill(2)
    finally:
        path.write_text(text)
    hosts.start(2)
    check_product(alice, 70)


def test_logs_are_lines_of_json_without_values(files, hosts):

    for rank in range(3):
        lines = [json.loads(line) for line in hosts.log(rank).splitlines()]
        assert {"ready", "run done", "run failed", "model published"} <= {line["event"] for line in lines}
        allowed = {"time", "level", "party", "event", "caller", "run", "model", "seconds", "reason", "slot"}
        allowed |= {"pid", "address", "configuration", "registration", "method"}
        assert {name for line in lines for name in line} <= allowed


def _state(files, rank: int):
    return load_host(files[PARTY_NAMES[rank]]).state


def _ports(path) -> list[int]:
    host = load_host(path)
    first = split_address(host.links[host.rank])[1]
    return [split_address(load_caller(path).parties[host.rank])[1], *range(first, first + host.limits.runs)]
