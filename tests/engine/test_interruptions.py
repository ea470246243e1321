"""Interrupted calls, stopped and slow parties, and many callers of one cluster: an answer or an error, soon."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from cipherdm import WAN, CipherDMError, LocalCluster
from cipherdm.engine import Call, Plan, Spec, compile_program, party, party_pb2

SOON = 15
X = np.ones((64, 3000), np.float32)


def long_run(session, progress=None):
    """Some 200 calls with many messages each."""
    program = compile_program(jax.nn.silu, (Spec.of(X),))
    session.share({"x": X})
    session.run(Plan((Call(program, ("x",), ("x",), "silu"),) * 200), progress=progress)


def check_ended(cluster, session, pids, why):
    """Nothing of the cluster runs, and whoever uses it is told so at once."""
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert session.closed
    begun = time.monotonic()
    for call in (cluster.session, lambda: session.share({"x": X}), lambda: session.reveal("x"), session.close):
        with pytest.raises(CipherDMError, match=f"cannot be used: {why}.*start a new LocalCluster"):
            call()
    assert time.monotonic() - begun < 1


@pytest.fixture
def ctrl_c():
    """Let Ctrl-C interrupt, also where the shell has started these tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_interrupted_run_ends_the_cluster_and_says_so(kind, ctrl_c):
    """An exception in `progress`, and Ctrl-C, which comes while this thread waits for the parties."""
    with LocalCluster() as cluster:
        session, pids, interrupted = cluster.session(), cluster.pids, []

        def progress(done, *_):
            if done == 3:
                interrupted.append(time.monotonic())
                if kind is ValueError:
                    raise ValueError("on purpose")
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

        with pytest.raises(kind):
            long_run(session, progress)
        assert time.monotonic() - interrupted[0] < SOON
        check_ended(cluster, session, pids, f"a call of it was interrupted .{kind.__name__}")


def test_an_interrupt_that_nothing_saw_ends_the_cluster_at_the_next_call():
    with LocalCluster() as cluster:
        session, pids = cluster.session(), cluster.pids
        cluster._turn._calling = True  # as it is left by an interrupt before the turn's own handler
        with pytest.raises(CipherDMError, match="was interrupted"):
            session.share({"x": X})
        check_ended(cluster, session, pids, "a call of it was interrupted")


def test_progress_cannot_use_the_cluster():
    with LocalCluster() as cluster:
        session = cluster.session()
        with pytest.raises(CipherDMError, match="`progress` used it"):
            long_run(session, lambda *_: session.reveal("x"))


@pytest.mark.parametrize("who", [1, "shaper"])
def test_a_stopped_process_ends_the_run(who):
    with LocalCluster(network=WAN if who == "shaper" else None) as cluster:
        session, pids = cluster.session(), cluster.pids
        stopped = []

        def stop(*_):
            if not stopped:
                stopped.append(time.monotonic())
                os.kill(cluster._shaper.pid if who == "shaper" else pids[who], signal.SIGSTOP)

        name = "the process that shapes the links" if who == "shaper" else f"party {who}"
        with pytest.raises(CipherDMError, match=f"{name} was stopped by a signal.*start a new LocalCluster"):
            long_run(session, stop)
        assert time.monotonic() - stopped[0] < SOON
        check_ended(cluster, session, pids, name)


def test_a_party_that_is_stopped_for_a_moment_harms_nothing(cluster):
    session = cluster.session()
    os.kill(cluster.pids[2], signal.SIGSTOP)
    threading.Timer(1.5, os.kill, (cluster.pids[2], signal.SIGCONT)).start()
    assert session.run_once(jnp.square, np.float32(3))[0] == pytest.approx(9, abs=1e-3)


def test_a_slow_start_is_waited_for_as_long_as_one_says():
    with pytest.raises(CipherDMError, match="party 0 did not start: 0.1 seconds were not enough.*longer start_timeout"):
        with LocalCluster(start_timeout=0.1):
            pass


def test_a_mistake_in_the_plan_is_found_before_the_first_call(cluster):
    session = cluster.session()
    session.share({"x": X})
    square = compile_program(jnp.square, (Spec.of(X),))
    calls, seen = [Call(square, ("x",), ("y",), "square", frees=("x",)), Call(square, ("x",), ("z",), "again")], []
    with pytest.raises(CipherDMError, match="again needs 'x'"):
        session.run(Plan(tuple(calls)), progress=lambda *event: seen.append(event))
    assert not seen
    session.run(Plan((calls[0],)))  # the cluster goes on


def test_a_mistake_that_one_party_alone_sees_ends_the_run():
    """The others have begun to compute, and their links would no longer agree."""
    with LocalCluster() as cluster:
        session, pids = cluster.session(), cluster.pids
        session.share({"x": X})
        session._stubs[1].Delete(party_pb2.DeleteRequest(session=session.name, names=["x"]))
        square = compile_program(jnp.square, (Spec.of(X),))
        begun = time.monotonic()
        with pytest.raises(CipherDMError, match="party 1: square needs 'x'.*start a new LocalCluster"):
            session.run(Plan((Call(square, ("x",), ("y",), "square"),)))
        assert time.monotonic() - begun < SOON
        check_ended(cluster, session, pids, "there was an error .party 1: square needs 'x'")


def test_threads_and_tasks_get_their_own_results(cluster):
    session = cluster.session()

    def square(number):
        return session.run_once(jnp.square, np.full(5, number, np.float32))[0]

    async def tasks(numbers):
        return await asyncio.gather(*(asyncio.to_thread(square, number) for number in numbers))

    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(square, range(8)), *asyncio.run(tasks(range(8, 12)))]
    for number, result in enumerate(found):
        np.testing.assert_allclose(result, number**2, atol=1e-2)


def test_one_thread_has_the_parties_alone_for_several_calls(cluster):
    session, order = cluster.session(), []

    def later():
        session.share({"x": np.float32(2)})
        order.append("later")

    with session.alone():
        session.share({"x": np.float32(1)})
        other = threading.Thread(target=later)
        other.start()
        time.sleep(0.5)
        order.append("first")
        assert session.reveal("x") == 1
    other.join()
    assert order == ["first", "later"]


def test_the_working_directory_shadows_no_module(tmp_path, monkeypatch):
    for name in ("spu", "queue", "random"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    with LocalCluster() as cluster:
        assert cluster.session().run_once(jnp.square, np.float32(3))[0] == pytest.approx(9, abs=1e-3)


def test_parties_end_with_their_parent_though_its_forked_child_lives():
    parent = subprocess.Popen([sys.executable, "-c", _FORKING], stdout=subprocess.PIPE, text=True)
    child, *pids = map(int, parent.stdout.readline().split())
    try:
        parent.kill()
        parent.wait()
        psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
        assert psutil.pid_exists(child) and not any(map(psutil.pid_exists, pids))
    finally:
        os.kill(child, signal.SIGKILL)


def test_without_proc_memory_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(party, "_STATUS", tmp_path / "nowhere")
    assert party._peak_memory() == 0


def test_memory_that_was_not_measured_is_not_zero(cluster, monkeypatch):
    session = cluster.session()
    assert len(session.peak_memory()) == 3
    monkeypatch.setattr(
        session, "_all", lambda *_: [party.pb.Description(peak_memory_bytes=size) for size in (1, 0, 1)]
    )
    assert session.peak_memory() == ()


_FORKING = """
import multiprocessing, time, warnings
warnings.simplefilter("ignore")
from cipherdm import LocalCluster, WAN
with LocalCluster(network=WAN) as cluster:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, *cluster.pids, cluster._shaper.pid, flush=True)
    time.sleep(60)
"""
