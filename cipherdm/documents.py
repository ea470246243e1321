"""Tables in documents, generated from the records in data/measurements.

A document holds `<!-- table: NAME -->` and `<!-- end -->`; `cipherdm tables` rewrites what stands between them, and a test
fails when it is out of date, so that no number in a document can differ from its record.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import CipherDMError
from .files import replacing
from .records import read_record

DOCUMENTS = ("README.md",)
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def root() -> Path:
    """The checkout that this package runs from."""
    return Path(__file__).resolve().parent.parent


def render(text: str, measurements: Path) -> str:
    """`text` with every table rewritten from the records. Raises CipherDMError for a table that nobody defines."""

    def table(match: re.Match) -> str:
        name = match[2]
        if name not in TABLES:
            raise CipherDMError(f"no table is called {name!r}: there are {', '.join(TABLES)}.")
        return match[1] + TABLES[name](measurements) + "\n" + match[3]

    return _BLOCK.sub(table, text)


def rewrite(document: Path, measurements: Path) -> bool:
    """Rewrite the tables of a document in place; returns whether anything changed."""
    before = document.read_text()
    after = render(before, measurements)
    if after != before:
        with replacing(document) as temporary:
            temporary.write_text(after)
    return after != before


def models_table(measurements: Path) -> str:
    """The quality of the committed models, in plaintext."""
    rows = []
    for path in sorted(measurements.glob("quality_*_direct.json")):
        record = read_record(path)
        rows.append(
            [
                record["model"],
                f"{record['parameters']:,}",
                f"{record['scheduler'].upper()}-{record['steps']}",
                f"{record['accuracy']:.1%}",
                f"{record['f1']:.3f}",
                f"{record['lenet_fid']:.2f}",
                f"{record['count']:,}",
            ]
        )
    return _markdown(["model", "parameters", "sampler", "accuracy", "F1", "LeNet-FID", "samples"], rows)


def classifier_sentence(measurements: Path) -> str:
    """One sentence about the classifier that judges."""
    record: dict[str, Any] = read_record(measurements.parent / "models" / "lenet" / "training.json")
    return f"The LeNet that reads the digits is right on {record['test_accuracy']:.2%} of MNIST's test images."


TABLES: dict[str, Callable[[Path], str]] = {"models": models_table, "classifier": classifier_sentence}


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
