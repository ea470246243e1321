"""Common parts of the tests of random faults: calls whose ends are noted, and the count of how they ended."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from cipherdm import CipherDMError
from cipherdm.engine import Node, Plan, Spec, compile_plan

SOON = 15.0  # seconds in which a call has news, or its end, after a fault
HANGING = 2 * SOON  # seconds after which it counts as hanging, on a machine that may be busy with other things

CALLS = 200
WEIGHTS = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0].astype(np.float32)
INPUT = Spec((8, 4))


def turned(x: np.ndarray) -> np.ndarray:
    """The result of `turning_plan` in plaintext: it depends on every number of the input and of the weights."""
    return np.linalg.matrix_power(WEIGHTS.astype(np.float64), CALLS) @ x


def turning_plan() -> Plan:
    """A plan of some seconds: x = W x, many times over, where W is orthogonal."""
    nodes = [Node("turn", jnp.matmul, ("w", "x"), ("x",))] * CALLS
    return compile_plan(nodes, {"w": Spec.of(WEIGHTS), "x": INPUT}, ("x",))


def is_right(result: np.ndarray, x: np.ndarray) -> bool:
    """Return whether a result is that of plaintext, but for the rounding of so many products."""
    return bool(np.abs(result - turned(x)).max() < 0.1)


def some_input(generator: random.Random) -> np.ndarray:
    """Return float32 [8, 4]."""
    return np.random.default_rng(generator.randrange(1 << 32)).uniform(-4, 4, INPUT.shape).astype(np.float32)


class OnPurpose(Exception):
    """Exception that a caller's `progress` raises."""


class Call:
    """One call: `work(heard)` returns whether its result is right, and calls `heard` for all news of it.

    `outcome` becomes "right", "wrong", "error" for an exception of ours or one that was raised on purpose, or another one's
    name. `silence` is the longest time without news, or without the end, after the fault at time `struck`.
    """

    def __init__(self, who: str, work: Callable[[Callable], bool]):
        self.who, self._work = who, work
        self.outcome, self.message, self.silence, self.struck = "", "", 0.0, float("inf")
        self._last = time.monotonic()

    def __call__(self) -> None:
        """Do the work, in this thread."""
        try:
            outcome = "right" if self._work(self.heard) else "wrong"
        except (CipherDMError, OnPurpose, KeyboardInterrupt) as error:
            outcome, self.message = "error", f"{type(error).__name__}: {error}"
        except BaseException as error:
            outcome = self.message = f"{type(error).__name__}: {error}"
        self.heard()
        self.outcome = self.outcome or outcome  # or it was given up meanwhile

    def begin(self) -> "Call":
        """Do the work in a thread of its own."""
        threading.Thread(target=self, daemon=True).start()
        return self

    def heard(self, *_) -> None:
        """Note that there are news."""
        self.silence, self._last = max(self.silence, self.waited), time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since the last news, or since the fault if that is less."""
        return time.monotonic() - max(self._last, self.struck) if self.struck < float("inf") else 0.0


class Tally:
    """Count of faults, of how the calls ended that were in hand, and of how the first runs afterwards did."""

    def __init__(self, what: str, seed: int):
        self._what, self._seed = what, seed
        self.faults, self.outcomes, self.afterwards = Counter(), Counter(), Counter()
        self.problems, self.waits, self.latest, self._seen = [], [0.0], "none", set()

    def fault(self, kind: str) -> None:
        """Count a fault."""
        self.latest = kind
        self.faults[kind] += 1

    @contextmanager
    def printed(self, capsys: pytest.CaptureFixture) -> Iterator[None]:
        """Print all of it in the end, however that comes."""
        try:
            yield
        finally:
            with capsys.disabled():
                print(f"\n{self}")

    def see(self, pids: Iterable[int]) -> None:
        """Remember processes that must end."""
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self._seen.add(psutil.Process(pid))

    def settle(self, calls: Sequence[Call], rescue: Callable[[], None], *, afterwards: bool = False) -> None:
        """Wait until all calls have ended. One without news for too long hangs; then `rescue` ends what it waits for."""
        while waiting := [call for call in calls if not call.outcome]:
            for call in waiting:
                if call.waited > HANGING:
                    call.heard()
                    call.outcome = "hang"
                    rescue()
            time.sleep(0.02)
        for call in calls:
            (self.afterwards if afterwards else self.outcomes)[call.outcome] += 1
            self.waits.append(call.silence)
            if call.outcome not in ("right", "error"):
                self.problem(f"{call.who}: {call.outcome} {call.message}")

    def problem(self, text: str) -> None:
        """Note what must not be."""
        self.problems.append(f"fault {self.faults.total()}, {self.latest}: {text}")

    def check_ended(self, current: Collection[int]) -> None:
        """Note processes that were seen, are not among the current ones, and still run after `HANGING`."""
        deadline = time.monotonic() + HANGING
        while left := [text for process in self._seen if process.pid not in current and (text := _running(process))]:
            if time.monotonic() > deadline:
                self.problem(f"still running: {left}")
                break
            time.sleep(0.1)

    def __str__(self) -> str:
        def listed(counter: Counter) -> str:
            return ", ".join(f"{count} {name}" for name, count in counter.items())

        both, late = self.outcomes + self.afterwards, sum(wait > SOON for wait in self.waits)
        return "\n".join(
            (
                f"{self._what}: {self.faults.total()} faults, --fault-seed {self._seed}: {listed(self.faults)}",
                f"calls in hand: {listed(self.outcomes)}",
                f"next runs: {listed(self.afterwards)}",
                f"{both['hang']} hangs, {both['wrong']} wrong; longest wait {max(self.waits):.1f} s, {late} above {SOON:g} s",
                *self.problems,
            )
        )


def _running(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.pid}, {process.status()}: {' '.join(process.cmdline())}"
    return ""
