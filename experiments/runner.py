"""Running targets: their pieces one after the other, publishing what is whole, and comparing with what is expected."""

# FROM cipherdm.reproduce.pieces:
# Running one piece: its command in a process of its own, its time and memory, and a mark when it is finished.

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing, root
from cipherdm.records import environment

from .target import Piece, Records, Target

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


Tell = Callable[[str], None]


def choose(targets: Sequence[Target], names: Sequence[str]) -> tuple[Target, ...]:
    """The targets with these names, or all of them if there are no names. Raises CipherDMError for an unknown name."""
    known = {target.name: target for target in targets}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CipherDMError(f"no target is called {unknown[0]!r}: there are {', '.join(known)}.")
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(targets)


def reproduce(targets: Sequence[Target], place: Place, tell: Tell, *, again: bool = False) -> bool:
    """Measure targets, and write their records and figures. Pieces that are finished already are kept and skipped.

    Args:
        targets: what to measure.
        place: where everything goes.
        tell: gets a line for each piece before it is run or skipped, and the results at the end of each target.
        again: forget finished pieces of these targets first.

    Returns:
        Whether all numbers were as expected, within their tolerances.

    Raises:
        CipherDMError: a command failed.
    """
    folders = {target.name: [PieceFolder(piece, place) for piece in target.pieces] for target in targets}
    if again:
        for folder in (folder for of_target in folders.values() for folder in of_target):
            folder.forget()
    total = sum(map(len, folders.values()))
    number, fine = 0, True
    for target in targets:
        for folder in folders[target.name]:
            number += 1
            line = folder.piece.command_line(place.reduced)
            finished = folder.finished
            tell(f"[{number}/{total}] {folder.piece.name}: " + (f"kept, of {finished['date']}" if finished else line))
            if not finished:
                folder.run()
            publish(target, folders[target.name], place)
        draw(target, place)
        table = compare(target, place)
        fine = fine and bool(table["holds"].all())
        tell(
            f"{target.name}: {target.title}\n" + (table.to_string(index=False) if len(table) else "nothing to compare")
        )
    return fine


def publish(target: Target, folders: Sequence[PieceFolder], place: Place) -> tuple[Path, ...]:
    """Put the records and pictures of finished pieces where they belong; returns the records' paths.

    A record that was put there before is left alone, since a newer one may be in its place.
    """
    written = []
    for folder in folders:
        if not folder.finished or folder.published:
            continue
        for file in sorted(folder.output.iterdir()):
            _copy(file, (place.figures if file.suffix == ".png" else place.measurements) / file.name)
        folder.mark_published()
        written.append(place.measurements / folder.record.name)
    return tuple(written)


def draw(target: Target, place: Place) -> Path | None:
    """Draw the target's figure from its records; returns its path, or None if it has no figure."""
    if target.figure is None:
        return None
    path = place.figures / f"{target.name.replace('-', '')}.png"
    from cipherdm.views.style import png

    picture = png(target.figure(place.measurements))
    with replacing(path) as temporary:
        temporary.write_bytes(picture)
    return path


def compare(target: Target, place: Place) -> pd.DataFrame:
    """A row for each number of a target that this kind of run tells: what, expected, tolerance, found, holds."""
    records = Records(place.measurements)
    rows = []
    for check in target.checks:
        tolerance = check.reduced if place.reduced else check.tolerance
        if tolerance is not None:
            found = check.value(records)
            rows.append(
                {
                    "what": check.what,
                    "expected": f"{check.shown(check.expected)} {check.margin(tolerance)}",
                    "found": check.shown(found),
                    "holds": check.holds(records, place.reduced),
                }
            )
    return pd.DataFrame(rows, columns=["what", "expected", "found", "holds"])


def listing(targets: Sequence[Target], place: Place) -> str:
    """A paragraph for each target: its name and title, and the command of each piece with whether it is finished."""
    paragraphs = []
    for target in targets:
        lines = [f"{target.name}: {target.title}"]
        for piece in target.pieces:
            finished = PieceFolder(piece, place).finished
            lines.append(f"  {'done' if finished else '    '}  {piece.command_line(place.reduced)}")
        paragraphs.append("\n".join(lines))
    return "\n".join(paragraphs)


def costs(targets: Iterable[Target], places: Iterable[Place], before: Iterable[dict] = ()) -> list[dict]:
    """What the finished pieces of full and reduced runs took: a row for each, with target, piece, reduced and its mark.

    Rows from `before` stay for pieces that are not finished in this checkout, if their commands are still the same.
    """
    earlier = {(row["command"], row["reduced"]): row for row in before}
    rows = []
    for place in places:
        for target in targets:
            for piece in target.pieces:
                mark = PieceFolder(piece, place).finished
                kept = earlier.get((piece.command_line(place.reduced), place.reduced))
                if mark or kept:
                    rows.append({"target": target.name, "reduced": place.reduced, **mark} if mark else kept)
    return rows


def _copy(source: Path, destination: Path) -> None:
    with replacing(destination) as temporary:
        temporary.write_bytes(source.read_bytes())


def compare_committed(targets: Sequence[Target]) -> pd.DataFrame:
    """`compare` for the committed records of targets, a row for each number, with the target's name in front.

    Numbers whose records are not there are left out.
    """
    place, tables = Place.of(False), []
    for target in targets:
        for check in target.checks:
            try:
                found = compare(replace(target, checks=(check,)), place)
            except CipherDMError:
                continue
            tables.append(found.assign(target=target.name))
    columns = ["target", "what", "expected", "found", "holds"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
