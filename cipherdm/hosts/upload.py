"""Upload to three parties at the pace of the slowest, so that a large model is never shared as a whole in memory."""

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence

import grpc

from ..engine.wire import gather

_AHEAD = 4  # messages that may wait for a party: enough to hide its pauses, and few enough to bound the memory
_LOOK = 0.2  # seconds after which to look whether a party that takes nothing has failed
_END = None


def spread(messages: Iterable[Sequence], calls: Sequence[Callable[[Iterator], grpc.Future]]) -> list:
    """Send each party its part of every message, and return the parties' answers.

    Args:
        messages: parts of each message, by rank.
        calls: functions that begin a party's call with an iterator of messages, by rank.

    Raises:
        PartyError: the first party that fails, and why; the other calls are cancelled.
    """
    queues = [queue.Queue(_AHEAD) for _ in calls]
    futures = [call(iter(waiting.get, _END)) for call, waiting in zip(calls, queues, strict=True)]
    try:
        for parts in _then_end(messages, len(calls)):
            for part, waiting in zip(parts, queues, strict=True):
                _put(part, waiting, futures)
    except _Ended:
        pass  # `gather` finds which one, and why
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
