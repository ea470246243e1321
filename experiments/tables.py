"""Tables in documents, generated from the records in data/measurements.

A document holds `<!-- table: NAME -->` and `<!-- end -->`; `cipherdm tables` rewrites what stands between them, and a test
fails when it is out of date, so that no number in a document can differ from its record.
"""

# FROM cipherdm.reproduce.tables:
# The tables of REPRODUCING.md: what each target takes, its commands, and what is expected beside the committed records.

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cipherdm.costs.sampling import SAMPLERS
from cipherdm.errors import CipherDMError
from cipherdm.files import replacing
from cipherdm.records import read_record

from .step import ratios
from .step_gains import gains_by_batch, step_rows
from .target import Command
from .targets import TARGETS

DOCUMENTS = ("README.md", "RESULTS.md", "experiments/README.md", "data/models/README.md")

_ELEMENTS = 100_000  # of the rows of activations.json that the table shows

_EVALUATE_COMMAND = "cipherdm evaluate MODEL --protocols SET --record data/measurements/quality_MODEL_SET.json"

_SCORES = ["sampler", "accuracy", "F1", "LeNet-FID", "samples"]

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


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


SUMMARY = {"mnist10": ("direct", "direct-pade", "cipherdm", "puma", "fast"), "sd-mini": ("direct", "fast")}
"""Rows of README's table: protocol sets by model, of which the first is the baseline."""


def summary_table(measurements: Path) -> str:
    """One denoising step of one image under the best known protocol sets, against direct SPU."""
    rows = []
    for model, names in SUMMARY.items():
        (record,) = _records(measurements, f"step_{model}.json", f"cipherdm bench step {model}")
        found = {row["variant"]: row for row in record["rows"]}
        base = found[names[0]]
        for name in names:
            row = found[name]
            gains = (base[key] / row[key] for key in ("seconds", "bytes", "sends"))
            cost = [_duration(row["seconds"]), _megabytes(row["bytes"]), f"{row['sends']:,}"]
            rows.append([model, name, *cost, *map(_times, gains)])
    header = ["model", "protocol set", "time", "MB", "messages", "less time", "fewer bytes", "fewer messages"]
    return _markdown(header, rows)


def step_batches_table(measurements: Path) -> str:
    """What each set gains in a step, for every batch size that was measured: times less time, fewer bytes, fewer sends."""
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
            *(_duration(row[name]) for name in ("fast", "fast-kernels")),
            _times(row["fast"] / row["fast-kernels"]),
        ]
        for (model, batch), row in frame.iterrows()
    ]
    return _markdown(["model", "pictures", "fast", "fast-kernels", "faster"], rows)


def linear_table(measurements: Path) -> str:
    """Matrix products by SPU and by kernels on shares, and conversions between the rings."""
    from .linear import conversion_table, table  # brings the whole library along

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
    (record,) = _records(measurements, "mnist10_candidates.json", "python -m cipherdm_experiments.training.candidates")
    columns = ("parameters", "multiply_adds", "activation_elements", "softmax_elements")
    rows = [[row["name"], *(f"{row[column]:,}" for column in columns), f"{row['loss']:.4f}"] for row in record["rows"]]
    return _markdown(["channels", *(column.replace("_", " ") for column in columns), "loss"], rows)


def classifier_sentence(measurements: Path) -> str:
    """One sentence about the classifier that judges."""
    record: dict[str, Any] = read_record(measurements.parent / "models" / "lenet" / "training.json")
    return f"The LeNet that reads the digits is right on {record['test_accuracy']:.2%} of MNIST's test images."


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


COSTS = "reproduce.json"

FULL_CALL = "sd15_step.json"

_SOURCES = {"paper": "the paper", "published": "published", "ours": "ours"}


def targets_table(measurements: Path) -> str:
    """Each target: its claim, whose it is, and the minutes and memory of its full and its reduced run, where measured.

    The last row is of all of them one after the other.
    """
    rows = [
        [
            f"`{t.name}`",
            t.title,
            t.claim,
            _SOURCES[t.source],
            full(t.commands, measurements),
            reduced(t.commands, measurements),
        ]
        for t in TARGETS
    ]
    everything = [piece for target in TARGETS for piece in target.commands]
    rows.append(["all", "", "", "", full(everything, measurements), reduced(everything, measurements)])
    return _plain_markdown(["target", "shows", "claim", "whose", "full run", "reduced run"], rows)


def published_table(measurements: Path) -> str:
    """What the published functions gain in a step, in time for each number of pictures, and in bytes, beside both baselines."""
    rows = step_rows(measurements)
    times, sizes = (gains_by_batch(rows, quantity=quantity) for quantity in ("time", "bytes"))
    cells = [
        [*named, *(f"{gain:.2f}" for gain in times.loc[named]), f"{sizes.loc[named].iloc[0]:.2f}"]
        for named in times.index
    ]
    pictures = [f"time, {batch} picture{'s' * (batch > 1)}" for batch in times.columns]
    return _plain_markdown(["model", "baseline", *pictures, "bytes"], cells)


