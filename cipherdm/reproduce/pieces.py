"""Running one piece: its command in a process of its own, its time and memory, and a mark when it is finished."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ..documents import root
from ..errors import CipherDMError
from ..files import replacing
from ..records import environment
from .target import Piece

_WATCH = 0.5  # seconds between two looks at the memory


@dataclass(frozen=True)
class Place:
    """Where a run keeps its pieces, and where it puts what is finished.

    Attributes:
        reduced: measure little of each. Nothing of it goes where the committed records are.
        state: finished pieces that are not published yet, and marks of those that are.
        measurements: the folder of the records.
        figures: the folder of the figures, and of pictures that commands draw.
    """

    reduced: bool
    state: Path
    measurements: Path
    figures: Path

    @classmethod
    def of(cls, reduced: bool, checkout: Path | None = None) -> "Place":
        """The usual folders: those of the checkout, or for a reduced run `runs/reproduce/reduced`."""
        base = root() if checkout is None else checkout
        runs = base / "runs" / "reproduce"
        if reduced:
            inside = runs / "reduced"
            return cls(True, inside / "pieces", inside / "measurements", inside / "figures")
        return cls(False, runs / "full", base / "data" / "measurements", base / "figures")


class PieceFolder:
    """The folder of one piece: what its command wrote, and the mark that it is finished."""

    def __init__(self, piece: Piece, place: Place):
        self.piece = piece
        self._line = piece.command_line(place.reduced)
        self._arguments = piece.arguments(place.reduced)
        self._folder = place.state / piece.name
        self._mark = self._folder / "finished.json"
        self.output = self._folder / "output"

    @property
    def record(self) -> Path:
        """The record that the command wrote."""
        return self.output / f"{self.piece.name}.json"

    @property
    def finished(self) -> dict[str, Any] | None:
        """What finishing it took (command, seconds, memory, date, ...), or None if this command has not been finished."""
        if not self._mark.exists() or not self.record.exists():
            return None
        mark = json.loads(self._mark.read_text())
        return mark if mark["command"] == self._line else None

    @property
    def published(self) -> bool:
        """Whether the record has been put where it belongs."""
        return bool((self.finished or {}).get("published"))

    def mark_published(self) -> None:
        """Remember that the record has been put where it belongs."""
        self._write_mark({**self.finished, "published": True})

    def forget(self) -> None:
        """Delete the piece, with all that its command kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self) -> None:
        """Run the command; what it prints and its progress bar go to the terminal.

        Raises:
            CipherDMError: the command failed. What it had kept is still there.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        target = self.record if self.piece.option == "--record" else self.record.with_suffix(".png")
        options = [self.piece.option, str(target)]
        if self.piece.resumes:
            options += ["--keep", str(self._folder / "kept")]
        load, start = os.getloadavg()[0], time.monotonic()
        code, memory = _run_watched([sys.executable, "-m", "cipherdm", *self._arguments, *options])
        seconds = time.monotonic() - start
        if code:
            raise CipherDMError(
                f"`{self._line}` ended with exit code {code}. Finished pieces are kept: mend what it says above, and run "
                f"`cipherdm reproduce` again."
            )
        took = {"seconds": seconds, "memory": memory, "load_before": load}
        record = json.loads(self.record.read_text())
        with replacing(self.record) as temporary:
            temporary.write_text(json.dumps({**record, "run": {"commands": [self._line], **took}}, indent=1) + "\n")
        about = environment()
        self._write_mark(
            {"piece": self.piece.name, "command": self._line, **took, "commit": about["commit"], "date": about["date"]}
        )

    def _write_mark(self, mark: dict[str, Any]) -> None:
        with replacing(self._mark) as temporary:
            temporary.write_text(json.dumps(mark, indent=1) + "\n")


def _run_watched(command: list[str]) -> tuple[int, int]:
    """The exit code of a command, and the most memory that it and all its children held together, in bytes.

    An interruption by the keyboard reaches the command too; it gets the time that it needs to stop its parties.
    """
    process = subprocess.Popen(command)
    watch = _Memory(process.pid)
    watch.start()
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        watch.stop()
    return code, watch.peak


class _Memory:
    """Looks at the resident memory of a process and its children now and then. Pages that they share count for each."""

    def __init__(self, pid: int):
        self.peak = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH):
            try:
                process = psutil.Process(self._pid)
                self.peak = max(self.peak, sum(map(_resident, [process, *process.children(recursive=True)])))
            except psutil.NoSuchProcess:
                return


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # it ended since it was listed
        return 0
