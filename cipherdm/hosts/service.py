"""Calls that a party's host answers; see host.proto. `roles` has checked the caller before any of this runs."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc

from ..errors import CipherDMError
from . import host_pb2 as pb
from .config import HostConfig, agreement_of
from .refusals import MOST_REASON, Cancelled, Refused, TooMuch, shown
from .request_queue import Requests
from .roles import Deadlines, caller_name
from .store import ModelStore, StoredModel
from .worker import Slots, memory_of


class EventLog:
    """Log of the party `rank` for its operator: one line of JSON per event on standard error, never a share, value or input.

    It keeps the last error for `status`.
    """

    def __init__(self, rank: int):
        self._rank = rank
        self._lock = threading.Lock()
        self.last_error, self.last_error_time = "", ""

    def __call__(self, event: str, *, level: str = "info", **about: str | int | float) -> None:
        """Write one line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now, "level": level, "party": self._rank, "event": event}
        # Eight characters of a run's name find it in all three logs, and do not let a reader of a log name the run. What
        # callers write is cut before anything is made of it.
        about = {name: value[:8] if name == "run" else value for name, value in about.items()}
        line |= {name: shown(value) if isinstance(value, str) else value for name, value in about.items()}
        with self._lock:
            if level == "error":
                self.last_error, self.last_error_time = f"{event}: {line.get('reason', '')}", now
            print(json.dumps(line), file=sys.stderr, flush=True)


class HostService:
    """Service of the party `host`, whose processes have their sockets and logs in `folder`."""

    def __init__(self, host: HostConfig, folder: Path, log: EventLog):
        self._host, self._log = host, log
        self._started = time.monotonic()
        self._versions = metadata.version("cipherdm"), metadata.version("spu")
        self._store = ModelStore(host.state, host.limits)
        for name, reason in self._store.aside.items():
            log("model set aside", level="error", model=name, reason=reason)
        self._slots = Slots(host, folder)
        self._requests = Requests(host, agreement_of(*self._versions, host.agreement), self._store, self._slots)
        self._done = self._failed = 0
        self.deadlines = Deadlines(self._late)

    def close(self) -> None:
        """End all processes and connections."""
        self._slots.close()
        self._requests.close()

    def Describe(self, request, context):
        cipherdm, spu = self._versions
        return pb.Description(
            rank=self._host.rank,
            cipherdm_version=cipherdm,
            spu_version=spu,
            configuration=self._host.agreement,
            models=[_description(model) for model in self._store.all()],
        )

    def Status(self, request, context):
        return pb.HostStatus(
            uptime_seconds=time.monotonic() - self._started,
            memory_bytes=memory_of(),
            requests=len(self._requests),
            processes=self._slots.states(),
            done=self._done,
            failed=self._failed,
            last_error=self._log.last_error,
            last_error_time=self._log.last_error_time,
            warnings=self.warnings(),
        )

    def Register(self, request_iterator, context):
        owner = caller_name(context)
        self.deadlines.set(context, self._host.caller.timeouts.upload)
        with self._reported(context, "registration refused", caller=owner):
            first = next(request_iterator)
            if first.WhichOneof("piece") != "manifest":
                raise CipherDMError("a registration begins with a manifest.")
            if first.manifest.ByteSize() > self._host.limits.model_bytes:
                raise TooMuch(f"the programs are larger than {self._host.limits.model_bytes} bytes, the limit")
            self._store.stage(owner, first.manifest, (piece.share for piece in request_iterator))
            self.deadlines.set(context, None)
            self._log("model uploaded", caller=owner, model=first.manifest.name)
        return pb.Empty()

    def Publish(self, request, context):
        owner = caller_name(context)
        with self._reported(context, "publication refused", caller=owner, model=request.name):
            self._store.publish(owner, request.name, request.registration)
            self._log("model published", caller=owner, model=request.name, registration=request.registration)
        return pb.Empty()

    def Remove(self, request, context):
        owner = caller_name(context)
        with self._reported(context, "removal refused", caller=owner, model=request.name):
            self._store.remove(owner, request.name)
            self._log("model removed", caller=owner, model=request.name)
        return pb.Empty()

    def Request(self, request_iterator, context):
        client, begin, timeouts = caller_name(context), time.monotonic(), self._host.caller.timeouts
        self.deadlines.set(context, timeouts.upload)
        try:
            header = next(request_iterator).header
            about = {"caller": client, "run": header.run, "model": header.model}
            with self._reported(context, "run failed", **about):
                self._log("run asked for", **about)
                uploaded = partial(self.deadlines.set, context, None)
                for event in self._requests.serve(client, header, request_iterator, context.add_callback, uploaded):
                    # Who does not take what has come holds a slot, and counts as cut off just as who shows no sign of life.
                    progress = event.WhichOneof("event") != "output"
                    self.deadlines.set(context, 2 * timeouts.keepalive if progress else timeouts.upload)
                    yield event
                    self.deadlines.set(context, None)
        except BaseException:
            self._failed += 1
            raise
        self._done += 1
        self._log("run done", seconds=round(time.monotonic() - begin, 3), **about)

    def Slot(self, request, context):
        with self._reported(context, "run refused", slot=request.slot):
            return pb.SlotState(generation=self._requests.generation(request.slot, request.agreement))

    def Start(self, request, context):
        run = next((member.run for member in request.members), "")
        with self._reported(context, "run not started", run=run, slot=request.slot):
            return self._requests.start(request, context.is_active)

    def warnings(self) -> list[str]:
        """Return what an operator should see to soon: certificates that end, or that were replaced by ones that do not do."""
        found = []
        for identity in (self._host.caller.identity, self._host.link_identity):
            try:
                found.append(identity.check(f"party{self._host.rank}"))
            except (CipherDMError, OSError) as error:
                found.append(shown(str(error), MOST_REASON))
        return list(filter(None, found))

    def denied(self, caller: str, method: str) -> None:
        """Log a call that the table of roles does not allow."""
        self._log("call denied", level="warning", caller=caller, method=method.rpartition("/")[2])

    def _late(self, context: grpc.ServicerContext) -> None:
        self._log("call ended", level="warning", caller=caller_name(context), reason="its caller let it wait too long")

    @contextmanager
    def _reported(self, context: grpc.ServicerContext, event: str, **about: str | int) -> Iterator[None]:
        """Log an error of ours, and end the call with its status."""
        try:
            yield
        except CipherDMError as error:
            # A client that goes away is no fault of the party, and not the last error that `status` shows.
            level = "warning" if isinstance(error, Cancelled) else "error"
            self._log(event, level=level, reason=str(error), **about)
            # Callers print this, and names that others chose stand in it.
            code = error.code if isinstance(error, Refused) else Refused.code
            context.abort(code, shown(str(error), MOST_REASON))


def _description(model: StoredModel) -> pb.Model:
    manifest = model.manifest
    alike = ("name", "registration", "fraction_bits", "exp", "inputs", "outputs", "about")
    fields = {field: getattr(manifest, field) for field in alike}
    return pb.Model(
        owner=model.owner, digest=model.digest, calls=len(manifest.calls), together=manifest.together.requests, **fields
    )
