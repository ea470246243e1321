"""Three hosts, as an owner, a client or an operator calls them."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import grpc
import numpy as np
from spu import api, libspu

from ..engine import CostReport, EngineConfig, Spec
from ..engine.config import PARTIES
from ..engine.costs import CostBook
from ..engine.party_pb2 import SharePiece
from ..engine.wire import PartyError, checked_array, follow, gather, pairs_of, reconstruct, share_of, shared, spread
from ..errors import CipherDMError
from ..progress import Progress
from . import host_pb2 as pb
from .channels import connect
from .config import CallerConfig, agreement_of, load_caller
from .manifest import engine_of
from .model import Model
from .refusals import MOST_REASON, shown


@dataclass(frozen=True, eq=False)
class Answer:
    """Answer to a client's request.

    Attributes:
        outputs: arrays by name.
        cost: cost of the run for the parties; `seconds` is wall time from the upload on, waiting included.
    """

    outputs: Mapping[str, np.ndarray]
    cost: CostReport


class RemoteCluster:
    """Three hosts, in the role that the configuration's certificate has. Use it as a context manager, or call `close`.

    Several threads may make requests at once. A party that was away is connected to again at the next call.

    Args:
        config: addresses of the parties and identity of the caller, or the TOML file that has them.
    """

    def __init__(self, config: CallerConfig | str | Path):
        self._config = config if isinstance(config, CallerConfig) else load_caller(config)
        connections = [connect(self._config, rank) for rank in range(PARTIES)]
        self._channels = tuple(channel for channel, _ in connections)
        self._stubs = tuple(stub for _, stub in connections)

    def __enter__(self) -> "RemoteCluster":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The parties then end and free this caller's runs."""
        for channel in self._channels:
            channel.close()

    def descriptions(self) -> tuple[pb.Description, ...]:
        """Return version, configuration and models of each party, by rank. Raises CipherDMError if one does not answer."""
        return tuple(self._all("Describe", pb.DescribeRequest()))

    def states(self) -> tuple[tuple[pb.Description, pb.HostStatus] | CipherDMError, ...]:
        """Return description and status of each party, or the error in their place, by rank. For operators and parties."""
        begun = self._begin("Describe", pb.DescribeRequest()), self._begin("Status", pb.StatusRequest())
        found = []
        for rank, calls in enumerate(zip(*begun, strict=True)):
            try:
                found.append(tuple(call.result() for call in calls))
            except grpc.RpcError as error:
                found.append(self._failure(rank, error))
        return tuple(found)

    def models(self) -> dict[str, pb.Model]:
        """Return the models that clients can ask for, by name.

        Raises:
            CipherDMError: the parties have different versions or configurations, or one does not answer.
        """
        return self._agreed()[1]

    def register(self, model: Model, progress: Progress | None = None) -> None:
        """Upload a model to all three parties; an earlier one of the same name is replaced. For owners.

        Each party gets its share of the values, and all get the programs and the plan. The owner may leave afterwards.

        Raises:
            CipherDMError: the model is refused, or a party is gone; an earlier model of this name is then still there.
        """
        self._agreed()
        registration = uuid.uuid4().hex
        manifest = model.manifest(registration)
        values = [
            (name, checked_array(name, array, model.engine), public)
            for arrays, public in ((model.values, False), (model.public, True))
            for name, array in arrays.items()
        ]
        io = api.Io(PARTIES, model.engine.runtime_config())

        def messages() -> Iterator[tuple[pb.RegisterPiece, ...]]:
            yield (pb.RegisterPiece(manifest=manifest),) * PARTIES
            for done, (name, array, public) in enumerate(values, 1):
                for parts in shared(io, name, array, public=public):
                    yield tuple(pb.RegisterPiece(share=piece) for piece in parts)
                if progress is not None:
                    progress(done, len(values), name)

        with self._named():
            spread(messages(), [stub.Register.future for stub in self._stubs])
        # Published only now that all three have it whole: shares of different uploads do not fit together. What the name
        # stood for before is there until all three have published, and goes with the second call.
        version = pb.ModelVersion(name=model.name, registration=registration)
        self._all("Publish", version)
        with suppress(CipherDMError):  # what a party keeps then goes with the next registration
            self._all("Publish", version)

    def remove(self, name: str) -> None:
        """Delete a model at all three parties. For owners."""
        self._all("Remove", pb.ModelVersion(name=name))

    def request(self, name: str, inputs: Mapping[str, np.ndarray], progress: Progress | None = None) -> Answer:
        """Have a registered model computed on this client's inputs. For clients.

        The inputs are split into shares here, each party gets its own, and the outputs' shares are put together here.

        Args:
            name: name of the model.
            inputs: arrays that the model declares, by name.
            progress: called as `progress(done, total, label)` after each call of the plan, and with 0 while waiting.

        Raises:
            CipherDMError: the inputs are not those that the model declares, a party refuses them, or one fails or is gone.
                The parties then forget the request.
        """
        agreement, model = self._agreed_model(name)
        engine = engine_of(model)
        header = pb.RequestHeader(run=uuid.uuid4().hex, model=name, digest=model.digest, agreement=agreement)
        outgoing = _shared(model, inputs, engine, header)
        start = time.perf_counter()
        streams = [stub.Request(iter(messages)) for stub, messages in zip(self._stubs, outgoing, strict=True)]
        book = CostBook()
        received: dict[str, tuple[list, list, list]] = {}  # pieces of each party's share
        with self._named():
            for rank, event in follow(streams):
                if event.HasField("output"):
                    received.setdefault(event.output.name, ([], [], []))[rank].append(event.output)
                elif event.HasField("progress"):
                    step = event.progress
                    book.add(rank, step.label, step.done)
                    if rank == 0 and progress is not None:
                        progress(step.done.index + 1, step.total, shown(step.label))
                elif progress is not None:
                    progress(0, 0, f"waiting, {event.waiting} before this one")
        io = api.Io(PARTIES, engine.runtime_config())
        outputs = {name: reconstruct(io, name, _shares_of(name, received)) for name in model.outputs}
        return Answer(outputs, book.report(time.perf_counter() - start))

    def model(self, name: str) -> pb.Model:
        """Return what the parties say of a model. Raises CipherDMError if they do not all have it, or say different things."""
        return self._agreed_model(name)[1]

    def _agreed_model(self, name: str) -> tuple[str, pb.Model]:
        agreement, models, faults = self._agreed()
        if name not in models:
            why, there = faults.get(name), ", ".join(sorted(models)) or "none yet"
            raise CipherDMError(
                f"there is no model {name!r} at all three parties{f': {why}' if why else ''}; there is: {there}."
            )
        return agreement, models[name]

    def _agreed(self) -> tuple[str, dict[str, pb.Model], dict[str, str]]:
        """Return the agreement of the three parties, the models that all three have, and why others are not among them."""
        first, *others = descriptions = self.descriptions()
        for rank, description in enumerate(descriptions):
            if description.rank != rank:
                raise CipherDMError(
                    f"party {description.rank} answers instead of party {rank}: correct [cluster] parties."
                )
        for field in ("cipherdm_version", "spu_version", "configuration"):
            found = [getattr(description, field) for description in descriptions]
            if len(set(found)) > 1:
                what = field.replace("_version", "").replace("configuration", "a configuration")
                raise CipherDMError(
                    f"the parties do not agree: they have {what} {', '.join(found)}. "
                    "Give them the same versions and, but for [identity] and [party], the same file."
                )
        agreement = agreement_of(first.cipherdm_version, first.spu_version, first.configuration)
        return agreement, *_common(descriptions)

    def _begin(self, method: str, request: object) -> list[grpc.Future]:
        """Begin a call to all parties that takes no work and is therefore answered soon."""
        settings = {"timeout": self._config.timeouts.connect, "wait_for_ready": True}
        return [getattr(stub, method).future(request, **settings) for stub in self._stubs]

    def _all(self, method: str, request: object) -> list:
        with self._named():
            return gather(self._begin(method, request))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raise the error of a party as one that names it."""
        try:
            yield
        except PartyError as failure:
            raise self._failure(failure.rank, failure.error) from None

    def _failure(self, rank: int, error: grpc.RpcError) -> CipherDMError:
        """Return the error to raise for a party's answer."""
        code, who = error.code(), f"party {rank} at {self._config.parties[rank]}"
        details = shown(error.details(), MOST_REASON).rstrip(".")
        gone = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        if gone or code == grpc.StatusCode.PERMISSION_DENIED:
            try:
                self._config.identity.check()
            except CipherDMError as problem:  # such as that it has expired meanwhile
                return CipherDMError(f"{who} ends the call ({details}). Our certificate does not do: {problem}")
        if gone:
            return CipherDMError(
                f"{who} is gone, does not answer, or does not accept our certificate ({details}). "
                "Try again when it is back."
            )
        if code == grpc.StatusCode.CANCELLED:
            return CipherDMError(
                f"{who} ended the call, as it does when an upload takes longer than [timeouts] upload."
            )
        if code == grpc.StatusCode.PERMISSION_DENIED:
            return CipherDMError(f"{who} denies permission: {details}.")
        return CipherDMError((details if details.startswith("party") else f"{who}: {details}") + ".")


