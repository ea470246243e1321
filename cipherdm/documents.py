"""Tables in documents, generated from the records in data/measurements.

A document holds `<!-- table: NAME -->` and `<!-- end -->`; `cipherdm tables` rewrites what stands between them, and a test
fails when it is out of date, so that no number in a document can differ from its record.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from .costs.sampling import SAMPLERS
from .errors import CipherDMError
from .files import replacing
from .records import read_record

DOCUMENTS = ("README.md", "FUNCTIONS.md", "REPRODUCING.md")
_ELEMENTS = 100_000  # of the rows of activations.json that the table shows
_EVALUATE_COMMAND = "cipherdm evaluate MODEL --protocols SET --record data/measurements/quality_MODEL_SET.json"
_SCORES = ["sampler", "accuracy", "F1", "LeNet-FID", "samples"]
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
    records = _records(measurements, "quality_*_direct.json", _EVALUATE_COMMAND)
    rows = [[record["model"], f"{record['parameters']:,}", *_scores(record)] for record in records]
    return _markdown(["model", "parameters", *_SCORES], rows)


def quality_table(measurements: Path) -> str:
    """The quality of pictures drawn in plaintext with each set of protocols; a model's exact functions first."""
    records = _records(measurements, "quality_*.json", _EVALUATE_COMMAND)
    records.sort(key=lambda r: (r["model"], r["scheduler"], r["steps"], r["protocols"] != "direct", r["protocols"]))
    rows = [
        [
            record["model"],
            record["protocols"],
            *_scores(record),
            *(_likeness(record.get(way)) for way in ("emulated", "secure")),
        ]
        for record in records
    ]
    return _markdown(["model", "protocols", *_SCORES, "PSNR, SSIM to exact", "on shares"], rows)


def captions_table(measurements: Path) -> str:
    """What is read back from pictures that were drawn by caption, and from composed ones."""
    (record,) = _records(measurements, "captions_*.json", "cipherdm read-back MODEL --record PATH")
    parts = list(record["drawn"])
    kinds = {"drawn": f"{record['count']} captions, drawn", "real": "the same, composed from MNIST"}
    rows = [[name, *(f"{record[kind][part]:.1%}" for part in parts)] for kind, name in kinds.items()]
    return _markdown([record["model"], *parts], rows)


def prompts_table(measurements: Path) -> str:
    """Prompts drawn one by one on three parties, against plaintext."""
    rows = []
    for record in _records(measurements, "prompts_*.json", "cipherdm bench prompts MODEL"):
        for row in record["rows"]:
            rows.append(
                [
                    row["prompt"],
                    f"{row['psnr_db']:.1f} dB",
                    f"{row['whole_seconds']:.0f} s",
                    f"{row['bytes'] / 1e6:,.0f}",
                    f"{row['sends']:,}",
                    f"{row['peak_memory'] / 2**20:.0f}",
                ]
            )
    return _markdown(["prompt", "PSNR to exact", "time", "MB", "sends", "MiB of a party"], rows)


def step_table(measurements: Path) -> str:
    """One denoising step of one picture under each set of protocols, against the faster exact baseline."""
    return _step_table(measurements, "step", lambda row: " on " not in row["variant"])


def step_batches_table(measurements: Path) -> str:
    """What each set gains in a step, for every batch size that was measured: times less time, fewer bytes, fewer sends."""
    from .bench.step import ratios  # brings the whole library along

    records = _records(measurements, "step_*.json", "cipherdm bench step MODEL")
    frame = ratios(pd.concat([pd.DataFrame(record["rows"]) for record in records], ignore_index=True))
    columns = ("time_ratio", "bytes_ratio", "sends_ratio")
    frame["gain"] = [", ".join(map(_times, gains)) for gains in frame[list(columns)].itertuples(index=False)]
    table = frame.pivot_table(index=["model", "variant"], columns="batch", values="gain", aggfunc="first", sort=False)
    header = ["model", "protocols", *(f"{batch} at a time" for batch in sorted(table))]
    rows = [[*index, *row.fillna("-")] for index, row in table[sorted(table)].iterrows()]
    return _markdown(header, rows)


