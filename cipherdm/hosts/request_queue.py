"""Requests at one party, from header to the outputs' shares, and the queue in which party 0 gives slots to them."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as Unfinished
from contextlib import contextmanager
from weakref import WeakValueDictionary

from ..errors import CipherDMError
from . import host_pb2 as pb
from .batches import LOOK, Batch, begun
from .config import HostConfig
from .manifest import checked_shares
from .other_parties import OtherParties
from .refusals import Disagreement, RunFailed, TooMuch
from .rows import Pieces
from .runs import Run, Runs
from .store import ModelStore, StoredModel
from .worker import Events, Slots


class Requests:
    """All requests of one party. Party 0 decides when a run is computed, and in which slot, and tells the others.

    One party must decide: if each had a queue of its own, two runs could each hold a slot at one party and wait for
    ever for the other's. `agreement` is what all parties must have alike, see `agreement_of`.
    """

    def __init__(self, host: HostConfig, agreement: str, store: ModelStore, slots: Slots):
        self._host, self._agreement = host, agreement
        self._store, self._slots = store, slots
        self._runs = Runs(host.limits)
        self._queue = Queue(host.limits.runs)
        self._others = OtherParties(host, agreement) if host.rank == 0 else None
        self._open: WeakValueDictionary[str, Batch] = WeakValueDictionary()  # by model's digest, the last one begun
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of requests in hand, computing or waiting."""
        return len(self._runs)

    def close(self) -> None:
        """Close the connections to the other parties."""
        if self._others is not None:
            self._others.close()

    def serve(
        self,
        client: str,
        header: pb.RequestHeader,
        pieces: Iterator[pb.RequestPiece],
        on_end: Callable[[Callable[[], None]], bool],
        uploaded: Callable[[], None],
    ) -> Iterator[pb.RequestEvent]:
        """Receive a client's inputs, have the run computed, and hand out the outputs.

        Args:
            client: common name of the caller.
            header: its request.
            pieces: its shares of the inputs.
            on_end: function that registers another one to call when the call ends; it returns false if that was before.
            uploaded: function to call when the inputs are there.

        Raises:
            Refused, CipherDMError: the request cannot be served, with the reason.
        """
        model = self._model(header)
        with self._runs.admitted(client, header.run) as run:
            if not on_end(run.cancel):
                return
            # Inputs come before a place in the queue: a client that is slow to upload holds no slot meanwhile.
            inputs = self._inputs(pieces, model)
            uploaded()
            run.upload(model, inputs)
            if self._others is None:
                compute = self._as_told
            elif self._host.limits.batch_wait and model.manifest.together.requests:
                compute = self._with_others
            else:
                compute = self._as_scheduler
            for piece in (yield from compute(run)):
                yield pb.RequestEvent(output=piece)

    def generation(self, slot: int, agreement: str) -> str:
        """Return the generation of this party's process in a slot, for party 0, whose agreement must be ours."""
        self._check_agreement(agreement, "party 0 has")
        self._check_slot(slot)
        return self._slots.generation(slot)

    def start(self, request: pb.StartRequest, is_active: Callable[[], bool]) -> pb.Started:
        """Have a run computed as party 0 tells; return when this party's process is ready for it.

        Raises:
            RunFailed: it is not, or there is no such run.
            Cancelled: the run's client has gone away.
        """
        self._check_slot(request.slot)
        timeouts = self._host.caller.timeouts
        if len(request.members) > 1:
            run = begun(request, self._runs, timeouts.connect)
            run.start(self._in_slot(run, request))
        else:
            run = self._alone(request, is_active)
            if run is None:
                return pb.Started()
        try:
            run.prepared.result(timeouts.start)
        except Unfinished:
            raise RunFailed(f"party {self._host.rank} did not get its process ready in time") from None
        return pb.Started(absent=[row for row, member in enumerate(run.members) if member is None])

    def _alone(self, request: pb.StartRequest, is_active: Callable[[], bool]) -> Run | None:
        """Assign a slot to the one run of a start; return it, or None if party 0 has given up."""
        (member,) = request.members or [pb.Member()]
        who, timeouts = f"party {self._host.rank}", self._host.caller.timeouts
        # A client calls all three parties at once: who lets one of them wait would hold a slot meanwhile.
        run = self._runs.find(member.client, member.run, timeouts.connect)
        if run is None:
            raise RunFailed(f"{who} has no such run: its client has not reached it")
        while not run.uploaded.wait(LOOK):
            run.check()
            if not is_active():
                return None
        if run.assignment.done():
            raise RunFailed(f"{who} has begun this run already")
        run.assignment.set_result(request)
        return run

    def _with_others(self, run: Run) -> Events:
        """Join the requests that wait to be computed together, or begin with others to come."""
        with self._lock:
            batch = self._open.get(run.model.digest)
            if batch is None or not batch.add(run):
                batch = Batch(run.client, run.model, [run], self._host.limits.batch_wait)
                self._open[run.model.digest] = batch
                batch.start(self._as_scheduler(batch))
        return (yield from batch.events(run))

    def _as_scheduler(self, run: Run) -> Events:
        """Wait for a slot, tell the others which one it is, and compute with them."""
        with self._queue.place(run) as place:
            told = None
            while not _is_done(place):
                run.check()
                ahead = self._queue.ahead(place)
                if ahead != told:
                    told = ahead
                    yield pb.RequestEvent(waiting=ahead)
            slot = place.result()
            run.close()
            run.check()
            assignment = self._others.assign(run, slot, self._slots.generation(slot))
            # The others start their processes while this party starts its own: the three connect to each other.
            with self._others.started(run, assignment) as ready:
                return (yield from self._compute(run, assignment, ready))

    def _as_told(self, run: Run) -> Events:
        """Wait for party 0's assignment, and compute in its slot."""
        while not _is_done(run.assignment):
            run.check()
        assignment = run.assignment.result()
        if isinstance(assignment, Batch):
            return (yield from assignment.events(run))
        return (yield from self._in_slot(run, assignment))

    def _in_slot(self, run: Run, assignment: pb.StartRequest) -> Events:
        try:
            return (yield from self._compute(run, assignment, lambda: run.prepared.set_result(None)))
        except CipherDMError as error:
            # Party 0 waits for this answer: with the reason its client learns why, and at once.
            if not run.prepared.done():
                run.prepared.set_exception(error)
            raise

    def _compute(self, run: Run, assignment: pb.StartRequest, ready: Callable[[], object]) -> Events:
        """Compute in the assigned slot, once this party's process is there and `ready` has returned."""
        # The slot is free before the outputs are sent, so a client that reads them slowly keeps nobody waiting.
        timeouts = self._host.caller.timeouts
        with self._slots.use(assignment) as worker:
            with run.using(worker, 2 * timeouts.start):  # a client that goes away ends a process that still starts
                worker.wait()
            with run.using(worker, timeouts.run):
                ready()
                return (yield from worker.compute(run.name, run.model, run.inputs, run.calls))

    def _model(self, header: pb.RequestHeader) -> StoredModel:
        self._check_agreement(header.agreement, "the request is for")
        if len(header.run) != 32 or not header.run.isalnum():
            raise CipherDMError("a run is named by 32 letters and digits; make it with uuid4().hex.")
        model = self._store.get(header.model, header.digest)
        if model is None:
            raise CipherDMError(f"party {self._host.rank} has no model {header.model!r}; its owner registers it.")
        if model.digest != header.digest:
            raise Disagreement(f"party {self._host.rank} has another registration of {header.model!r}; ask again.")
        return model

    def _inputs(self, pieces: Iterator[pb.RequestPiece], model: StoredModel) -> Pieces:
        """Return a client's shares: those that the model declares, whole, and nothing else."""
        inputs, size = [], 0
        for piece in checked_shares((message.share for message in pieces), model.manifest.inputs):
            # Counted as they come: a client cannot make a party hold more than its limit, whatever it announces.
            size += piece.ByteSize()
            if size > self._host.limits.input_bytes:
                raise TooMuch(f"the inputs are larger than {self._host.limits.input_bytes} bytes, which is the limit")
            inputs.append(piece)
        return inputs

    def _check_agreement(self, theirs: str, who: str) -> None:
        if theirs != self._agreement:
            raise Disagreement(
                f"party {self._host.rank} has cipherdm, SPU and configuration {self._agreement}, and {who} {theirs}"
            )

    def _check_slot(self, slot: int) -> None:
        if slot >= self._host.limits.runs:
            raise CipherDMError(f"party {self._host.rank} has no slot {slot}.")