def _common(descriptions: Sequence[pb.Description]) -> tuple[dict[str, pb.Model], dict[str, str]]:
    """Return the newest registration of each name that all three parties describe alike, and the faults of other names."""
    listed = [{(model.name, model.digest): model for model in party.models} for party in descriptions]
    models, faults = {}, {}
    for name in {name: None for party in listed for name, _ in party}:
        lacking = [rank for rank, party in enumerate(listed) if name not in {known for known, _ in party}]
        faults[name] = f"party {lacking[0]} lacks it" if lacking else "they have different registrations of it"
        for key in [key for key in listed[0] if key[0] == name and all(key in party for party in listed)]:
            different = [(a, b) for a, b in combinations(range(PARTIES), 2) if listed[a][key] != listed[b][key]]
            if different:
                faults[name] = f"{pairs_of(different)} describe it differently"
            else:
                models[name] = listed[0][key]
                del faults[name]
                break
    return models, faults


def _shares_of(name: str, received: Mapping[str, Sequence[Sequence[SharePiece]]]) -> list[libspu.Share]:
    """Return the three parties' shares of an output."""
    shares = []
    for rank, found in enumerate(received.get(name, [()] * PARTIES)):
        try:
            shares.append(share_of(found))
        except CipherDMError as error:
            raise CipherDMError(f"party {rank} has answered without {name!r}: {error}.") from None
    return shares


