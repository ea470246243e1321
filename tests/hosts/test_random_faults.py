"""Three hosts and their callers, with processes killed and stopped at random: right results or errors, soon, nothing left."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import hosting
import numpy as np
import psutil
import pytest
import random_faults
from hosting import product_model, small_trial
from random_faults import HANGING, INPUT, WEIGHTS, Call, OnPurpose, Tally, is_right, some_input, turning_plan

from cipherdm import CipherDMError
from cipherdm.hosts import PARTY_NAMES, LoopbackHosts, Model, RemoteCluster, load_host
from cipherdm.hosts.store import read_published

pytestmark = [pytest.mark.attack, pytest.mark.slow]

PROGRAM = Path(random_faults.__file__).with_name("turning_client.py")


class Client:
    """A client in a process of its own, which may be killed: another one takes its place then."""

    def __init__(self, file: Path):
        self._file, self.process = file, None

    def start(self) -> None:
        if self.process is None or self.process.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(self._file)], **pipes)
            assert self.process.stdout.readline() == "ready\n"

    def ask(self, seed: int) -> Callable[[Callable], bool]:
        def work(heard: Callable) -> bool:
            with suppress(BrokenPipeError):
                self.process.stdin.write(f"{seed}\n")
            for line in self.process.stdout:
                heard()
                if line != "news\n":
                    outcome, _, message = line.strip().partition(" ")
                    if outcome == "error":
                        raise CipherDMError(message)
                    if outcome not in ("right", "wrong"):
                        raise RuntimeError(line)
                    return outcome == "right"
            if self.process.wait() == -signal.SIGKILL:
                raise OnPurpose
            raise RuntimeError(f"the client's process ended with {self.process.returncode}")

        return work

    def stop(self) -> None:
        self.process.kill()
        with self.process:
            pass


def processes(hosts: LoopbackHosts, client: Client) -> Iterator[tuple[str, int]]:
    """What may be struck: (kind, process id)."""
    yield "client", client.process.pid
    for pid in filter(None, hosts.pids):
        yield "host", pid
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    yield "gate" if any("gate.py" in word for word in child.cmdline()) else "worker", child.pid


def strike(generator: random.Random, hosts: LoopbackHosts, client: Client) -> tuple[str, str, int]:
    """Send a random signal to a random process. Returns the kind of process, the signal's name, and the process id."""
    there = list(processes(hosts, client))
    kind = generator.choice(sorted({kind for kind, _ in there}))
    pid = generator.choice([pid for one, pid in there if one == kind])
    name = generator.choice(["SIGKILL", "SIGSTOP", *(["SIGINT", "SIGUSR1"] if kind == "client" else [])])
    if kind == "host" and name == "SIGKILL":
        hosts.kill(hosts.pids.index(pid))
    else:
        with suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, name))
    return kind, name, pid


def faults_of_files(files) -> list[str]:
    """What is half written on the parties' disks, or cannot be read."""
    found = []
    for name in PARTY_NAMES:
        state = load_host(files[name]).state
        found += map(str, (state / "published").glob(".*"))
        found += [str(folder) for folder in (state / "models").iterdir() if not (folder / "manifest").is_file()]
        for model in ("product", "turning"):
            try:
                for version in read_published(state, model):
                    version.check()
            except CipherDMError as error:
                found.append(str(error))
    return found


def wait_until(ready: Callable[[], bool]) -> bool:
    """Return whether something is so within `HANGING`."""
    deadline = time.monotonic() + HANGING
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.1)
    return ready()


def test_random_faults_of_three_hosts(faults, fault_seed, tmp_path, capsys):
    tally = Tally("three hosts", fault_seed)
    files = small_trial(tmp_path / "trial")
    turning = Model("turning", turning_plan(), {"w": WEIGHTS}, {"x": INPUT}, ("x",))
    with ExitStack() as stack:
        stack.enter_context(tally.printed(capsys))
        stack.callback(tally.check_ended, ())  # once the hosts have ended
        hosts = stack.enter_context(LoopbackHosts(files))
        names = ("alice", "bob", "owner", "operator")
        alice, bob, owner, operator = (stack.enter_context(RemoteCluster(files[name])) for name in names)
        client = Client(files["carol"])
        stack.callback(client.stop)
        owner.register(product_model())
        owner.register(turning)

        def request(cluster: RemoteCluster, x) -> Callable[[Callable], bool]:
            return lambda heard: is_right(cluster.request("turning", {"x": x}, heard).outputs["x"], x)

        def register(heard: Callable) -> bool:
            owner.register(turning, heard)
            return True

        def product(heard: Callable) -> bool:
            x = hosting.some_input(1)
            return bool(
                np.abs(alice.request("product", {"x": x}, heard).outputs["y"] - hosting.WEIGHTS @ x).max() < 1e-3
            )

        def rescue() -> None:
            for _, pid in processes(hosts, client):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)  # one that was stopped would keep its port
            for rank in [rank for rank, pid in enumerate(hosts.pids) if pid is not None]:
                hosts.kill(rank)
            client.process.kill()

        def idle() -> bool:
            return all(not isinstance(state, CipherDMError) and not state[1].requests for state in operator.states())

        begun = time.monotonic()
        request(alice, some_input(random.Random(0)))(lambda *_: None)
        usual = min(10.0, time.monotonic() - begun)  # with the start of processes
        for number in range(faults):
            generator = random.Random(f"{fault_seed}/{number}")
            client.start()
            calls = [
                Call("alice", request(alice, some_input(generator))),
                Call("bob", request(bob, some_input(generator))),
            ]
            calls += [Call("owner", register)] * generator.randrange(2)
            carol = Call("carol", client.ask(generator.randrange(1 << 32)))
            for call in (*calls, carol):
                call.begin()
            time.sleep(generator.uniform(0, 1.5 * usual))
            tally.see(pid for _, pid in processes(hosts, client))
            kind, name, pid = strike(generator, hosts, client)
            for call in (*calls, carol):
                call.struck = time.monotonic()
            tally.fault(f"{name} of a {kind}")
            if (kind, name) == ("client", "SIGSTOP"):
                tally.settle(calls, rescue)
                if not wait_until(idle):
                    tally.problem("the run of a stopped client is not freed")
                os.kill(pid, signal.SIGCONT)
                carol.struck = time.monotonic()
                calls = []
            tally.settle([*calls, carol], rescue)
            if (kind, name) == ("host", "SIGSTOP") and pid in hosts.pids:
                hosts.resume(hosts.pids.index(pid))
            tally.check_ended({pid for _, pid in processes(hosts, client)})  # what a killed host had started
            hosts.start(*(rank for rank, pid in enumerate(hosts.pids) if pid is None))
            # A process that was struck while no run used it is noticed by the next run, which may be the one that fails; and
            # the next one is refused while that one ends.
            again = Call("alice afterwards", lambda _: False)
            deadline = time.monotonic() + HANGING
            while again.outcome != "right":
                if time.monotonic() > deadline:
                    tally.problem(f"the next run does not work: {again.message}")
                    break
                again = Call("alice afterwards", product)
                again.struck = time.monotonic()
                tally.settle([again.begin()], rescue, afterwards=True)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)  # if no run needed it meanwhile
            if not wait_until(lambda: not faults_of_files(files)):
                tally.problem(f"on the disks: {faults_of_files(files)}")
            tally.check_ended({pid for _, pid in processes(hosts, client)})
    assert not tally.problems
