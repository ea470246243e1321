"""The requests that a party has in hand: who may have how many, which wait, and which has which slot."""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from .config import Limits
from .errors import Cancelled, TooMuch
from .worker import Worker


@dataclass(frozen=True)
class Assignment:
    """Which processes compute a run: a slot, and the generation that is there or, if `fresh`, is to be started."""

    slot: int
    generation: str
    fresh: bool


class Run:
    """One request of one client. Its client's name is part of its identity, so that nobody else can mean it."""

    def __init__(self, client: str, name: str):
        self.client, self.name = client, name
        self.uploaded = threading.Event()
        self.assignment: Future[Assignment] = Future()
        self.prepared: Future[None] = Future()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def cancel(self) -> None:
        """The client has gone away: end what computes for it, from whatever thread this is told."""
        self._cancelled.set()
        with self._lock:
            if self._worker is not None:
                self._worker.kill()

    def check(self) -> None:
        """Raise Cancelled if the client has gone away."""
        if self._cancelled.is_set():
            raise Cancelled("the client has gone away")

    @contextmanager
    def using(self, worker: Worker) -> Iterator[None]:
        """While this run has a worker, `cancel` kills it."""
        with self._lock:
            self._worker = worker
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._worker = None


class Runs:
    """All requests of a party, within its limits."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._changed = threading.Condition()
        self._runs: dict[tuple[str, str], Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    @contextmanager
    def admitted(self, client: str, name: str) -> Iterator[Run]:
        """A new run of a client, in hand until the block is left.

        Raises:
            TooMuch: there are too many, of this client or of all, or one of this name.
        """
        run = Run(client, name)
        with self._changed:
            of_client = sum(other.client == client for other in self._runs.values())
            if of_client >= self._limits.runs_per_client:
                raise TooMuch(f"{client} has {of_client} runs in hand, which is the limit; wait for one to end")
            if len(self._runs) >= self._limits.runs + self._limits.queue:
                raise TooMuch(f"{len(self._runs)} runs are in hand, which is the limit; try again later")
            if (client, name) in self._runs:
                raise TooMuch("there is such a run already; name each anew")
            self._runs[client, name] = run
            self._changed.notify_all()
        try:
            yield run
        finally:
            with self._changed:
                del self._runs[client, name]

    def find(self, client: str, name: str, timeout: float) -> Run | None:
        """The run of this name, waiting for it if need be."""
        with self._changed:
            self._changed.wait_for(lambda: (client, name) in self._runs, timeout)
            return self._runs.get((client, name))


class Queue:
    """Gives slots to runs in the order in which they came. Party 0 has the only one."""

    def __init__(self, slots: int):
        self._free = list(range(slots))[::-1]  # the last one used is taken first, since its processes are there
        self._waiting: deque[Place] = deque()
        self.changed = threading.Condition()

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """A place at the end of the queue. Leaving the block gives it up, and the slot that came of it."""
        place = Place(self)
        with self.changed:
            self._waiting.append(place)
            self._give()
        try:
            yield place
        finally:
            with self.changed:
                if place.slot is None:
                    self._waiting.remove(place)
                else:
                    self._free.append(place.slot)
                self._give()

    def ahead(self, place: "Place") -> int:
        """How many wait before a place."""
        with self.changed:
            return self._waiting.index(place) if place in self._waiting else 0

    def _give(self) -> None:
        while self._free and self._waiting:
            self._waiting.popleft().slot = self._free.pop()
        self.changed.notify_all()


class Place:
    """A place in the queue, and in the end a slot."""

    def __init__(self, queue: Queue):
        self._queue = queue
        self.slot: int | None = None

    def wait(self, timeout: float) -> int | None:
        """The slot, or None if there is none in this time."""
        with self._queue.changed:
            self._queue.changed.wait_for(lambda: self.slot is not None, timeout)
            return self.slot
