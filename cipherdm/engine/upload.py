"""Upload to three parties at the pace of the slowest, so that a large model is never shared as a whole in memory."""

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import grpc

from .wire import gather

_AHEAD = 4  # messages that may wait for a party: enough to hide its pauses, and few enough to bound the memory
_LOOK = 0.2  # seconds after which to look whether another party has failed while one takes nothing
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
        for parts in chain(messages, [(_END,) * len(calls)]):
            for part, waiting in zip(parts, queues, strict=True):
                # A party that is done without an error has all its messages; a slower one still needs its last.
                while not any(future.done() and future.exception() for future in futures):
                    try:
                        waiting.put(part, timeout=_LOOK)
                        break
                    except queue.Full:
                        continue
                else:
                    return gather(futures)
        return gather(futures)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
