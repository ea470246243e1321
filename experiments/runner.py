"""Running targets: their commands one after the other, publishing finished records, and comparing with what is expected.

Each command runs in a process of its own, whose time and memory are noted. A finished one is marked and not run again.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from cipherdm.errors import CipherDMError
from cipherdm.files import check_writable, checkout, replacing
from cipherdm.records import environment, load_average
from cipherdm.views.style import show

from .journal import write_json
from .target import Command, Records, Target

_WATCH = 0.5  # seconds between two looks at the memory


@dataclass(frozen=True)
class Folders:
    """Folders of a reproduction."""

    reduced: bool  # whether little of each target is measured; none of it goes where the committed records are
    state: Path  # of finished runs that are not published yet, and of the marks of those that are
    measurements: Path
    figures: Path  # also of images that commands draw

    @classmethod
    def of(cls, reduced: bool, place: Path | None = None) -> "Folders":
        """Return the usual folders: those of the checkout, or for a reduced run `runs/reproduce/reduced`."""
        base = place or checkout()
        runs = base / "runs" / "reproduce"
        if reduced:
            return cls(True, *(runs / "reduced" / name for name in ("pieces", "measurements", "figures")))
        return cls(False, runs / "full", base / "data" / "measurements", base / "figures")


class Run:
    """The run of one command: what it wrote, and the mark that it is finished, in a folder of its own."""

    def __init__(self, command: Command, folders: Folders):
        self.command = command
        self.line = command.line(folders.reduced)
        self._arguments = command.arguments(folders.reduced)
        self._folder = folders.state / command.name
        self._mark = self._folder / "finished.json"
        self.output = self._folder / "output"

    @property
    def record(self) -> Path:
        """Path of the record that the command writes."""
        return self.output / f"{self.command.name}.json"

    @property
    def finished(self) -> dict[str, Any] | None:
        """Mark of the finished run (command, seconds, memory, date, ...), or None if this command is not finished."""
        if not self._mark.exists() or not self.record.exists():
            return None
        mark = json.loads(self._mark.read_text())
        return mark if mark["command"] == self.line else None

    @property
    def published(self) -> bool:
        """True if the record has been put where it belongs."""
        return bool((self.finished or {}).get("published"))

    def forget(self) -> None:
        """Delete the run, with all that its command kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Run the command in this terminal, and mark it as finished. Raises CipherDMError if it fails; what it kept stays."""
        self.output.mkdir(parents=True, exist_ok=True)
        target = self.record if self.command.option == "--record" else self.record.with_suffix(".png")
        options = [self.command.option, str(target)]
        if self.command.resumes:
            options += ["--keep", str(self._folder / "kept")]
        load, start = load_average(), time.monotonic()
        code, memory = _run_watched([sys.executable, "-P", "-m", "cipherdm", *self._arguments, *options])
        seconds = time.monotonic() - start
        if code:
            raise CipherDMError(
                f"`{self.line}` ended with exit code {code}. Finished commands are kept: mend what it says above, and run "
                f"`cipherdm reproduce` again."
            )
        took = {"seconds": seconds, "memory": memory, "load_before": load}
        record = json.loads(self.record.read_text())
        write_json(self.record, {**record, "run": {"commands": [self.line], **took}})
        about = environment()
        mark = {"piece": self.command.name, "command": self.line, **took}
        write_json(self._mark, mark | {"commit": about["commit"], "date": about["date"]})

    def publish(self, folders: Folders) -> None:
        """Put the record and the images where they belong, and note that in the mark."""
        for file in sorted(self.output.iterdir()):
            folder = folders.figures if file.suffix == ".png" else folders.measurements
            with replacing(folder / file.name) as temporary:
                temporary.write_bytes(file.read_bytes())
        write_json(self._mark, {**self.finished, "published": True})


def _run_watched(command: list[str]) -> tuple[int, int | None]:
    """Return a command's exit code, and the most bytes that it and all its children held together, None if not measured."""
    process, peak = subprocess.Popen(command), 0
    try:
        while True:
            try:
                return process.wait(_WATCH), peak or None
            except subprocess.TimeoutExpired:
                peak = max(peak, _memory(process.pid))
    except BaseException:  # an interruption by the keyboard reaches the command too, which then stops its parties
        process.terminate()
        process.wait()
        raise


def _memory(pid: int) -> int:
    """Return the resident bytes of a process and its children, 0 if the system does not tell. Shared pages count for each."""
    total = 0
    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it ended since it was listed
                total += one.memory_info().rss
    return total


