"""Progress of what runs long: the function that is told of it, and the bar that commands show."""

import threading
from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[int, int, str], None]
"""Function called as `progress(done, total, label)` while something long runs.

`done` of `total` parts are finished. `label` names the part that begins, or the one that has just been done. A total of 0
means that it is not known. A run on three parties first reports "compiling NAME" for each program to be compiled, counted
by themselves, and then its calls.
"""


class ProgressBar:
    """Bar that says what is being done, itself a `Progress`. Use it in a `with` statement.

    It is filled on exit unless an error was raised.

    Args:
        unit: name of one part.
    """

    def __init__(self, unit: str):
        self._unit = unit

    def __enter__(self) -> "ProgressBar":
        self._bar = tqdm(unit=self._unit)
        self._ended = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()
        return self

    def _tick(self) -> None:
        # The time that has passed moves on even while one long part, such as compiling a loop, reports nothing.
        while not self._ended.wait(1.0):
            self._bar.refresh()

    def __exit__(self, *exception) -> None:
        self._ended.set()
        if exception[0] is None and self._bar.total:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show how many parts are finished, and which one is at hand."""
        self._bar.total = total or None
        self._bar.set_description(label, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()  # tqdm redraws only when the count grows, and a label may come before that


def duration(seconds: float) -> str:
    """Return a time in words, with two digits or two units: "0.83 s", "12 s", "4 min 20 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for large, small, length, count in (("d", "h", 3600, 24), ("h", "min", 60, 60)):
        if whole >= length * count:
            return f"{whole // (length * count)} {large} {whole // length % count} {small}"
    return f"{whole // 60} min {whole % 60} s"
