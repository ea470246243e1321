"""Inspection of a party from outside: every call tried with somebody's certificate, and the shares on its disk.

For lessons and tests. The calls name nothing that exists, so one that is let through changes nothing; the party's log, and
its last error, tell of each attempt. The shares show what a stolen disk gives away.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import grpc
import numpy as np
import pandas as pd

from ..engine.wire import words_in
from ..errors import CipherDMError
from . import host_pb2 as pb
from .channels import connect
from .config import CallerConfig, HostConfig, RoleNames
from .roles import ALLOWED, roles_of
from .store import read_published

_NOTHING, _NO_RUN, _NO_SLOT = "/nothing", "0" * 32, 2**32 - 1  # names that no model, run or slot can have

_MESSAGES: Mapping[str, object] = {
    "Describe": pb.DescribeRequest(),
    "Status": pb.StatusRequest(),
    "Register": (pb.RegisterPiece(),),
    "Publish": pb.ModelVersion(name=_NOTHING, registration=_NO_RUN),
    "Remove": pb.ModelVersion(name=_NOTHING),
    "Request": (pb.RequestPiece(header=pb.RequestHeader(run=_NO_RUN, model=_NOTHING)),),
    "Slot": pb.SlotRequest(slot=_NO_SLOT),
    "Start": pb.StartRequest(slot=_NO_SLOT),
}

METHODS = tuple(method.rpartition("/")[2] for method in ALLOWED)
"""Names of the calls in the table of roles, without the service's name."""

DENIED, NOT_REACHED = "PERMISSION_DENIED", frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


def attempts(callers: Mapping[str, CallerConfig], rank: int = 1) -> pd.DataFrame:
    """Try each call as each caller.

    Args:
        callers: configuration of each caller, by the name of its row.
        rank: rank of the party that is called.

    Returns:
        A row per caller and a column per method, with the gRPC status that ended the call: "OK" for an answer, `DENIED`
        where the table of roles denies, one of `NOT_REACHED` where there was no connection, and others where the handler
        refused the message.
    """
    rows = {}
    for name, caller in callers.items():
        channel, stub = connect(caller, rank)
        with channel:
            calls = [(getattr(stub, method), _MESSAGES[method], caller.timeouts.connect) for method in METHODS]
            errors = [_error_of(*call) for call in calls]
        rows[name] = ["OK" if error is None else error.code().name for error in errors]
    return pd.DataFrame.from_dict(rows, orient="index", columns=METHODS)


def table_of_roles(names: Iterable[str], roles: RoleNames) -> pd.DataFrame:
    """Return the table of roles: a row per common name and a column per method, true where the call is allowed."""
    rows = {name: [bool(roles_of(name, roles) & may) for may in ALLOWED.values()] for name in names}
    return pd.DataFrame.from_dict(rows, orient="index", columns=METHODS)


def register_unchecked(caller: CallerConfig, manifest: pb.Manifest, rank: int = 1) -> str:
    """Send one party a manifest as it is, without the check that `RemoteCluster.register` makes at the owner's side.

    Returns:
        The party's answer: its status and reason, or "accepted".
    """
    channel, stub = connect(caller, rank)
    with channel:
        error = _error_of(stub.Register, (pb.RegisterPiece(manifest=manifest),), caller.timeouts.upload)
    return "accepted" if error is None else f"{error.code().name}: {error.details()}"


def _error_of(call: Callable, message: object, timeout: float) -> grpc.RpcError | None:
    """Return the error that ends a call with a message, or with a stream of messages, or None."""
    try:
        answer = call(iter(message) if isinstance(message, tuple) else message, timeout=timeout)
        if isinstance(answer, Iterator):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error
    return None


def words_on_disk(host: HostConfig, model: str, value: str) -> np.ndarray:
    """Read a party's share of one of a model's secret values from its folder. The party may be running or not.

    Args:
        host: configuration of the party.
        model: name of a registered model.
        value: name of one of its owner's arrays.

    Returns:
        uint64 [elements, 2]: the party's own component of each number, and the next party's. The three different
        components add up to the value times 2^fraction_bits.

    Raises:
        CipherDMError: there is no such model or value, or the value is public.
    """
    stored = read_published(host.state, model)[0]
    declared = {item.name: item for item in stored.manifest.values}
    if value not in declared or declared[value].public:
        raise CipherDMError(
            f"{model} has no secret value {value!r}; there is: {', '.join(sorted(declared)) or 'none'}."
        )
    return words_in(piece.chunk for piece in stored.pieces() if piece.name == value)
