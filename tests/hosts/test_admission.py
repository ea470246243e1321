"""One client cannot take what others need: threads, memory, slots, or time, and what it writes stays short."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import grpc
import jax.numpy as jnp
import psutil
import pytest
from hosting import INPUT, LIMITS, check_product, header, register_models, shares, small_trial, some_input

from cipherdm import CipherDMError
from cipherdm.engine import Node, compile_plan
from cipherdm.engine.wire import MESSAGE_BYTES
from cipherdm.hosts import LoopbackHosts, Model, RemoteCluster, load_caller
from cipherdm.hosts import host_pb2 as pb
from cipherdm.hosts.channels import connect
from cipherdm.hosts.refusals import shown

HOST = "/cipherdm.hosts.Host/"
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """Three hosts with short times: (TOML files by role, hosts)."""
    files = small_trial(tmp_path_factory.mktemp("impatient") / "trial")
    for path in files.values():
        text = path.read_text().replace("connect = 10.0", "connect = 4.0").replace("run = 300.0", "run = 15.0")
        path.write_text(text.replace("keepalive = 3.0", "keepalive = 2.0"))
    with LoopbackHosts(files) as hosts:
        register_models(files)
        nodes = [Node("square", jnp.square, ("x",), ("x",))] * 20_000
        endless = Model("endless", compile_plan(nodes, {"x": INPUT}, ("x",)), {}, {"x": INPUT}, ("x",))
        with RemoteCluster(files["owner"]) as owner:
            owner.register(endless)
        yield files, hosts


@contextmanager
def silent_calls(files, name: str, method: str, count: int, rank: int = 0):
    """Calls of somebody that send no message; the block gets them when all have reached the party."""
    never = threading.Event()

    def nothing():
        never.wait()
        yield pb.RequestPiece()

    channel, _ = connect(load_caller(files[name]), rank)
    try:
        yield [channel.stream_stream(HOST + method)(nothing()) for _ in range(count)]
    finally:
        never.set()
        channel.close()


def codes(calls) -> list[grpc.StatusCode]:
    return [call.code() for call in calls]


@pytest.mark.parametrize("method", ["Request", "Describe"])
def test_who_sends_nothing_holds_nobody_up(impatient, method):
    """Sixty calls without a message: most are refused at once, the rest ends soon, and all others are served meanwhile."""
    files, _ = impatient
    with silent_calls(files, "alice", method, 60) as calls:
        start = time.monotonic()
        with RemoteCluster(files["operator"]) as operator, RemoteCluster(files["bob"]) as bob:
            assert not [state for state in operator.states() if isinstance(state, CipherDMError)]
            check_product(bob, 1)
        found = codes(calls)
        assert time.monotonic() - start < 40
    assert set(found) == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
    assert found.count(grpc.StatusCode.CANCELLED) <= LIMITS.runs_per_client + 4


def test_nobody_is_read_before_it_is_known(impatient):
    """A message of 100 MB to a call that its sender may not make: denied, and the party is no larger than before."""
    files, hosts = impatient
    channel, _ = connect(load_caller(files["alice"]), 1)
    party = psutil.Process(hosts.pids[1])
    before = party.memory_info().rss
    status = channel.unary_unary(HOST + "Status")
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as denied:
            status(b"\x7a\x80\x80\x80\x30" + bytes(100 << 20), timeout=60)
        assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert party.memory_info().rss - before < 50 << 20
    channel.close()


def test_messages_have_a_limit(impatient):
    channel, stub = connect(load_caller(impatient[0]["alice"]), 1)
    with pytest.raises(grpc.RpcError, match="larger than max") as refused:
        channel.unary_unary(HOST + "Describe")(bytes(MESSAGE_BYTES + 1), timeout=60)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    stub.Describe(pb.DescribeRequest(), timeout=20)
    channel.close()


def test_a_run_has_a_limit_and_frees_its_slot(impatient):
    files, _ = impatient
    with RemoteCluster(files["alice"]) as alice:
        with pytest.raises(CipherDMError, match=r"took longer than 15 seconds, which is \[timeouts\] run"):
            alice.request("endless", {"x": some_input(0)})
        check_product(alice, 2)


def test_who_reads_nothing_loses_the_run(impatient):
    """Flow control lets a party send 64 kB to somebody who reads nothing, and then its run ends."""
    files, hosts = impatient
    config = load_caller(files["alice"])
    streams, channels = [], []
    for rank in range(3):
        named = [("grpc.ssl_target_name_override", f"party{rank}"), *SMALL_WINDOW]
        channels.append(grpc.secure_channel(config.parties[rank], config.identity.to_call(), named))
    first = header(files, model="endless", digest=_digest(files, "endless"))
    for channel in channels:
        request = channel.stream_stream(HOST + "Request", pb.RequestPiece.SerializeToString)
        streams.append(request(iter([first, *shares("x", some_input(0))])))
    with RemoteCluster(files["bob"]) as bob, RemoteCluster(files["operator"]) as operator:
        check_product(bob, 3)
        deadline = time.monotonic() + 120
        while any(status.requests for _, status in operator.states()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert any("let it wait too long" in hosts.log(rank) for rank in (1, 2))
    for channel in channels:
        channel.close()


def test_logs_and_reasons_are_short_and_obey_nobody(impatient):
    files, hosts = impatient
    _, stub = connect(load_caller(files["alice"]), 1)
    name = "\x1b[31m" + "x" * 1_000_000
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Request(iter([header(files, model=name)]), timeout=20))
    assert len(refused.value.details()) < 1100 and refused.value.details().isprintable()
    lines = hosts.log(1).splitlines()
    assert any("x" * 100 in line for line in lines) and max(map(len, lines)) < 1000
    with RemoteCluster(files["operator"]) as operator:
        _, status = operator.states()[1]
    assert "x" * 100 in status.last_error and len(status.last_error) < 500 and status.last_error.isprintable()
    assert shown("a\x1b]0;b\x07\n") == r"a\x1b]0;b\x07\n"


def test_a_party_that_lacks_memory_ends_and_is_not_deaf():
    """gRPC's thread that takes calls ends by a MemoryError: without it a process would only seem to live."""
    program = (
        "import threading, time; from cipherdm.hardening import end_with_any_thread as end; end()\n"
        "def run(): raise MemoryError\n"
        "threading.Thread(target=run).start(); time.sleep(20)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and "a thread ended by MemoryError" in found.stderr


def test_memory_of_parties_stays_with_them(impatient, cluster):
    """No core files, and no debugger of the same user, for a host, its processes of a run, and a local party."""
    _, hosts = impatient
    pids = [child.pid for pid in hosts.pids for child in psutil.Process(pid).children()] + list(hosts.pids)
    for pid in [*pids, *(process.pid for process in cluster._processes)]:
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)


def _digest(files, name: str) -> str:
    with RemoteCluster(files["alice"]) as alice:
        return alice.models()[name].digest
