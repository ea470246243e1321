"""Tables in Markdown, and numbers with their units, as documents show them."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cipherdm.errors import CipherDMError
from cipherdm.records import read_record

Table = Callable[[Path], str]
"""A function that makes a table's Markdown from the folder of the records."""


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    header = list(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def records_named(measurements: Path, pattern: str, command: str) -> list[dict[str, Any]]:
    """Return the records whose file names match. Raises CipherDMError, naming the command that makes one, without any."""
    paths = sorted(measurements.glob(pattern))
    if not paths:
        raise CipherDMError(f"there is no record {measurements / pattern}: make it with `{command}`.")
    return [read_record(path) for path in paths]


def duration(seconds: float, digits: int = 2) -> str:
    """Return a duration in words: "12 ms", "1.50 s" with so many digits, and from 90 seconds on "2 min"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.{digits}f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def megabytes(count: float) -> str:
    """Return a number of bytes as MB, without the unit."""
    return f"{count / 1e6:,.1f}"


def mebibytes(count: float) -> str:
    """Return a number of bytes as MiB, without the unit."""
    return f"{count / 2**20:,.0f}"


def times(ratio: float) -> str:
    """Return a ratio as "5.1x", or "-" for NaN, which stands where there is no baseline."""
    return "-" if math.isnan(ratio) else f"{ratio:.1f}x"