def _shared(
    model: pb.Model, inputs: Mapping[str, np.ndarray], engine: EngineConfig, header: pb.RequestHeader
) -> tuple[list[pb.RequestPiece], ...]:
    """Return the messages to each party: the header, and its shares of the inputs."""
    wanted = {item.name: Spec(tuple(item.shape), item.dtype) for item in model.inputs}
    wrong = sorted(set(inputs) ^ set(wanted))
    if wrong:
        what = "lacks the input" if wrong[0] in wanted else "has no input"
        raise CipherDMError(f"{model.name} {what} {wrong[0]!r}; it takes {', '.join(wanted) or 'none'}.")
    io = api.Io(PARTIES, engine.runtime_config())
    outgoing: tuple[list[pb.RequestPiece], ...] = tuple([pb.RequestPiece(header=header)] for _ in range(PARTIES))
    for name, spec in wanted.items():
        array = checked_array(name, inputs[name], engine)
        if (array.shape, str(array.dtype)) != (spec.shape, spec.dtype):
            raise CipherDMError(
                f"{name} is {array.dtype}{list(array.shape)}; {model.name} takes {spec.dtype}{list(spec.shape)}."
            )
        for parts in shared(io, name, array):
            for messages, piece in zip(outgoing, parts, strict=True):
                messages.append(pb.RequestPiece(share=piece))
    return outgoing
