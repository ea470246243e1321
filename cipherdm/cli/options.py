"""Options that several commands share."""

from typing import Annotated

import typer

from ..errors import CipherDMError

# Written out, because importing the sets brings JAX, which `cipherdm --help` does without. A test compares.
PROTOCOL_NAMES = ("direct", "cipherdm", "cipherdm-corrected", "puma", "fast", "fast-kernels", "fast-guarded")
SETS = "Protocol set: " + ", ".join(PROTOCOL_NAMES)
ModelOption = Annotated[str, typer.Option(help="Name in data/models, or path of a diffusers folder.")]
ModelArgument = Annotated[str, typer.Argument(help="Name in data/models, or path of a diffusers folder.")]
ProtocolsOption = Annotated[str, typer.Option(help=f"{SETS}.")]
SchedulerOption = Annotated[
    str,
    typer.Option(help="Scheduler: ddim, ddpm or dpmsolver++. clip_sample of the model's scheduler is not followed."),
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
