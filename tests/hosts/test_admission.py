"""One client cannot take what others need: threads, memory, slots, or time, and what it writes stays short."""

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import grpc
import jax.numpy as jnp
import psutil
import pytest
from hosting import INPUT, LIMITS, check_product, header, register_models, shares, small_trial, some_input
from processes import protection, unprotected

from cipherdm import CipherDMError
from cipherdm.engine import Node, compile_plan
from cipherdm.engine.cluster import start_process
from cipherdm.engine.wire import MESSAGE_BYTES
from cipherdm.hosts import Limits, LoopbackHosts, Model, RemoteCluster, load_caller, load_host, worker
from cipherdm.hosts import host_pb2 as pb
from cipherdm.hosts.channels import connect
from cipherdm.hosts.config import split_address
from cipherdm.hosts.refusals import Cancelled, RunFailed, TooMuch, shown
from cipherdm.hosts.request_queue import Queue, Requests
from cipherdm.hosts.runs import Run, Runs
from cipherdm.hosts.service import EventLog, HostService
from cipherdm.hosts.worker import Slots, memory_of

pytestmark = pytest.mark.attack

HOST = "/cipherdm.hosts.Host/"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """Three hosts with short times: (TOML files by role, hosts)."""
    files = small_trial(tmp_path_factory.mktemp("impatient") / "trial")
    for path in files.values():
        text = path.read_text().replace("connect = 10.0", "connect = 4.0").replace("run = 300.0", "run = 15.0")
        path.write_text(text.replace("keepalive = 5.0", "keepalive = 2.0"))
    with ExitStack() as stack:
        with unprotected():
            hosts = stack.enter_context(LoopbackHosts(files))
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
    calls = [channel.stream_stream(HOST + method)(nothing(), timeout=60) for _ in range(count)]
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()  # gRPC aborts this process if a channel is closed below so many calls
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


def test_a_client_that_leaves_a_party_out_holds_no_slot(impatient):
    """Party 1 gets ready for such a run, and its call with the client goes on when party 0 has given up."""
    files, _ = impatient
    with RemoteCluster(files["bob"]) as bob:
        check_product(bob, 3)
        begin, calls = header(files), []
        for rank in (0, 1):
            _, stub = connect(load_caller(files["alice"]), rank)
            calls.append(stub.Request(iter([begin, *shares("x", some_input(0))])))
        with pytest.raises(grpc.RpcError, match="party 2 has no such run"):
            list(calls[0])
        check_product(bob, 4)  # in the slot that is free again
    with pytest.raises(grpc.RpcError, match="party 0 has given the slot of this run to another one"):
        list(calls[1])


@pytest.mark.parametrize("event", [pb.RequestEvent(waiting=1), pb.RequestEvent(progress=pb.Progress())])
def test_who_does_not_take_its_progress_loses_the_run(tmp_path, event):
    """The party's thread stands at `yield` until the client has room. Meanwhile the end of the call comes nearer."""
    host = load_host(small_trial(tmp_path / "trial")["party1"])
    timeouts = replace(host.caller.timeouts, keepalive=0.2)
    host = replace(host, caller=replace(host.caller, timeouts=timeouts))
    service = HostService(host, tmp_path, EventLog(1))
    service._requests = Mock(serve=lambda *_: iter([event, event]))
    context = Mock(auth_context=dict)
    answers = service.Request(iter([pb.RequestPiece(header=pb.RequestHeader(run="0" * 32))]), context)
    next(answers)
    deadline = time.monotonic() + 30
    while not context.cancel.called:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_logs_and_reasons_are_short_and_obey_nobody(impatient):
    files, hosts = impatient
    _, stub = connect(load_caller(files["alice"]), 1)
    name = "\x1b[31m" + "x" * 1_000_000
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.Request(iter([header(files, model=name)]), timeout=20))
    reason = refused.value.details()
    assert "x" * 100 in reason and len(reason) < 1100 and reason.isprintable()
    lines = hosts.log(1).splitlines()
    assert any("x" * 100 in line for line in lines) and max(map(len, lines)) < 1000
    with RemoteCluster(files["operator"]) as operator:
        _, status = operator.states()[1]
    assert "x" * 100 in status.last_error and len(status.last_error) < 500 and status.last_error.isprintable()
    assert shown("a\x1b]0;b\x07\n") == r"a\x1b]0;b\x07\n"


