"""Why a party refuses a call or fails at it, with the gRPC status that the caller gets; INVALID_ARGUMENT for other errors."""

import grpc

from ..errors import CipherDMError


class Refused(CipherDMError):
    """A call that ends with an error of a certain kind, `code`."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class Forbidden(Refused):
    """A caller asked for what it has no right to."""

    code = grpc.StatusCode.PERMISSION_DENIED


class TooMuch(Refused):
    """A caller asked for more than the party's limits, or its disk, allow."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Disagreement(Refused):
    """Parties, or a caller and a party, do not have the same versions, configuration or model."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class RunFailed(Refused):
    """A run that was begun cannot be finished."""

    code = grpc.StatusCode.ABORTED


class Cancelled(Refused):
    """The caller has gone away."""

    code = grpc.StatusCode.CANCELLED
