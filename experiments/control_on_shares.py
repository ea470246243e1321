"""What a ControlNet adds to a picture that three parties draw: bytes and messages, and how near it is to plaintext."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import cipherdm as cdm
from cipherdm.likeness import psnr
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import named

from .commands import RecordOption, finish, record_path, silent
from .markdown import duration, markdown, megabytes, records_named
from .target import PROMPT_MODEL, Check, Command, Records, Target, Value
from .training.classifier import load_classifier
from .training.control.recipe import SD_MINI_CONTROL
from .training.control.score import HeldOut
from .training.sd_mini.score import READER

CONTROLLED = SD_MINI_CONTROL.name
SETS = ("fast", "fast-rings")


def run(steps: int = 20, progress: Progress = silent) -> dict[str, Any]:
    """Draw one picture with and without a ControlNet under each set on three parties, with guidance 4; return the record.

    "psnr" is that of the picture with the exact functions in plaintext, from the same noise.
    """
    rows = []
    for model in (PROMPT_MODEL, CONTROLLED):
        pipeline = cdm.load_pipeline(model)
        held_out = HeldOut.of(1, load_classifier(pipeline.unet.folder / READER), seed=3)
        asked: dict[str, Any] = {"prompts": [held_out.captions[0].text], "guidance_scale": 4.0, "steps": steps}
        asked |= {"scheduler": "ddim", "seed": 0}
        if model == CONTROLLED:
            asked["control"] = held_out.hints.numpy()
        exact = cdm.text_to_image(pipeline, None, **asked).images
        for name in SETS:
            progress(len(rows), 2 * len(SETS), f"{model}, {name}")
            with cdm.LocalCluster() as cluster:
                drawn = cdm.text_to_image(pipeline, cluster, protocols=named(name), granularity="step", **asked)
            near = psnr(drawn.images, exact)[0]
            rows.append({"model": model, "protocols": name, "psnr": near, **drawn.cost.totals()})
    return {"benchmark": "control-on-shares", "steps": steps, "rows": rows}


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each model and set."""
    return pd.DataFrame(record["rows"])[["model", "protocols", "seconds", "bytes", "sends", "psnr"]]


def shares_table(measurements: Path) -> str:
    """Return costs and likeness of each, as Markdown."""
    (record,) = records_named(measurements, "control_on_shares.json", "cipherdm bench control-on-shares")
    alone = {row["protocols"]: row["bytes"] for row in record["rows"] if row["model"] == PROMPT_MODEL}
    rows = [
        [row["model"], row["protocols"], duration(row["seconds"]), megabytes(row["bytes"]), f"{row['sends']:,}"]
        + [f"{row['bytes'] / alone[row['protocols']] - 1:+.0%}", f"{row['psnr']:.1f} dB"]
        for row in record["rows"]
    ]
    return markdown(["model", "protocols", "time", "MB", "messages", "more bytes", "PSNR"], rows)


TABLES = {"control_on_shares": shares_table}


def measure(
    steps: Annotated[int, typer.Option(help="Number of denoising steps.", min=1)] = 20, record: RecordOption = None
) -> None:
    """Measure a picture that three parties draw with a ControlNet, beside one without."""
    with ProgressBar("picture") as bar:
        found = run(steps, progress=bar)
    finish(record_path(record, "control_on_shares"), found, table(found))


def _more(protocols: str) -> Value:
    """How many times the bytes of a picture without a ControlNet one with it takes."""

    def value(records: Records) -> float:
        rows = {row["model"]: row for row in records["control_on_shares"]["rows"] if row["protocols"] == protocols}
        return rows[CONTROLLED]["bytes"] / rows[PROMPT_MODEL]["bytes"]

    return value


def _likeness(records: Records) -> float:
    rows = records["control_on_shares"]["rows"]
    return min(row["psnr"] for row in rows if row["model"] == CONTROLLED)


TARGET = Target(
    "control-on-shares",
    "A picture with a ControlNet on three parties",
    "a ControlNet that reads no prompt adds less than a third of the bytes",
    "ours",
    (Command("control_on_shares", ("bench", "control-on-shares"), (), ()),),
    (
        Check("bytes, with a ControlNet / without, fast", 1.3, 0, _more("fast"), 0, 2, bound="most"),
        Check("bytes, with a ControlNet / without, fast-rings", 1.3, 0, _more("fast-rings"), 0.05, 2, bound="most"),
        Check("PSNR on shares", 35, 0, _likeness, None, unit=" dB", bound="least"),
    ),
    order=106,
)
