"""Turns of threads at a cluster's parties, and the end of a cluster whose parties no longer agree."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import CipherDMError
from .wire import PartyError


class Turn:
    """Right to use the three parties of a cluster, which one thread has at a time; other threads wait for it.

    Each party learns by itself that a call was broken off, so the parties stop at different places, and their next messages
    would not fit together. A call that does not end well therefore ends the cluster.

    Args:
        fail: function of the cluster that returns what to raise after the error of a party.
        end: function of the cluster that ends the parties at once, for a reason in words.
    """

    def __init__(self, fail: Callable[[PartyError], CipherDMError], end: Callable[[str], None]):
        self.ended: str | None = "it has not been started: use it in a with statement"  # why it cannot be used
        self._fail, self._end = fail, end
        self._lock = threading.RLock()
        self._calling = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the parties to oneself within a `with` block, for several calls that belong together."""
        with self._lock:
            self.check()
            yield

    @contextmanager
    def call(self) -> Iterator[None]:
        """Make one call within a `with` block, which ends the cluster if it is left by an exception.

        Raises:
            CipherDMError: a party failed, or the cluster has ended.
        """
        with self.alone():
            if self._calling:  # in this thread: by `progress`, or an interrupt came before anything below could see it
                self._end("a call of it was interrupted, or `progress` used it")
                self.check()
            self._calling = True
            try:
                yield
            except PartyError as failure:
                error = self._fail(failure)
                self._calling = False
                raise error from None
            except BaseException as error:
                self._end(f"a call of it was interrupted ({type(error).__name__})")
                raise
            self._calling = False

    def check(self) -> None:
        """Raise CipherDMError if the cluster has ended."""
        if self.ended is not None:
            raise CipherDMError(f"this cluster cannot be used: {self.ended}.")
