"""The other two parties as party 0 calls them: it asks which processes they have, and tells them which a run gets."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from ..engine.config import PARTIES
from . import host_pb2 as pb
from .channels import connect
from .config import HostConfig
from .refusals import RunFailed
from .runs import Assignment, Run

_LOOK = 0.005  # seconds between two looks at calls; short, because each run waits for them before it computes


class OtherParties:
    """Connections of party 0 to the other two."""

    def __init__(self, host: HostConfig, agreement: str):
        self._timeouts, self._agreement = host.caller.timeouts, agreement
        self._channels, self._stubs = {}, {}
        for rank in range(PARTIES):
            if rank != host.rank:
                self._channels[rank], self._stubs[rank] = connect(host.caller, rank)

    def assign(self, run: Run, slot: int, own_generation: str) -> Assignment:
        """Return the processes that are there, if all three are of one generation, or else a new generation.

        Processes of a slot are connected to each other, so one that was restarted is of no use to the other two.

        Raises:
            RunFailed: a party does not answer, or has another version or configuration.
            Cancelled: the client has gone away.
        """
        request = pb.SlotRequest(slot=slot, agreement=self._agreement)
        calls = {
            rank: stub.Slot.future(request, timeout=self._timeouts.connect, wait_for_ready=True)
            for rank, stub in self._stubs.items()
        }
        generations = {own_generation} | {state.generation for state in _gathered(run, calls).values()}
        if len(generations) == 1 and own_generation:
            return Assignment(slot, own_generation, fresh=False)
        return Assignment(slot, uuid.uuid4().hex, fresh=True)

    @contextmanager
    def started(self, run: Run, assignment: Assignment) -> Iterator[Callable[[], None]]:
        """Tell the others to have their processes ready, and give a function that waits until they have.

        The function raises RunFailed if one of them cannot, and Cancelled if the client has gone away.
        """
        request = pb.StartRequest(
            client=run.client,
            run=run.name,
            slot=assignment.slot,
            generation=assignment.generation,
            fresh=assignment.fresh,
        )
        # `start` is allowed twice at the other side: once for the client to reach it, once for its process to be ready.
        calls = {
            rank: stub.Start.future(request, timeout=2 * self._timeouts.start) for rank, stub in self._stubs.items()
        }
        try:
            yield lambda: _gathered(run, calls)
        finally:
            for call in calls.values():
                call.cancel()

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()


def _gathered(run: Run, calls: dict[int, grpc.Future]) -> dict[int, object]:
    """Return the results by rank; meanwhile look whether the client is still there."""
    waiting = dict(calls)
    while waiting:
        run.check()
        for rank, call in list(waiting.items()):
            if call.done():
                del waiting[rank]
                error = call.exception()
                if error is not None:
                    for other in calls.values():
                        other.cancel()
                    raise RunFailed(_why(rank, error))
        time.sleep(_LOOK)
    return {rank: call.result() for rank, call in calls.items()}


def _why(rank: int, error: grpc.RpcError) -> str:
    if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
        return f"party {rank} does not answer party 0"
    return error.details() if f"party {rank}" in error.details() else f"party {rank}: {error.details()}"
