"""Errors with which a party refuses a call or fails at it, each with the gRPC status that the caller gets."""

import grpc

from ..errors import CipherDMError

MOST_REASON = 1000  # characters of a reason that a caller gets


def shown(text: str, most: int = 200) -> str:
    """Return a text that somebody else chose, cut, and with escapes for all that a terminal would obey."""
    cut = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


class Refused(CipherDMError):
    """Base of the errors that end a call with a status of their own, `code`."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class Forbidden(Refused):
    """The caller has no right to this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class TooMuch(Refused):
    """The call needs more than the party's limits, or its disk, allow."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Disagreement(Refused):
    """Parties, or a caller and a party, differ in versions, configuration or model."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class RunFailed(Refused):
    """A run that was begun cannot be finished."""

    code = grpc.StatusCode.ABORTED


class Cancelled(Refused):
    """The caller has gone away."""

    code = grpc.StatusCode.CANCELLED
