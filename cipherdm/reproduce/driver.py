"""Running targets: their pieces one after the other, publishing what is whole, and comparing with what is expected."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..errors import CipherDMError
from ..files import replacing
from .pieces import PieceFolder, Place
from .target import Records, Target

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
    from ..views.style import png

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
