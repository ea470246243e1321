"""One upload to three parties at the pace of the slowest, so that a large model is never shared as a whole in memory."""

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence

import grpc

from ..engine.wire import gather

_AHEAD = 4  # messages that may wait for a party

_LOOK = 0.2  # seconds after which to look whether a party that takes nothing has failed

_END = None


def spread(messages: Iterable[Sequence], calls: Sequence[Callable[[Iterator], grpc.Future]]) -> list:
    """Send the messages' parts to the parties, one each, and return what each party answers.

    Args:
        messages: for each message its parts, by rank.
        calls: for each party what begins a call with an iterator of messages.

    Raises:
        PartyError: for the first party that fails; the other calls are cancelled.
    """
    queues = [queue.Queue(_AHEAD) for _ in calls]
    futures = [call(iter(waiting.get, _END)) for call, waiting in zip(calls, queues, strict=True)]
    try:
        for parts in _then_end(messages, len(calls)):
            for part, waiting in zip(parts, queues, strict=True):
                _put(part, waiting, futures)
    except _Ended:
        pass  # which one, and why, is what gather finds
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return gather(futures)


class _Ended(Exception):
    """A call has ended before its messages."""


def _put(part: object, waiting: queue.Queue, futures: Sequence[grpc.Future]) -> None:
    while True:
        if any(future.done() for future in futures):
            raise _Ended
        try:
            return waiting.put(part, timeout=_LOOK)
        except queue.Full:
            continue


def _then_end(messages: Iterable[Sequence], count: int) -> Iterator[Sequence]:
    yield from messages
    yield (_END,) * count
