"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CipherDMError
from ..files import check_writable

# Written out, because importing the sets brings JAX, which `cipherdm --help` does without. A test compares.
PROTOCOL_NAMES = ("direct", "cipherdm", "cipherdm-corrected", "puma", "nimbus", "mpcformer", "ditto") + (
    "fast",
    "fast-64",
    "fast-rings",
    "fast-guarded",
)
SETS = "Protocol set: " + ", ".join(PROTOCOL_NAMES)
ModelOption = Annotated[str, typer.Option(help="Name in data/models, or path of a diffusers folder.")]
ModelArgument = Annotated[str, typer.Argument(help="Name in data/models, or path of a diffusers folder.")]
ProtocolsOption = Annotated[str, typer.Option(help=f"{SETS}.")]
# Written out, as the names of sets are. A test compares.
SCHEDULER_NAMES = ("ddpm", "ddim", "dpmsolver++", "euler", "euler-ancestral", "lcm", "tcd", "edm", "consistency")
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        help=f"Scheduler: {', '.join(SCHEDULER_NAMES)}; the model's own by default, but ddim in the place of ddpm. "
        "clip_sample is not followed."
    ),
]

StepsOption = Annotated[
    int | None, typer.Option(help="Denoising steps; 20 by default, or those of the model's sampling.json.")
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        help="Weight of the prompt; 1 is no guidance, at half the cost. 7.5 by default, or that of the model's sampling.json."
    ),
]
ConditioningOption = Annotated[
    float, typer.Option(help="Factor of what a ControlNet adds, from 0 on; calibration for fast is for one.")
]
StartOption = Annotated[
    int, typer.Option(help="Number of first steps to leave out: noise is taken for the sample before the next one.")
]
ReuseOption = Annotated[
    int, typer.Option(help="One step of so many calls the whole U-Net; the others reuse its features.")
]
FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".webp")
"""Suffixes of image files that commands write."""


def writable_image(out: Path | None) -> Path | None:
    """Return the path of an image file to write, if one is given. Raises CipherDMError if it cannot be written."""
    if out is not None:
        check_writable(out, FORMATS)
    return out


def _with_record(out: Path) -> Path:
    writable_image(out)
    check_writable(out.with_suffix(".json"))
    return out


def writable(file: Path | None) -> Path | None:
    """Return the path of a file to write, if one is given. Raises CipherDMError if it cannot be written."""
    if file is not None:
        check_writable(file)
    return file


# Checked when the command line is read, so before any work whose result would be lost.
OutOption = Annotated[
    Path, typer.Option(help="Image file to write; a record goes beside it as .json.", callback=_with_record)
]
ScoresOption = Annotated[
    Path | None, typer.Option(help="JSON file for the scores, if they are to be recorded.", callback=writable)
]


def parse_labels(text: str | None) -> list[int] | None:
    """Read labels: "0-2,7" gives [0, 1, 2, 7]. Raises CipherDMError for any other text."""
    if text is None:
        return None
    labels = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise CipherDMError(f"cannot read the labels {text!r}: write numbers and ranges, such as 0-9 or 1,1,7.")
        if dash and int(last) < int(first):
            raise CipherDMError(f"cannot read the labels {text!r}: write the smaller number of a range first.")
        labels += range(int(first), int(last if dash else first) + 1)
    return labels