def full_size_table(measurements: Path) -> str:
    """A picture of Stable Diffusion's size, projected from the record of one call, published figures, and what is left out."""
    path = measurements / FULL_CALL
    if not path.exists():
        return f"The record {path.name} is not there yet; `cipherdm bench full-call` makes it."
    # Only this table needs them, which bring the whole library along.
    from cipherdm.views.networks import PARTS

    from .sd15 import summary
    from .sd15_picture import LEFT_OUT, Picture, full_size_frame

    record = read_record(path)
    rows = [
        [
            name,
            row["what"],
            *("-" if row[part] != row[part] else f"{row[part]:.2f}" for part in PARTS),
            f"{row['hours']:.2f}",
            f"{row['GB']:,.0f}",
        ]
        for name, row in full_size_frame(record).iterrows()
    ]
    header = ["over", "network", *(f"{part}, h" for part in PARTS), "h", "GB"]
    return (
        f"{summary(record)}\n\nFrom that call, for a picture of {Picture().steps} steps with classifier-free guidance, "
        f"{Picture().calls} calls, with the keys and values of each of two prompts computed once:\n\n"
        f"{_plain_markdown(header, rows)}\n\nNot in these hours: {'; '.join(LEFT_OUT)}."
    )


def full(pieces: Sequence[Command], measurements: Path) -> str:
    """ "12 min, 2.1 GiB": what the runs behind committed records took, "> 12 min" if a record holds a part of its time."""
    paths = [measurements / f"{piece.name}.json" for piece in pieces]
    records = [read_record(path) for path in paths if path.exists()]
    whole = [seconds(record) for record in records]
    known = [
        (took or least_seconds(record), (record.get("run") or {}).get("memory") or parties_memory(record))
        for took, record in zip(whole, records, strict=True)
    ]
    known = [(took, memory) for took, memory in known if took]
    text = _took(known, len(pieces) - len(known))
    in_part = any(least_seconds(record) and not took for took, record in zip(whole, records, strict=True))
    return f"> {text}" if in_part else text


def reduced(pieces: Sequence[Command], measurements: Path) -> str:
    """The same of reduced runs, from the record of `cipherdm reproduce --costs`."""
    path = measurements / COSTS
    rows = read_record(path)["rows"] if path.exists() else []
    known = {row["piece"]: row for row in rows if row["reduced"]}
    mine = [known[piece.name] for piece in pieces if piece.name in known]
    return _took([(row["seconds"], row["memory"]) for row in mine], len(pieces) - len(mine))


def seconds(record: dict[str, Any]) -> float | None:
    """How long the run took that made a record: as `cipherdm reproduce` or the command measured it; None if neither did."""
    run = record.get("run") or {}
    return run.get("seconds") or record["environment"].get("process_seconds") or record.get("seconds")


def least_seconds(record: dict[str, Any]) -> float:
    """Seconds that the parties computed for a record, as far as it holds them: less than the run took. 0 if it holds none."""
    rows = record.get("rows", [])
    if "cost" in record:  # of `cipherdm sample`
        return record["cost"]["seconds"]
    if rows and "at_once" in rows[0]:  # of steps: each is run once more to warm up, and once for its memory
        return sum(row["seconds"] * row["at_once"] * (row["repetitions"] + 2) for row in rows)
    if rows and "ms" in rows[0]:
        # The largest sizes are run once, whatever the repetitions.
        counts = [1 if row.get("elements", 0) >= 1_000_000 else record["repetitions"] for row in rows]
        return sum(row["ms"] * count for row, count in zip(rows, counts, strict=True)) / 1000
    return sum(row.get("seconds", 0.0) for row in rows)


def parties_memory(record: dict[str, Any]) -> int:
    """Three times the most that a party's process held, in bytes; 0 if the record does not say it."""
    found = [record.get("peak_memory", 0), record.get("peak_memory_bytes", 0)]
    found += [row.get("peak_memory", 0) for row in record.get("rows", [])]
    return 3 * max(max(value, default=0) if isinstance(value, list | tuple) else value for value in found)


def _took(known: list[tuple[float, int]], missing: int) -> str:
    if not known:
        return "not timed"
    minutes, memory = sum(took for took, _ in known) / 60, max(memory for _, memory in known) / 2**30
    text = f"{minutes:.0f} min" if minutes >= 1.5 else f"{60 * minutes:.0f} s"
    text += f", {memory:.1f} GiB" if memory else ""
    return text + (f", and {missing} not timed" if missing else "")


def _plain_markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES: dict[str, Callable[[Path], str]] = {
    "models": models_table,
    "candidates": candidates_table,
    "classifier": classifier_sentence,
    "quality": quality_table,
    "captions": captions_table,
    "prompts": prompts_table,
    "step": step_table,
    "summary": summary_table,
    "step_batches": step_batches_table,
    "ladder": ladder_table,
    "distilled": distilled_table,
    "blocks": blocks_table,
    "linear": linear_table,
    "rings": rings_table,
    "activations": activations_table,
    "targets": targets_table,
    "published": published_table,
    "full_size": full_size_table,
}
