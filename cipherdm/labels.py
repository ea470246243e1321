"""Labels as they are written on a command line."""

from .errors import CipherDMError


def parse_labels(text: str | None) -> list[int] | None:
    """ "0-2,7" to [0, 1, 2, 7]. Raises CipherDMError if it is something else."""
    if text is None:
        return None
    labels = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise CipherDMError(f"cannot read the labels {text!r}: write numbers and ranges, such as 0-9 or 1,1,7.")
        labels += range(int(first), int(last if dash else first) + 1)
    return labels