def ladder_table(measurements: Path) -> str:
    """One denoising step of one picture from the plain model to ours, each row with one change more."""
    return _step_table(measurements, "ladder")


def distilled_table(measurements: Path) -> str:
    """One denoising step of one picture on given weights, and on weights that were distilled into cheaper functions."""
    records = _records(measurements, "step_*.json", "cipherdm bench step MODEL")
    taught = {row["model"] for record in records for row in record["rows"] if " on " in row["variant"]}

    def is_shown(row: dict[str, Any]) -> bool:
        return row["model"] in taught and (row["variant"] in ("direct", "fast") or " on " in row["variant"])

    return _step_table(measurements, "step", is_shown)


def rings_table(measurements: Path) -> str:
    """One denoising step of 16 pictures with products by SPU, on shares, and on shares in two rings."""
    return _step_table(measurements, "rings", batch=16)


def blocks_table(measurements: Path) -> str:
    """One denoising step as blocks of programs, as `cipherdm sample` runs it, without and with products on shares."""
    (record,) = _records(measurements, "blocks_*.json", "cipherdm bench step MODEL --granularity block")
    frame = pd.DataFrame(record["rows"]).pivot(index=["model", "batch"], columns="variant", values="seconds")
    rows = [
        [
            model,
            f"{batch}",
            *(_duration(row[name]) for name in ("fast", "fast-shares")),
            _times(row["fast"] / row["fast-shares"]),
        ]
        for (model, batch), row in frame.iterrows()
    ]
    return _markdown(["model", "pictures", "fast", "fast-shares", "faster"], rows)


def linear_table(measurements: Path) -> str:
    """Matrix products by SPU and by kernels on shares, and conversions between the rings."""
    from .bench.linear import conversion_table, table  # brings the whole library along

    (record,) = _records(measurements, "linear.json", "cipherdm bench linear")
    rows = [
        [
            row["shape"],
            row["way"],
            f"{row['ms']:,.0f}",
            f"{row['G/s']:.1f}",
            f"{row['MB']:,.1f}",
            *(_times(row[ratio]) for ratio in ("faster", "fewer bytes")),
        ]
        for row in table(record).to_dict("records")
    ]
    rows += [
        [f"{row['elements']:,} numbers", row["conversion"], f"{row['ms']:,.0f}", "", f"{row['MB']:,.1f}", "", ""]
        for row in conversion_table(record).to_dict("records")
    ]
    return _markdown(["product", "by", "ms", "G multiply-adds/s", "MB", "faster", "fewer bytes"], rows)


def activations_table(measurements: Path) -> str:
    """Error and cost of every function on 100,000 elements."""
    command = "cipherdm bench activations"
    (record,) = _records(measurements, "activations.json", command)
    rows = [
        [
            _function_name(row),
            f"{row['max_error']:.2g}" + (" of the value" if row["relative"] else ""),
            f"{row['ms']:,.0f}",
            f"{row['bytes'] / row['elements']:,.0f}",
            f"{row['sends']:,}",
        ]
        for row in record["rows"]
        if row["elements"] == _ELEMENTS
    ]
    if not rows:
        raise CipherDMError(f"activations.json has no rows of {_ELEMENTS:,} elements: measure them with `{command}`.")
    return _markdown(["function", "max error", "ms", "bytes/element", "sends"], rows)


def candidates_table(measurements: Path) -> str:
    """Sizes that mnist10 could have had: what their cost depends on, and the loss after a short training."""
    (record,) = _records(measurements, "mnist10_candidates.json", "python -m cipherdm.training candidates")
    columns = ("parameters", "multiply_adds", "activation_elements", "softmax_elements")
    rows = [[row["name"], *(f"{row[column]:,}" for column in columns), f"{row['loss']:.4f}"] for row in record["rows"]]
    return _markdown(["channels", *(column.replace("_", " ") for column in columns), "loss"], rows)


