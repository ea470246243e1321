"""What a process that holds shares does first: it leaves no core file, and ends with its parent or with any of its threads."""

import ctypes
import os
import resource
import sys
import threading
import time

_PR_SET_DUMPABLE = 4


def harden() -> None:
    """Let nobody read this process's memory, with no core file and no debugger, and end it with any of its threads."""
    threading.excepthook = _end_with_thread
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_dumpable(allowed=False)  # the limit alone does not hold where the system hands core files to a program


def set_dumpable(*, allowed: bool) -> None:
    """Allow or forbid core files and debuggers. While they are forbidden, /proc/self cannot be written either."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, int(allowed), 0, 0, 0)


def _end_with_thread(problem: threading.ExceptHookArgs) -> None:
    # gRPC has one thread that takes all calls. When a lack of memory has ended it, the process lives and listens, and no
    # supervisor sees that it is deaf.
    try:
        message = f"a thread ended by {problem.exc_type.__name__}: {problem.exc_value}, and the process with it"
        print(message, file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def end_with_parent(parent: int | None = None) -> None:
    """Watch the parent process from now on, and end this process at once, within a second, when the parent has ended.

    `parent` is its id, for a process whose parent may end while it still imports; by default the parent of this moment.

    A pipe from the parent does not tell: processes that the parent has forked keep it open. The kernel's own signal
    (PR_SET_PDEATHSIG) comes too early, when the thread ends that started this process.
    """
    threading.Thread(target=_watch, args=(parent or os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
