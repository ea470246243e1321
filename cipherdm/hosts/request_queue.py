"""A client's request at one party, from its header to the outputs' shares."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import TimeoutError as Unfinished

from ..engine import party_pb2 as engine_pb
from ..errors import CipherDMError
from . import host_pb2 as pb
from .config import HostConfig
from .errors import Disagreement, RunFailed, TooMuch
from .manifest import checked_shares
from .peers import Peers
from .runs import Assignment, Queue, Run, Runs
from .store import ModelStore, StoredModel
from .worker import Slots

Pieces = list[engine_pb.SharePiece]

Events = Generator[pb.RequestEvent, None, Pieces]
"""Events for the client, and in the end this party's shares of the outputs."""

_LOOK = 0.2  # seconds after which whoever waits looks whether its client is still there


class Requests:
    """All requests of one party. Party 0 decides when a run is computed, and in which slot; the others are told by it.

    Args:
        host: this party.
        agreement: what the other parties must have alike, versions included.
        store: the registered models.
        slots: the processes.
    """

    def __init__(self, host: HostConfig, agreement: str, store: ModelStore, slots: Slots):
        self._host, self._agreement = host, agreement
        self._store, self._slots = store, slots
        self._runs = Runs(host.limits)
        self._queue = Queue(host.limits.runs)
        self._peers = Peers(host, agreement) if host.rank == 0 else None

    def __len__(self) -> int:
        """How many are in hand, computing or waiting."""
        return len(self._runs)

    def close(self) -> None:
        """Close the connections to the other parties."""
        if self._peers is not None:
            self._peers.close()

    def serve(
        self,
        client: str,
        header: pb.RequestHeader,
        pieces: Iterator[pb.RequestPiece],
        on_end: Callable[[Callable[[], None]], bool],
        uploaded: Callable[[], None],
    ) -> Iterator[pb.RequestEvent]:
        """Take the inputs in, have the run computed, and hand the outputs out.

        Args:
            client: the common name of whoever asks.
            header: what it asks for.
            pieces: its shares of the inputs.
            on_end: registers what to do when the call ends; false if it has ended.
            uploaded: called when the inputs are there.

        Raises:
            Refused, CipherDMError: why this cannot be done.
        """
        model = self._model(header)
        with self._runs.admitted(client, header.run) as run:
            if not on_end(run.cancel):
                return
            inputs = self._inputs(pieces, model)
            uploaded()
            run.uploaded.set()
            place = self._as_told if self._peers is None else self._as_scheduler
            for piece in (yield from place(run, model, inputs)):
                yield pb.RequestEvent(output=piece)

    def generation(self, slot: int, agreement: str) -> str:
        """Of this party's process in a slot, for party 0, whose agreement must be ours."""
        self._check_agreement(agreement, "party 0 has")
        self._check_slot(slot)
        return self._slots.generation(slot)

    def start(self, request: pb.StartRequest, is_active: Callable[[], bool]) -> None:
        """Party 0's word that a run is to be computed; returns when this party's process is ready for it.

        Raises:
            RunFailed: it is not, or there is no such run.
            Cancelled: its client has gone away.
        """
        self._check_slot(request.slot)
        who, timeout = f"party {self._host.rank}", self._host.caller.timeouts.start
        run = self._runs.find(request.client, request.run, timeout)
        if run is None:
            raise RunFailed(f"{who} has no such run: its client has not reached it")
        while not run.uploaded.wait(_LOOK):
            run.check()
            if not is_active():
                return
        if run.assignment.done():
            raise RunFailed(f"{who} has begun this run already")
        run.assignment.set_result(Assignment(request.slot, request.generation, request.fresh))
        try:
            run.prepared.result(timeout)
        except Unfinished:
            raise RunFailed(f"{who} did not get its process ready in time") from None

    def _as_scheduler(self, run: Run, model: StoredModel, inputs: Pieces) -> Events:
        with self._queue.place() as place:
            told = None
            while (slot := place.wait(_LOOK)) is None:
                run.check()
                ahead = self._queue.ahead(place)
                if ahead != told:
                    told = ahead
                    yield pb.RequestEvent(waiting=ahead)
            assignment = self._peers.assign(run, slot, self._slots.generation(slot))
            with self._peers.started(run, assignment) as others:
                return (yield from self._compute(run, model, inputs, assignment, others.wait))

    def _as_told(self, run: Run, model: StoredModel, inputs: Pieces) -> Events:
        while True:
            run.check()
            try:
                assignment = run.assignment.result(_LOOK)
                break
            except Unfinished:
                continue
        try:
            return (yield from self._compute(run, model, inputs, assignment, lambda: run.prepared.set_result(None)))
        except CipherDMError as error:
            if not run.prepared.done():
                run.prepared.set_exception(error)
            raise

    def _compute(
        self, run: Run, model: StoredModel, inputs: Pieces, assignment: Assignment, ready: Callable[[], None]
    ) -> Events:
        """Compute in the assigned slot, once this party's process is there and `ready` has returned."""
        outputs: Pieces = []
        labels = [call.label for call in model.manifest.calls]
        with (
            self._slots.use(assignment.slot, assignment.generation, assignment.fresh) as worker,
            run.using(worker),
        ):
            ready()
            for item in worker.compute(run.name, model, inputs):
                if isinstance(item, list):
                    outputs = item
                else:
                    progress = pb.Progress(done=item, label=labels[item.index], total=len(labels))
                    yield pb.RequestEvent(progress=progress)
        return outputs

    def _model(self, header: pb.RequestHeader) -> StoredModel:
        self._check_agreement(header.agreement, "the request is for")
        if len(header.run) != 32 or not header.run.isalnum():
            raise CipherDMError("a run is named by 32 letters and digits; make it with uuid4().hex.")
        model = self._store.get(header.model)
        if model is None:
            raise CipherDMError(f"party {self._host.rank} has no model {header.model!r}; its owner registers it.")
        if model.digest != header.digest:
            raise Disagreement(f"party {self._host.rank} has another registration of {header.model!r}; ask again.")
        return model

    def _inputs(self, pieces: Iterator[pb.RequestPiece], model: StoredModel) -> Pieces:
        """A client's shares: those that the model declares, whole, and nothing else."""
        inputs: Pieces = []
        size = 0
        for piece in checked_shares((message.share for message in pieces), model.manifest.inputs):
            size += len(piece.chunk)
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
