"""Roles of callers, and one table of the calls that each may make, looked up before any handler runs.

A call that is not in the table is denied.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import grpc

from .config import PARTY_NAMES, RoleNames


class Role(Enum):
    """Role of a certificate's holder. Party 0 also schedules runs."""

    SCHEDULER = "scheduler"
    PARTY = "party"
    OWNER = "model owner"
    CLIENT = "client"
    OPERATOR = "operator"


_EVERYONE = frozenset(Role)

ALLOWED: Mapping[str, frozenset[Role]] = {
    "/cipherdm.hosts.Host/Describe": _EVERYONE,
    "/cipherdm.hosts.Host/Status": frozenset({Role.OPERATOR, Role.PARTY}),
    "/cipherdm.hosts.Host/Register": frozenset({Role.OWNER}),
    "/cipherdm.hosts.Host/Publish": frozenset({Role.OWNER}),
    "/cipherdm.hosts.Host/Remove": frozenset({Role.OWNER}),
    "/cipherdm.hosts.Host/Request": frozenset({Role.CLIENT}),
    "/cipherdm.hosts.Host/Slot": frozenset({Role.SCHEDULER}),
    "/cipherdm.hosts.Host/Start": frozenset({Role.SCHEDULER}),
}
"""Roles that may call each method. Within a method an owner reaches its own models only, and a client its own run only."""


def roles_of(name: str, names: RoleNames) -> frozenset[Role]:
    """Return the roles of a common name: none for a name that the configuration does not have."""
    if name in PARTY_NAMES:
        return frozenset({Role.PARTY, Role.SCHEDULER} if name == PARTY_NAMES[0] else {Role.PARTY})
    members = {Role.OWNER: names.owners, Role.CLIENT: names.clients, Role.OPERATOR: names.operators}
    return frozenset(role for role, listed in members.items() if name in listed)


def caller_name(context: grpc.ServicerContext) -> str:
    """Return the common name of the caller's certificate; empty if it has none, or several."""
    names = context.auth_context().get("x509_common_name", [])
    return names[0].decode(errors="replace") if len(names) == 1 else ""


class RoleCheck(grpc.ServerInterceptor):
    """Interceptor that ends a call with PERMISSION_DENIED before its handler runs, unless `ALLOWED` has a role of its caller.

    It calls `denied(caller, method)` for each call that it ends.
    """

    def __init__(self, names: RoleNames, denied: Callable[[str, str], None]):
        self._names, self._denied = names, denied

    def intercept_service(self, continuation, handler_call_details):
        method = handler_call_details.method
        handler = continuation(handler_call_details) if method in ALLOWED else None
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(lambda _, context: self._check(context, method))
        kind = "_".join("stream" if way else "unary" for way in (handler.request_streaming, handler.response_streaming))
        behaviour = getattr(handler, kind)

        def checked(request: Any, context: grpc.ServicerContext) -> Any:
            self._check(context, method)
            return behaviour(request, context)

        return handler._replace(**{kind: checked})

    def _check(self, context: grpc.ServicerContext, method: str) -> None:
        caller = caller_name(context)
        roles = roles_of(caller, self._names)
        if not roles & ALLOWED.get(method, frozenset()):
            self._denied(caller, method)
            known = " or ".join(sorted(role.value for role in roles)) or "nobody that this party knows"
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{caller or 'a certificate without a name'} is {known} and may not call {method.rpartition('/')[2]}",
            )
