"""The progress bar of the commands, for whatever reports `progress(done, total, label)` before each of its parts."""

from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, label)`. `label` names the part that begins, or the one that has just been done."""


class ProgressBar:
    """A bar that says what is being done. In a with statement; an ended one is full, unless there was an error.

    Args:
        unit: what is counted.
    """

    def __init__(self, unit: str):
        self._unit = unit

    def __enter__(self) -> "ProgressBar":
        self._bar = tqdm(unit=self._unit)
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None and self._bar.total:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show that `done` of `total` parts are finished, and that `label` begins. A total of 0 is unknown."""
        self._bar.total = total or None
        self._bar.set_description(label, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()  # before the part, and not only when there is progress
