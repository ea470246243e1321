"""Ending a training between two steps when the user or the system asks for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set while the block runs, so that no step is cut in the middle."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals; there, an interrupt falls back to the last checkpoint
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda *_: event.set())
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
