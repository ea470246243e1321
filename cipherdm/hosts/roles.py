"""Roles of callers, and one table of the calls that each may make, looked up before a message is read or a handler runs.

A call that is not in the table is denied.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from itertools import chain
from typing import Any

import grpc

from .certificates import caller_of
from .config import PARTY_NAMES, HostConfig, RoleNames

# Calls of one caller at a time beside its runs, and calls of all clients and owners beside runs in hand. What is kept stays
# for operators and party 0, whatever clients and owners do.
_MORE_OF_ONE, _MORE_OF_ALL, _KEPT = 4, 8, 16
_LOOK = 0.2  # seconds between two looks for calls whose time is over


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
    """Return the name in the caller's certificate; empty if it has none, see `name_of`, or if its time is over."""
    pem = context.auth_context().get("x509_pem_cert", [b""])[0]
    return caller_of(pem, PARTY_NAMES)


class Deadlines:
    """Ends calls whose caller lets a thread wait for too long, for a message to come or to be taken.

    It calls `ended(context)` for each call that it ends.
    """

    def __init__(self, ended: Callable[[grpc.ServicerContext], None]):
        self._ended = ended
        self._due: dict[grpc.ServicerContext, float] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def set(self, context: grpc.ServicerContext, seconds: float | None) -> None:
        """End a call in so many seconds from now, or let it go on with None."""
        self._due.pop(context, None)
        if seconds is not None:
            self._due[context] = time.monotonic() + seconds

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK)
            now = time.monotonic()
            for context, due in self._due.copy().items():
                if now > due and self._due.pop(context, None) is not None:
                    self._ended(context)
                    context.cancel()


class RoleCheck(grpc.ServerInterceptor):
    """Interceptor that ends a call with PERMISSION_DENIED unless `ALLOWED` has a role of its caller, and one too many as well.

    That is before a message of the call is read. It calls `denied(caller, method)` for each call that it denies.
    """

    def __init__(self, host: HostConfig, denied: Callable[[str, str], None], deadlines: Deadlines):
        self._host, self._denied, self._deadlines = host, denied, deadlines
        self._calls: Counter[str] = Counter()
        self._guests = 0
        self._lock = threading.Lock()

    @property
    def threads(self) -> int:
        """Number of threads that answer all calls that may be in hand: each holds one."""
        return self._most_of_all + 2 * self._host.limits.runs + _KEPT

    @property
    def _most_of_all(self) -> int:
        return self._host.limits.runs + self._host.limits.queue + _MORE_OF_ALL

    def intercept_service(self, continuation, handler_call_details):
        method = handler_call_details.method
        handler = continuation(handler_call_details) if method in ALLOWED else None
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(lambda _, context: self._check(context, method))

        # Each request is read as a stream: of a single message gRPC would read all before it asks who sent it.
        def answer(requests: Iterator, context: grpc.ServicerContext) -> Any:
            with self._admitted(method, requests, context) as messages:
                if handler.request_streaming:
                    return handler.stream_unary(messages, context)
                return handler.unary_unary(next(messages), context)

        def answers(requests: Iterator, context: grpc.ServicerContext) -> Iterator:
            with self._admitted(method, requests, context) as messages:
                yield from handler.stream_stream(messages, context)

        codecs = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(answers, *codecs)
        return grpc.stream_unary_rpc_method_handler(answer, *codecs)

    @contextmanager
    def _admitted(self, method: str, requests: Iterator, context: grpc.ServicerContext) -> Iterator[Iterator]:
        """Count a call, if there may be one more, until the block is left; give its messages, the first of which is there."""
        caller, roles = self._check(context, method)
        guest, timeouts = not roles & {Role.PARTY, Role.OPERATOR}, self._host.caller.timeouts
        most = self._host.limits.runs_per_client + _MORE_OF_ONE
        with self._lock:
            full = (guest and self._guests >= self._most_of_all) or (
                Role.PARTY not in roles and self._calls[caller] >= most
            )
            self._calls[caller] += not full
            self._guests += guest and not full
        if full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "there are too many calls in hand; try again later")
        try:
            # An owner's first message has all programs; any other is a header.
            self._deadlines.set(context, timeouts.upload if method.endswith("/Register") else timeouts.connect)
            first = next(requests, None)
            self._deadlines.set(context, None)
            if first is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
            yield chain((first,), requests)
        finally:
            self._deadlines.set(context, None)
            with self._lock:
                self._calls[caller] -= 1
                self._guests -= guest

    def _check(self, context: grpc.ServicerContext, method: str) -> tuple[str, frozenset[Role]]:
        """Return the caller and its roles, if one of them may call the method."""
        caller = caller_name(context)
        roles = roles_of(caller, self._host.roles)
        if not roles & ALLOWED.get(method, frozenset()):
            self._denied(caller, method)
            known = " or ".join(sorted(role.value for role in roles)) or "nobody that this party knows"
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{caller or 'a certificate without a name'} is {known} and may not call {method.rpartition('/')[2]}",
            )
        return caller, roles
