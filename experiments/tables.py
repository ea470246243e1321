"""Tables in documents, generated from the records in data/measurements.

A document holds `<!-- table: NAME -->` and `<!-- end -->`; `cipherdm tables` rewrites what stands between them, and a test
fails when it is out of date, so that no number in a document can differ from its record.
"""

import math
import re
from pathlib import Path
from typing import Any

from cipherdm.costs.sampling import SAMPLERS
from cipherdm.errors import CipherDMError
from cipherdm.files import replacing
from cipherdm.records import read_record

from .discovery import modules_with
from .few_steps import captions_over_calls
from .markdown import Table, markdown, records_named

DOCUMENTS = ("README.md", "RESULTS.md", "DEPLOYING.md", "experiments/README.md", "data/models/README.md")
_EVALUATE_COMMAND = "cipherdm evaluate MODEL --protocols SET --record data/measurements/quality_MODEL_SET.json"
_SCORES = ["sampler", "accuracy", "F1", "LeNet-FID", "samples"]
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str, measurements: Path) -> str:
    """Return `text` with every table rewritten from the records. Raises CipherDMError for an unknown table."""

    def table(match: re.Match) -> str:
        name = match[2]
        if name not in TABLES:
            raise CipherDMError(f"no table is called {name!r}: there are {', '.join(TABLES)}.")
        return match[1] + TABLES[name](measurements) + "\n" + match[3]

    return _BLOCK.sub(table, text)


def rewrite(document: Path, measurements: Path) -> bool:
    """Rewrite the tables of a document in place; return True if anything changed."""
    before = document.read_text()
    after = render(before, measurements)
    if after != before:
        with replacing(document) as temporary:
            temporary.write_text(after)
    return after != before


def models_table(measurements: Path) -> str:
    """Return the quality of the committed models, in plaintext."""
    records = records_named(measurements, "quality_*_direct.json", _EVALUATE_COMMAND)
    rows = [[record["model"], f"{record['parameters']:,}", *_scores(record)] for record in records]
    return markdown(["model", "parameters", *_SCORES], rows)


def quality_table(measurements: Path) -> str:
    """Return the quality of images drawn in plaintext with each protocol set; a model's exact functions first."""
    ways = ("emulated", "secure")
    records = records_named(measurements, "quality_*.json", _EVALUATE_COMMAND)
    records.sort(key=lambda r: (r["model"], r["scheduler"], r["steps"], r["protocols"] != "direct", r["protocols"]))
    rows = [
        [record["model"], record["protocols"], *_scores(record), *(_likeness(record.get(way)) for way in ways)]
        for record in records
    ]
    return markdown(["model", "protocols", *_SCORES, "PSNR, SSIM to exact", "on shares"], rows)


def captions_table(measurements: Path) -> str:
    """Return what is read back from images that were drawn by caption, and from composed ones."""
    records = captions_over_calls(measurements)[::-1]
    parts = list(records[0]["drawn"])

    def row(name: str, calls: str, record: dict[str, Any], kind: str) -> list[str]:
        return [name, calls, f"{record['count']:,}", *(f"{record[kind][part]:.1%}" for part in parts)]

    rows = [row(record["model"], str(record["calls"]), record, "drawn") for record in records]
    rows.append(row("composed from MNIST", "-", records[0], "real"))
    return markdown(["model", "calls", "captions", *parts], rows)


def candidates_table(measurements: Path) -> str:
    """Return sizes that mnist10 could have had: numbers that set their cost, and the loss after a short training."""
    command = "python -m cipherdm_experiments.training.candidates"
    (record,) = records_named(measurements, "mnist10_candidates.json", command)
    columns = ("parameters", "multiply_adds", "activation_elements", "softmax_elements")
    rows = [[row["name"], *(f"{row[column]:,}" for column in columns), f"{row['loss']:.4f}"] for row in record["rows"]]
    return markdown(["channels", *(column.replace("_", " ") for column in columns), "loss"], rows)


def classifier_sentence(measurements: Path) -> str:
    """Return a sentence about the classifier that judges."""
    record: dict[str, Any] = read_record(measurements.parent / "models" / "lenet" / "training.json")
    return f"The LeNet that reads the digits is right on {record['test_accuracy']:.2%} of MNIST's test images."


def _scores(record: dict[str, Any]) -> list[str]:
    return [
        f"{SAMPLERS[record['scheduler']]}-{record['steps']}",
        f"{record['accuracy']:.1%}",
        f"{record['f1']:.3f}",
        f"{record['lenet_fid']:.2f}",
        f"{record['count']:,}" + (f", {record['overflowed']} overflowed" if record.get("overflowed") else ""),
    ]


def _likeness(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return "some overflowed" if math.isnan(found["psnr"]) else f"{found['psnr']:.1f} dB, {found['ssim']:.3f}"


TABLES: dict[str, Table] = {
    "models": models_table,
    "candidates": candidates_table,
    "classifier": classifier_sentence,
    "quality": quality_table,
    "captions": captions_table,
}
"""Functions that make tables, by name: those of records that no experiment here makes, and each module's own `TABLES`."""

for _module in modules_with("\nTABLES = "):
    TABLES |= _module.TABLES