def _is_done(future: Future) -> bool:
    """Wait a moment for a future; return whether it has its result."""
    return bool(wait((future,), LOOK).done)


class Queue:
    """Gives slots to runs: first to the client that computes the fewest, and among its equals to who came first.

    One slot of several is kept from a client that has all others, so that nobody waits for one client alone. Only party
    0's queue is used. A run of several clients counts as that of the one who computes the fewest: nobody is held up by others
    who are at their limit.
    """

    def __init__(self, slots: int):
        # A stack, slot 0 on top: the slot used last is taken first, because its processes are there already and idle
        # slots that were never used need none.
        self._free = list(range(slots))[::-1]
        self._most = max(1, slots - 1)  # runs that compute for one client
        self._computing: Counter[str] = Counter()
        self._waiting: dict[Future[int], Run] = {}  # by place, in the order in which they came
        self._lock = threading.Lock()

    @contextmanager
    def place(self, run: Run) -> Iterator[Future[int]]:
        """Take a place in the queue; its result is a slot. Leaving the block gives up both."""
        place: Future[int] = Future()
        with self._lock:
            self._waiting[place] = run
            self._give()
        try:
            yield place
        finally:
            with self._lock:
                if place.done():
                    self._free.append(place.result())
                    self._computing[run.client] -= 1
                else:
                    del self._waiting[place]
                self._give()

    def ahead(self, place: Future[int]) -> int:
        """Return how many wait before a place."""
        with self._lock:
            self._give()  # others may have joined a run that waits
            return self._order().index(place) if place in self._waiting else 0

    def _order(self) -> list[Future[int]]:
        """Return the places in the order in which they will get slots, if nobody else comes."""
        turns, places = self._computing.copy(), {}
        for place, run in self._waiting.items():
            client = _least(run, turns)
            places[place] = turns[client]
            turns[client] += 1
        return sorted(places, key=places.get)

    def _give(self) -> None:
        for place in self._order():
            client = _least(self._waiting[place], self._computing)
            if self._free and self._computing[client] < self._most:
                self._waiting.pop(place).client = client
                self._computing[client] += 1
                place.set_result(self._free.pop())


def _least(run: Run, computing: Counter[str]) -> str:
    """Return the client of a run that computes the fewest others."""
    return min((member.client for member in run.members), key=lambda client: computing[client], default=run.client)