def choose(targets: Sequence[Target], names: Sequence[str]) -> tuple[Target, ...]:
    """Return the targets with these names, or all if there are no names. Raises CipherDMError for an unknown name."""
    known = {target.name: target for target in targets}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CipherDMError(f"no target is called {unknown[0]!r}: there are {', '.join(known)}.")
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(targets)


def reproduce(targets: Sequence[Target], folders: Folders, tell: Callable[[str], None], *, again: bool = False) -> bool:
    """Measure targets, and write their records and figures. Return True if all numbers were within their tolerances.

    Commands that are finished already are skipped, unless `again` is true. `tell` gets a line before each command, and the
    results at each target's end. Raises CipherDMError if a command failed, or a folder cannot be written to.
    """
    for folder in (folders.state, folders.measurements, folders.figures):
        check_writable(folder / "record.json")
    runs = {target.name: [Run(command, folders) for command in target.commands] for target in targets}
    if again:
        for run in chain(*runs.values()):
            run.forget()
    total, numbers, fine = sum(map(len, runs.values())), count(1), True
    for target in targets:
        for run in runs[target.name]:
            finished = run.finished
            kept = f"kept, of {finished['date']}" if finished else run.line
            tell(f"[{next(numbers)}/{total}] {run.command.name}: {kept}")
            if not finished:
                run.start()
            publish(runs[target.name], folders)
        if target.figure is not None:
            picture = show(target.figure(folders.measurements)).picture
            content, kind = (picture.encode(), "svg") if isinstance(picture, str) else (picture, "png")
            with replacing(folders.figures / f"{target.name.replace('-', '')}.{kind}") as temporary:
                temporary.write_bytes(content)
        table = compare(target, folders)
        fine = fine and bool(table["holds"].all())
        results = table.to_string(index=False) if len(table) else "nothing to compare"
        tell(f"{target.name}: {target.title}\n{results}")
    return fine


def publish(runs: Sequence[Run], folders: Folders) -> tuple[Path, ...]:
    """Put the records and images of finished runs where they belong, each once; return the records' paths."""
    # A record that was put there before is left alone, since a newer one may be in its place.
    ready = [run for run in runs if run.finished and not run.published]
    for run in ready:
        run.publish(folders)
    return tuple(folders.measurements / run.record.name for run in ready)


def compare(target: Target, folders: Folders) -> pd.DataFrame:
    """Return a row for each number that this kind of run can tell: what, expected with tolerance, found, holds."""
    records = Records(folders.measurements)
    rows = []
    for check in target.checks:
        tolerance = check.reduced if folders.reduced else check.tolerance
        if tolerance is not None:
            expected = f"{check.shown(check.expected)} {check.margin(tolerance)}"
            found = check.shown(check.value(records))
            rows.append((check.what, expected, found, check.holds(records, folders.reduced)))
    return pd.DataFrame(rows, columns=["what", "expected", "found", "holds"])


def compare_committed(targets: Sequence[Target]) -> pd.DataFrame:
    """Return `compare` for the committed records that are there, with the target's name in front."""
    folders, tables = Folders.of(False), []
    for target in targets:
        for check in target.checks:
            try:
                found = compare(replace(target, checks=(check,)), folders)
            except CipherDMError:
                continue
            tables.append(found.assign(target=target.name))
    columns = ["target", "what", "expected", "found", "holds"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def listing(targets: Sequence[Target], folders: Folders) -> str:
    """Return a paragraph for each target: its name and title, and its commands, marked "done" if they are finished."""
    lines = []
    for target in targets:
        lines.append(f"{target.name}: {target.title}")
        for run in (Run(command, folders) for command in target.commands):
            lines.append(f"  {'done' if run.finished else '    '}  {run.line}")
    return "\n".join(lines)


def costs(targets: Iterable[Target], places: Iterable[Folders], before: Iterable[dict] = ()) -> list[dict]:
    """Return what finished runs took, with target and reduced; of other commands the rows `before`, if typed so still."""
    earlier = {(row["command"], row["reduced"]): row for row in before}
    rows = []
    for folders in places:
        for target in targets:
            for run in (Run(command, folders) for command in target.commands):
                mark, kept = run.finished, earlier.get((run.line, folders.reduced))
                if mark or kept:
                    rows.append({"target": target.name, "reduced": folders.reduced, **mark} if mark else kept)
    return rows