def test_a_party_that_lacks_memory_ends_and_is_not_deaf():
    """gRPC's thread that takes calls ends by a MemoryError: without it a process would only seem to live."""
    program = (
        "import threading, time; from cipherdm.hardening import harden; harden()\n"
        "def run(): raise MemoryError\n"
        "threading.Thread(target=run).start(); time.sleep(20)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and "a thread ended by MemoryError" in found.stderr


def processes_of(hosts) -> list[psutil.Process]:
    """The hosts' processes, and theirs of a run: party and gate."""
    parties = [psutil.Process(pid) for pid in hosts.pids]
    return parties + [child for party in parties for child in party.children()]


def test_memory_of_parties_stays_with_them(impatient):
    """No core files, and no debugger of the same user, for a host and its processes of a run."""
    files, hosts = impatient
    with RemoteCluster(files["alice"]) as alice:
        check_product(alice, 3)
    pids = [process.pid for process in processes_of(hosts)]
    assert len(pids) >= 9 and set(map(protection, pids)) == {(True, True)}
    with unprotected(), subprocess.Popen(["sleep", "60"]) as other:
        deadline = time.monotonic() + 10  # the system opens a new program's files in /proc a moment after it has begun
        while protection(other.pid) != (False, False):
            assert time.monotonic() < deadline, "any process would count as protected"
            time.sleep(0.05)
        other.kill()


def test_hosts_listen_at_their_ports_and_in_folders_of_this_user_alone(impatient):
    files, hosts = impatient
    with RemoteCluster(files["alice"]) as alice:
        check_product(alice, 4)
    host = load_host(files["party0"])
    ports = {split_address(address)[1] for address in host.caller.parties}
    ports |= {split_address(address)[1] + slot for address in host.links for slot in range(LIMITS.runs)}
    held = [item for process in processes_of(hosts) for item in process.net_connections("all")]
    assert {item.laddr.port for item in held if item.status == psutil.CONN_LISTEN} <= ports
    sockets = {Path(item.laddr) for item in held if isinstance(item.laddr, str) and item.laddr}
    assert len(sockets) >= 12
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0
        assert not [folder for folder in (path.parent, path.parent.parent) if folder.stat().st_mode & 0o777 != 0o700]


def test_bytes_that_are_no_message_are_refused(impatient):
    files, hosts = impatient
    for name, methods in (
        ("alice", ("Request", "Describe")),
        ("owner", ("Register", "Publish")),
        ("party0", ("Start",)),
    ):
        channel, _ = connect(load_caller(files[name]), 1)
        for method in methods:
            for messages in ([], [b"\xff" * 100], [b""], [b"\x0a\x7f"]):
                with suppress(grpc.RpcError):
                    list(channel.stream_stream(HOST + method)(iter(messages), timeout=20))
        channel.close()
    assert psutil.Process(hosts.pids[1]).is_running() and not [
        line for line in hosts.log(1).splitlines() if line[0] != "{"
    ]
    with RemoteCluster(files["alice"]) as alice:
        check_product(alice, 5)


def test_all_callers_together_leave_room_for_operators_and_parties(impatient):
    files, _ = impatient
    with ExitStack() as stack:
        calls = [stack.enter_context(silent_calls(files, name, "Describe", 5)) for name in ("alice", "bob", "carol")]
        with RemoteCluster(files["operator"]) as operator:
            assert not [state for state in operator.states() if isinstance(state, CipherDMError)]
        found = [code for of_one in calls for code in codes(of_one)]
    assert found.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 15 - (LIMITS.runs + LIMITS.queue + 8)


def test_runs_in_hand_have_a_limit():
    runs = Runs(Limits(runs=1, queue=1))
    with runs.admitted("alice", "1"), runs.admitted("bob", "1"):
        with pytest.raises(TooMuch, match="2 runs are in hand"), runs.admitted("carol", "1"):
            pass
    with runs.admitted("carol", "1"):
        pass


def test_a_client_that_goes_away_ends_a_process_that_still_starts(tmp_path, monkeypatch):
    """The process here never gets ready."""
    sleeps = ["-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(worker, "start_party", lambda config, _: start_process(sleeps, "", config.work / "party1.err"))
    host = replace(load_host(small_trial(tmp_path / "trial")["party1"]), link_sockets=tmp_path)
    requests, run = Requests(host, "", Mock(), Slots(host, tmp_path)), Run("alice", "1")
    threading.Timer(0.5, run.cancel).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        list(requests._compute(run, pb.StartRequest(generation="new", fresh=True), Mock()))
    assert time.monotonic() - begun < host.caller.timeouts.start / 2


def test_a_process_of_another_generation_is_not_used(tmp_path):
    slots = Slots(load_host(small_trial(tmp_path / "trial")["party1"]), tmp_path)
    with pytest.raises(RunFailed, match="has lost its process of slot 1"):
        with slots.use(pb.StartRequest(slot=1, generation="other")):
            pass


def test_a_process_that_has_ended_has_no_memory_of_zero():
    """Neither one that its parent has not noticed yet, nor one that is gone."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):
        with pytest.raises(psutil.NoSuchProcess):
            memory_of(process.pid)
        process.wait()
    assert memory_of() > 1 << 20


def clients_in(queue: Queue, stack: ExitStack, *clients: str) -> list:
    return [stack.enter_context(queue.place(Run(client, ""))) for client in clients]


def test_a_free_slot_goes_to_the_client_that_computes_the_fewest():
    queue = Queue(3)
    with ExitStack() as stack, ExitStack() as others:
        first, *alices, last = clients_in(queue, stack, "alice", "alice", "alice", "alice")
        assert first.done() and alices[0].done(), "two of three"
        assert not alices[1].done(), "the third is kept"
        (bob, *more) = clients_in(queue, others, "bob", "bob", "carol")
        assert bob.done() and not any(place.done() for place in more)
        assert [queue.ahead(place) for place in (more[1], more[0], alices[1], last)] == [0, 1, 2, 3]
        others.close()
        assert not alices[1].done(), "though nobody else waits"
    with ExitStack() as stack:
        places = clients_in(queue, stack, "carol", "alice", "bob")
        assert sorted(place.result() for place in places) == [0, 1, 2], "all that were left are free"


def test_who_waits_gets_the_slot_that_becomes_free():
    queue = Queue(1)
    with ExitStack() as stack:
        with queue.place(Run("alice", "")):
            again, bob = clients_in(queue, stack, "alice", "bob")
            assert not again.done() and not bob.done()
        assert again.done(), "both compute nothing, and alice came first"
