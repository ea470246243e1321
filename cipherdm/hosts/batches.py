"""Requests of several clients that are computed in one run. Each client still gets its own row alone.

The parties learn which requests were computed together. A client learns from the costs and times that it gets whether it was
alone, and neither with whom nor with how many: a run that is not of one has the rows of all that there may be.
"""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty

from ..engine.party_pb2 import SharePiece
from . import host_pb2 as pb
from .rows import Pieces, apart, joined
from .runs import Run, Runs
from .store import StoredModel
from .worker import Calls, Events

_LOOK = 0.2  # seconds between two looks at whether a client is still there


class Batch(Run):
    """One run for several requests of a model, computed in a thread of its own, so no client's pace holds up another.

    It ends when all its clients have gone away. One that goes before `close` leaves no row; the row of one that goes later is
    computed and dropped.

    Args:
        client: who counts as having the slot; the first one that asked.
        model: model that all ask for.
        wait: seconds that `close` waits for others, from now on.
    """

    def __init__(self, client: str, model: StoredModel, wait: float = 0.0):
        super().__init__(client, uuid.uuid4().hex)
        self.model = model
        self._until = time.monotonic() + wait
        self._rows: list[Run | None] = []
        self._there: set[Run] = set()
        self._closed = False
        self._changed = threading.Condition()

    def add(self, run: Run | None) -> bool:
        """Give a request a row, or None for one whose inputs this party lacks; return false if it is too late or too full."""
        with self._changed:
            if self._closed or self._full:
                return False
            self._rows.append(run)
            if run is not None:
                self._there.add(run)
            self._changed.notify_all()
        if run is not None:
            run.on_end(partial(self._leave, run))
        return True

    def close(self) -> None:
        """Wait for others as long as that was to be, unless all rows are taken, and let nobody join any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._full, self._until - time.monotonic())
            self._closed = True

    @property
    def _full(self) -> bool:
        return len(self._rows) == self.model.manifest.together.requests

    def _leave(self, run: Run) -> None:
        with self._changed:
            self._there.discard(run)
            if not self._closed:
                self._rows.remove(run)
            if not self._there:
                self._closed = True
                self.cancel()
            self._changed.notify_all()

    @property
    def members(self) -> Sequence[Run | None]:
        """Requests by row, once it is closed."""
        return self._rows

    @property
    def calls(self) -> Calls:
        """What is computed: for one request what it would be otherwise, as it costs less."""
        return self.model.manifest.together.calls if len(self._rows) > 1 else super().calls

    @property
    def inputs(self) -> Iterator[SharePiece] | Pieces:
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
            for run, pieces in zip(self._rows, rows, strict=False):  # the rest are rows of nobody
                if run is not None:
                    run.told.put(pieces)
        except Exception as error:  # whatever it is, those who wait must not wait for ever
            self._tell(error)

    def _followed(self, computing: Events) -> Pieces:
        while True:
            try:
                event = next(computing)
            except StopIteration as end:
                return end.value
            self._tell(event)

    def _tell(self, what: pb.RequestEvent | Exception) -> None:
        with self._changed:
            told = [run for run in self._rows if run is not None]
        for run in told:
            run.told.put(what)

    def events(self, run: Run) -> Events:
        """Yield what a row is told; return the shares of its outputs, or raise the error with which all or this one fail."""
        while True:
            run.check()
            with suppress(Empty):
                what = run.told.get(timeout=_LOOK)
                if isinstance(what, Exception):
                    raise what
                if isinstance(what, list):
                    return what
                yield what


def begun(request: pb.StartRequest, runs: Runs, timeout: float) -> Batch | None:
    """Return what party 0 has put together, or None if none of it is here.

    A request is left out if its inputs for this model are not here within the timeout, which is one for all of them.
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
        return None
    batch = Batch("", there[0].model)
    for run in rows:
        batch.add(run)
    batch.close()
    for run in there:
        run.assignment.set_result(batch)
    return batch
