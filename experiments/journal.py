"""Finished parts of a long run, kept in a folder so that an interrupted run goes on with the next part."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing


class Journal:
    """A row for each finished part of a run, in order, and an array for those that have one.

    A part's array is written before its row, so that whatever the journal lists is whole. `about` is the identity of the run,
    JSON-ready: its weights, inputs and settings. Raises CipherDMError if the folder holds another run.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self._folder, self._path, self._about = folder, folder / "journal.json", dict(about)
        self.rows: list[dict[str, Any]] = []
        if self._path.exists():
            stored = json.loads(self._path.read_text())
            if stored.get("about") != self._about:
                other = f"{self._path} is of another run, with other weights, inputs or settings"
                raise CipherDMError(f"{other}: delete {folder}, or choose another folder.")
            self.rows = stored["rows"]

    def add(self, row: Mapping[str, Any], array: np.ndarray | None = None) -> None:
        """Note a finished part, and keep its array if it has one."""
        if array is not None:
            write_array(self._array(len(self.rows)), array)
        self.rows.append(dict(row))
        write_json(self._path, {"about": self._about, "rows": self.rows})

    def arrays(self) -> list[np.ndarray]:
        """Return the arrays of all finished parts."""
        return [np.load(self._array(index)) for index in range(len(self.rows))]

    def _array(self, index: int) -> Path:
        return self._folder / f"part_{index:04}.npy"


def kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in a file, after computing and writing it if there is no such file."""
    if not path.exists():
        write_array(path, compute())
    return np.load(path)


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=1) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array to an .npy file, whole or not at all."""
    with replacing(path) as temporary:
        np.save(temporary, array)
