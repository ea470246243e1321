"""A LocalCluster that threads share, and random faults: right results or errors, soon, and nothing left."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import psutil
import pytest
from random_faults import HANGING, WEIGHTS, Call, OnPurpose, Tally, is_right, some_input, turning_plan

from cipherdm import CipherDMError, LocalCluster

pytestmark = [pytest.mark.attack, pytest.mark.slow]

KINDS = ("SIGKILL of a party", "SIGSTOP of a party", "Ctrl-C", "exception in progress")


@pytest.fixture
def interruptible():
    """interruptible(call): make the call in this thread, which Ctrl-C interrupts; before and after that it does nothing."""
    calls = []

    def interrupt(*_):
        if calls and not calls[-1].outcome:
            raise KeyboardInterrupt

    def make(call: Call) -> None:
        calls.append(call)
        try:
            call()
        except KeyboardInterrupt:  # outside the call's own handlers
            call.outcome = call.outcome or "error"

    before = signal.signal(signal.SIGINT, interrupt)
    yield make
    signal.signal(signal.SIGINT, before)


def work(session, plan, x, asked: Callable[[], bool] = lambda: False) -> Callable[[Callable], bool]:
    """A caller's work: weights in files, its own input, a run, and the result; `progress` raises once `asked` is true."""

    def do(heard: Callable) -> bool:
        def progress(*_) -> None:
            heard()
            if asked():
                raise OnPurpose

        with session.alone():
            heard()
            session.share({"w": WEIGHTS}, in_files=True)
            session.share({"x": x})
            session.run(plan, progress)
            return is_right(session.reveal("x"), x)

    return do


def start(folder, tally: Tally) -> LocalCluster:
    """A cluster with the files of the one before, whose weights are whole, or known not to be."""
    cluster = LocalCluster(files=folder).__enter__()
    try:
        if not np.allclose(cluster.session(files="kept").reveal("w"), WEIGHTS, atol=1e-4):
            tally.problem("weights in files are wrong")
    except CipherDMError:  # not all parties had written them
        cluster.session()
    if left := list(folder.rglob(".*")):
        tally.problem(f"half written: {left}")
    return cluster


def strike(cluster, generator: random.Random, raising: threading.Event) -> str:
    kind = generator.choice(KINDS)
    if kind == "Ctrl-C":
        os.kill(os.getpid(), signal.SIGINT)
    elif kind == "exception in progress":
        raising.set()
    else:
        os.kill(generator.choice(cluster.pids), getattr(signal, kind[:7]))
    return kind


def goes_on(cluster, call: Callable[[], bool], tally: Tally) -> bool:
    """Return whether the next run works. If not, it says so soon, and later ones at once."""
    begun = time.monotonic()
    try:
        tally.afterwards["right" if call() else "wrong"] += 1
        return True
    except CipherDMError as error:
        tally.afterwards["error"] += 1
        if "start a new LocalCluster" not in str(error) or time.monotonic() - begun > HANGING:
            tally.problem(f"the next run ended after {time.monotonic() - begun:.1f} s with: {error}")
    begun = time.monotonic()
    with pytest.raises(CipherDMError, match="cannot be used.*start a new LocalCluster"):
        call()
    if time.monotonic() - begun > 1:
        tally.problem("it is not said at once that the cluster has ended")
    return False


def test_random_faults_of_a_cluster(faults, fault_seed, interruptible, tmp_path, capsys):
    tally, plan, cluster = Tally("a cluster", fault_seed), turning_plan(), None
    with ExitStack() as stack:
        stack.enter_context(tally.printed(capsys))
        stack.callback(lambda: cluster and cluster.stop())
        usual = 0.0
        for number in range(faults):
            generator = random.Random(f"{fault_seed}/{number}")
            cluster = cluster or start(tmp_path, tally)
            session, pids, raising = cluster.session(files="kept"), cluster.pids, threading.Event()
            tally.see(pids)
            inputs = [some_input(generator) for _ in range(3)]
            again = partial(work(session, plan, inputs[0]), lambda *_: None)
            if not usual:
                begun = time.monotonic()
                assert again()
                usual = time.monotonic() - begun
            calls = [Call("main thread", work(session, plan, inputs[0], raising.is_set))]
            calls += [Call(f"thread {index}", work(session, plan, inputs[index])).begin() for index in (1, 2)]
            delay = generator.uniform(0, 3.3 * usual)

            def disturb(calls=calls, cluster=cluster, pids=pids, generator=generator, raising=raising, delay=delay):
                time.sleep(delay)
                for call in calls:
                    call.struck = time.monotonic()
                tally.fault(strike(cluster, generator, raising))
                tally.settle(calls, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids if psutil.pid_exists(pid)])

            other = threading.Thread(target=disturb)
            other.start()
            interruptible(calls[0])
            other.join()
            if not goes_on(cluster, again, tally):
                folder = cluster.folder
                cluster.stop()
                cluster = None
                if folder.exists():
                    tally.problem(f"{folder} is still there")
                tally.check_ended(())
    assert not tally.problems and not tally.afterwards["wrong"]
