"""Runs that a party has in hand, waiting or computing, within the limits of each client and of all."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from ..engine.party_pb2 import SharePiece
from . import host_pb2 as pb
from .config import Limits
from .refusals import Cancelled, Refused, RunFailed, TooMuch
from .rows import Pieces
from .store import StoredModel
from .worker import Calls, Worker

_ENDING = 5.0  # seconds that a client's next run waits for its last one to be gone


class Run:
    """One request, identified by client and name, so no other client can refer to it."""

    def __init__(self, client: str, name: str):
        self.client, self.name = client, name
        self.model: StoredModel | None = None
        self.brought: Pieces = []  # a client's shares of its inputs
        self.uploaded = threading.Event()
        self.assignment: Future[pb.StartRequest | Run] = Future()  # or the batch of which this is a row
        self.prepared: Future[None] = Future()
        self._why: Refused | None = None
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def upload(self, model: StoredModel, inputs: Pieces) -> None:
        """Note that a client's inputs for a model are there."""
        self.model, self.brought = model, inputs
        self.uploaded.set()

    @property
    def inputs(self) -> Iterable[SharePiece]:
        """Shares that it is computed on."""
        return self.brought

    @property
    def calls(self) -> Calls:
        """What is computed."""
        return self.model.manifest.calls

    @property
    def members(self) -> "Sequence[Run | None]":
        """Requests that are computed in this run: itself."""
        return (self,)

    def close(self) -> None:
        """Let nobody join any more."""

    def cancel(self) -> None:
        """Note that the client has gone away, and kill the process that computes for it. Any thread may call this."""
        self._end(Cancelled("the client has gone away"))

    def _end(self, why: Refused) -> None:
        # The reason comes first: `using` looks at it after it has set the worker, so one of the two sees the other.
        self._why = self._why or why
        with self._lock:
            if self._worker is not None:
                self._worker.kill()

    def check(self) -> None:
        """Raise Cancelled if the client has gone away, or RunFailed if the time is over."""
        if self._why is not None:
            raise self._why

    @contextmanager
    def using(self, worker: Worker, seconds: float) -> Iterator[None]:
        """Let `cancel` kill this worker while the block lasts, and kill it after so many seconds."""
        with self._lock:
            self._worker = worker
        late = RunFailed(f"the run took longer than {seconds:g} seconds, which is [timeouts] run")
        timer = threading.Timer(seconds, self._end, (late,))
        timer.daemon = True
        timer.start()
        try:
            self.check()
            yield
        except RunFailed:
            self.check()  # a process that was killed here fails for this reason
            raise
        finally:
            timer.cancel()
            with self._lock:
                self._worker = None


class Runs:
    """All runs of a party, within its limits."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._changed = threading.Condition()
        self._runs: dict[tuple[str, str], Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    @contextmanager
    def admitted(self, client: str, name: str) -> Iterator[Run]:
        """Have a new run of a client in hand until the block is left.

        Raises:
            TooMuch: there are too many, of this client or of all, or there is one of this name.
        """
        run = Run(client, name)
        with self._changed:
            # The client's own limit is checked first: who has used it up is told so even when the party is full.
            most = self._limits.runs_per_client
            # A run that this client has just left may still be ending.
            if not self._changed.wait_for(lambda: self._of(client) < most, _ENDING):
                raise TooMuch(f"{client} has {most} runs in hand, which is the limit; wait for one to end")
            # Each run in hand holds one of the server's threads, see `roles`.
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
                self._changed.notify_all()

    def _of(self, client: str) -> int:
        return sum(run.client == client for run in self._runs.values())

    def find(self, client: str, name: str, timeout: float) -> Run | None:
        """Return the run of this name, or None if it has not come within the timeout.

        A client calls the three parties at once, so party 0 may ask for a run before its client has reached this party.
        """
        with self._changed:
            self._changed.wait_for(lambda: (client, name) in self._runs, timeout)
            return self._runs.get((client, name))
