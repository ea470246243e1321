"""The other two parties as party 0 calls them: it asks which processes they have, and tells them which a run gets."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc

from ..engine.config import PARTIES
from ..engine.wire import PartyError, gather
from . import host_pb2 as pb
from .channels import connect
from .config import HostConfig
from .refusals import RunFailed
from .runs import Run


class OtherParties:
    """Connections of party 0 to parties 1 and 2."""

    def __init__(self, host: HostConfig, agreement: str):
        self._caller, self._timeouts, self._agreement = host.caller, host.caller.timeouts, agreement
        self._channels: list[grpc.Channel] = []
        self._connect()

    def _connect(self) -> None:
        self._version = self._caller.identity.version
        connections = [connect(self._caller, rank) for rank in range(1, PARTIES)]
        self._channels += [channel for channel, _ in connections]  # runs may still use earlier ones
        self._stubs = [stub for _, stub in connections]

    def assign(self, run: Run, slot: int, own_generation: str) -> pb.StartRequest:
        """Give a run the processes that are there, if all three are of one generation, or else a new generation.

        Processes of a slot are connected to each other, so one that was restarted is of no use to the other two.

        Raises:
            RunFailed: a party does not answer, or has another version or configuration.
            Cancelled: the client has gone away.
        """
        if self._caller.identity.version != self._version:
            self._connect()  # with the new certificate
        request = pb.SlotRequest(slot=slot, agreement=self._agreement)
        settings = {"timeout": self._timeouts.connect, "wait_for_ready": True}
        states = _gathered(run, [stub.Slot.future(request, **settings) for stub in self._stubs])
        fresh = not own_generation or any(state.generation != own_generation for state in states)
        generation = uuid.uuid4().hex if fresh else own_generation
        members = [pb.Member(client=member.client, run=member.name) for member in run.members]
        digest = run.model.digest
        return pb.StartRequest(members=members, digest=digest, slot=slot, generation=generation, fresh=fresh)

    @contextmanager
    def started(self, run: Run, assignment: pb.StartRequest) -> Iterator[Callable[[], object]]:
        """Tell the others to have their processes ready, and give a function that waits until they have.

        The function raises RunFailed if one of them cannot, and Cancelled if the client has gone away. Of requests that are
        computed together, those whose inputs one of them lacks fail alone.
        """
        # `start` is allowed twice at the other side: once for the client to reach it, once for its process to be ready.
        calls = [stub.Start.future(assignment, timeout=2 * self._timeouts.start) for stub in self._stubs]

        def ready() -> None:
            for rank, started in enumerate(_gathered(run, calls), 1):
                for place in started.absent:
                    run.tell(RunFailed(f"party {rank} did not have this client's inputs in time"), place)

        try:
            yield ready
        finally:
            for call in calls:
                call.cancel()

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            channel.close()


def _gathered(run: Run, calls: Sequence[grpc.Future]) -> list:
    """Return the answers of parties 1 and 2; meanwhile look whether the client is still there."""
    try:
        return gather(calls, meanwhile=run.check)
    except PartyError as failure:
        party, error = f"party {failure.rank + 1}", failure.error
    if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
        raise RunFailed(f"{party} does not answer party 0")
    raise RunFailed(error.details() if party in error.details() else f"{party}: {error.details()}")
