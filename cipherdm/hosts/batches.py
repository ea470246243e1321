"""Requests of several clients that are computed in one run, of which each client gets its own row alone.

SECURITY.md ("Requests computed together") says what parties and clients learn by it, and whom clients have to trust.
"""

import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue

from ..engine.party_pb2 import SharePiece
from . import host_pb2 as pb
from .refusals import RunFailed
from .rows import Pieces, apart, joined
from .runs import Run, Runs
from .store import StoredModel
from .worker import Calls, Events

# Seconds between two looks at whether a client is still there. gRPC tells of its end in another thread, which cannot
# interrupt a wait; a place in the queue, or in a run, is given up this much later at most.
LOOK = 0.2


class Batch(Run):
    """One run for several requests of a model, computed in a thread of its own, so no client's pace holds up another.

    It ends when all its clients have gone away. A request whose client goes before `close` leaves no row; the row of one that
    goes later is computed and dropped.

    Args:
        client: who counts as having the slot, see `Queue`.
        model: model that all ask for.
        members: requests by row; None for one whose inputs this party lacks.
        wait: seconds from now that `close` waits for others; with 0 nobody joins.
    """

    def __init__(self, client: str, model: StoredModel, members: Iterable[Run | None], wait: float = 0.0):
        super().__init__(client, uuid.uuid4().hex)
        self.model = model
        self._rows = list(members)
        self._told = {run: SimpleQueue() for run in self._rows if run is not None}  # for those who are still there
        self._until, self._closed = time.monotonic() + wait, not wait
        self._changed = threading.Condition()

    def add(self, run: Run) -> bool:
        """Give a request a row; return false if it is too late or there is none left."""
        with self._changed:
            if self._closed or self._full:
                return False
            self._rows.append(run)
            self._told[run] = SimpleQueue()
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Wait for others as long as that was to be, unless all rows are taken, and let nobody join any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._full, self._until - time.monotonic())
            self._closed = True

    @property
    def _full(self) -> bool:
        return len(self._rows) == self.model.manifest.together.requests

    @property
    def members(self) -> list[Run | None]:
        """Requests by row, which stay what they are once it is closed."""
        return self._rows

    @property
    def calls(self) -> Calls:
        """What is computed: for one request what it would be otherwise, as it costs less."""
        return self.model.manifest.together.calls if len(self._rows) > 1 else super().calls

    @property
    def inputs(self) -> Iterable[SharePiece]:
        """This party's shares of all inputs."""
        inputs = [None if run is None else run.brought for run in self._rows]
        return joined(self.model.manifest, inputs) if len(inputs) > 1 else inputs[0]

    def start(self, computing: Events) -> None:
        """Compute in a thread, and tell all rows what comes, and each its outputs alone or why there are none."""
        threading.Thread(target=self._compute, args=(computing,), daemon=True).start()

    def _compute(self, computing: Events) -> None:
        try:
            outputs = self._followed(computing)
            rows = apart(outputs, self.model.manifest.together.requests) if len(self._rows) > 1 else [outputs]
            for row, pieces in enumerate(rows[: len(self._rows)]):  # the others are nobody's
                self.tell(pieces, row)
        except Exception as error:  # whatever it is, those who wait must not wait for ever
            self.tell(error)

    def _followed(self, computing: Events) -> Pieces:
        while True:
            try:
                event = next(computing)
            except StopIteration as end:
                return end.value
            self.tell(event)

    def tell(self, what: pb.RequestEvent | Pieces | Exception, row: int | None = None) -> None:
        """Tell one row, or all, an event, what it is computed to be, or why it is not."""
        with self._changed:
            for run in self._rows if row is None else self._rows[row : row + 1]:
                if run in self._told:
                    self._told[run].put(what)

    def events(self, run: Run) -> Events:
        """Yield what a row is told; return the shares of its outputs, or raise the error with which all or this one fail."""
        told = self._told[run]
        try:
            while True:
                run.check()
                with suppress(Empty):
                    what = told.get(timeout=LOOK)
                    if isinstance(what, Exception):
                        raise what
                    if isinstance(what, list):
                        return what
                    yield what
        finally:
            self._leave(run)

    def _leave(self, run: Run) -> None:
        with self._changed:
            del self._told[run]
            # Once it is closed all three parties count its rows alike, and none may move.
            if not self._closed:
                self._rows.remove(run)
            if not self._told:
                self._closed = True
                self.cancel()
            self._changed.notify_all()


def begun(request: pb.StartRequest, runs: Runs, timeout: float) -> Batch:
    """Return what party 0 has put together. The timeout in seconds is one for all its requests.

    A request whose inputs for this model are not here by then has None in its row.

    Raises:
        RunFailed: none of them is here.
    """
    until = time.monotonic() + timeout
    rows: list[Run | None] = []
    for member in request.members:
        run = runs.find(member.client, member.run, max(0.0, until - time.monotonic()))
        here = run is not None and run.uploaded.wait(max(0.0, until - time.monotonic()))
        fits = here and run.model.digest == request.digest and not run.assignment.done()
        rows.append(run if fits else None)
    there = [run for run in rows if run is not None]
    if not there:
        raise RunFailed("there are no such runs: their clients have not reached this party")
    batch = Batch("", there[0].model, rows)
    for run in there:
        run.assignment.set_result(batch)
    return batch