def classifier_sentence(measurements: Path) -> str:
    """One sentence about the classifier that judges."""
    record: dict[str, Any] = read_record(measurements.parent / "models" / "lenet" / "training.json")
    return f"The LeNet that reads the digits is right on {record['test_accuracy']:.2%} of MNIST's test images."


def _of_targets(name: str) -> Callable[[Path], str]:
    """A table of `reproduce.tables`, which brings the targets along."""

    def table(measurements: Path) -> str:
        from .reproduce import tables

        return getattr(tables, name)(measurements)

    return table


TABLES: dict[str, Callable[[Path], str]] = {
    "models": models_table,
    "candidates": candidates_table,
    "classifier": classifier_sentence,
    "quality": quality_table,
    "captions": captions_table,
    "prompts": prompts_table,
    "step": step_table,
    "step_batches": step_batches_table,
    "ladder": ladder_table,
    "distilled": distilled_table,
    "blocks": blocks_table,
    "linear": linear_table,
    "rings": rings_table,
    "activations": activations_table,
    "targets": _of_targets("targets_table"),
    "pieces": _of_targets("pieces_table"),
    "expected": _of_targets("expected_table"),
    "published": _of_targets("published_table"),
    "full_size": _of_targets("full_size_table"),
}


def _records(measurements: Path, pattern: str, command: str) -> list[dict[str, Any]]:
    """The records whose file names match. Raises CipherDMError, naming the command that makes one, if there is none."""
    paths = sorted(measurements.glob(pattern))
    if not paths:
        raise CipherDMError(f"there is no record {measurements / pattern}: make it with `{command}`.")
    return [read_record(path) for path in paths]


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


def _step_table(
    measurements: Path, benchmark: str, is_shown: Callable[[dict[str, Any]], bool] = lambda row: True, batch: int = 1
) -> str:
    """The rows of so many pictures that are shown, against the faster exact baseline of each record."""
    # Only these tables need the benchmark's module, which brings the whole library along.
    from .bench.step import ratios

    command = f"cipherdm bench {benchmark} MODEL"
    frames = [pd.DataFrame(record["rows"]) for record in _records(measurements, f"{benchmark}_*.json", command)]
    rows = ratios(pd.concat(frames, ignore_index=True)).to_dict("records")
    shown = [row for row in rows if row["batch"] == batch and is_shown(row)]
    if not shown:
        raise CipherDMError(
            f"no record {benchmark}_*.json has batch {batch}: make one with `{command} --batch {batch}`."
        )
    header = [
        "model",
        "batch",
        "protocols",
        "time",
        "MB",
        "sends",
        "faster",
        "fewer bytes",
        "fewer sends",
        "setup MB",
        "peak MiB",
    ]
    return _markdown(
        header,
        [
            [
                row["model"],
                str(row["batch"]),
                row["variant"],
                _duration(row["seconds"]),
                _megabytes(row["bytes"]),
                f"{row['sends']:,}",
                *(_times(row[ratio]) for ratio in ("time_ratio", "bytes_ratio", "sends_ratio")),
                _megabytes(row["setup_bytes"]),
                f"{row['peak_memory'] / 2**20:,.0f}",
            ]
            for row in shown
        ],
    )


def _function_name(row: dict[str, Any]) -> str:
    """ "silu, direct", perhaps with ", pade", or the approximation's own name, which begins with the kind."""
    if row["function"] != "direct":
        return row["function"]
    return f"{row['kind']}, direct" + (", pade" if row["exp"] == "pade" else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _times(ratio: float) -> str:
    """ "5.1x", or "-" where there is no baseline."""
    return "-" if math.isnan(ratio) else f"{ratio:.1f}x"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
