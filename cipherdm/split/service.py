"""The server of a split training: it admits clients by certificate, and mixes one batch of each into every step."""

import json
import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc

from ..engine.rpc import add_service
from ..engine.wire import GRPC_OPTIONS
from ..errors import CipherDMError
from ..hosts.certificates import caller_of
from ..hosts.channels import keepalive_options
from ..hosts.refusals import MOST_REASON, shown
from . import split_pb2 as pb
from .client import Client, common_hash
from .config import SERVER, Side
from .features import Features, tensor_message
from .trainer import Trainer

_LOOK = 0.1  # seconds between two looks for what has happened while waiting
_AHEAD = 4  # batches of a client that wait here: enough to hide its pauses, and few enough to bound the memory
_CHECKPOINT = 120.0  # seconds between two checkpoints


class Seat:
    """A client's place in the training: the batches that have come, the answers to them, and why there are no more."""

    def __init__(self) -> None:
        self.joined, self.over = threading.Event(), threading.Event()
        self.batches: queue.Queue[Features] = queue.Queue(_AHEAD)
        self.answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.left = ""

    def leave(self, why: str) -> None:
        """Note why no batch will come any more, if nothing is noted yet, and end the answers."""
        self.left = self.left or why
        self.answers.put(None)


class SplitService:
    """Answers to clients' calls, and the steps taken with their batches; see split.proto.

    Args:
        config: of the server.
        client: what a client with these settings sends, to check what comes.
        trainer: the ControlNet in training.
    """

    def __init__(self, config: Side, client: Client, trainer: Trainer) -> None:
        self._config, self._trainer, self._lock = config, trainer, threading.Lock()
        self._hash, self._layout = common_hash(client.pipeline), client.layout()
        schedule = len(client.pipeline.scheduler.alphas_cumprod)
        self._timesteps = range(config.training.defences.timesteps_from, schedule)
        self.seats = {name: Seat() for name in config.training.clients}

    def Train(self, requests, context):
        for progress, _ in self._answers(requests, context):
            yield progress

    def Exchange(self, requests, context):
        for progress, gradient in self._answers(requests, context):
            yield pb.Gradient(progress=progress, gradient=gradient)

    def train(self, stopped: threading.Event) -> dict[str, list[Features]]:
        """Take the steps that are left, with one batch of every client each; return the captured batches by client.

        Raises:
            CipherDMError: a client does not come, leaves, or sends what cannot be used, a step fails, or `stopped` is set. All
                clients are told the reason.
        """
        captured = {name: [] for name in self.seats}
        try:
            for name, seat in self.seats.items():
                self._wait(
                    seat, stopped, f"the client {name} has not come", self._config.timeouts.start, seat.joined.wait
                )
            saved = time.monotonic()
            while not self._trainer.finished:
                batches = []
                for name, seat in self.seats.items():
                    what, limit = f"the client {name} has sent nothing", self._config.timeouts.receive
                    batches.append(self._wait(seat, stopped, what, limit, lambda seconds, of=seat: _next(of, seconds)))
                    captured[name] += batches[-1:] if len(captured[name]) < self._config.captured else []
                loss, gradient = self._trainer.take_step(Features.joined(batches))
                step, batch = self._trainer.step, self._config.training.batch
                for row, seat in enumerate(self.seats.values()):
                    rows = slice(row * batch, (row + 1) * batch)
                    own = None if gradient is None else tensor_message("h", gradient[rows])
                    seat.answers.put((pb.Progress(step=step, loss=loss), own))
                if time.monotonic() - saved > _CHECKPOINT:
                    self.save()
                    saved = time.monotonic()
        except CipherDMError as error:
            for seat in self.seats.values():
                seat.answers.put(error)
            raise
        finally:
            for seat in self.seats.values():
                seat.over.set()
                seat.answers.put(None)
        return captured

    def save(self) -> None:
        """Write the checkpoint. There is none of conventional split learning, where clients have a part of the network."""
        if self._config.training.structure != "conventional":
            self._trainer.save(self._config.folder / "checkpoint.pt", self.about)

    @property
    def about(self) -> str:
        """What a checkpoint depends on."""
        return json.dumps([self._hash, str(self._config.training), vars(self._config.optimisation)])

    def _wait(self, seat: Seat, stopped: threading.Event, what: str, limit: float, look):
        """Return what `look(seconds)` finds within the limit, while nobody leaves."""
        deadline = time.monotonic() + limit
        while not (found := look(_LOOK)):
            if stopped.is_set():
                self.save()
                raise CipherDMError(
                    f"the server was stopped at step {self._trainer.step} of {self._config.training.steps}: start all sides "
                    "again to go on."
                )
            if seat.left:
                raise CipherDMError(f"{seat.left}: start all sides again to go on from the last checkpoint.")
            if time.monotonic() > deadline:
                raise CipherDMError(f"{what} within {limit:g} s: see whether it runs, and start all sides again.")
        return found

    def _answers(self, requests: Iterator["pb.Upload"], context: grpc.ServicerContext) -> Iterator[tuple]:
        name = caller_of(context.auth_context().get("x509_pem_cert", [b""])[0], (SERVER,))
        seat = self.seats.get(name)
        if seat is None:
            who = shown(name) or "a certificate without a name"
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{who} is no client of this training")
        self._check(name, next(requests, pb.Upload()).join, context)
        with self._lock:
            taken, _ = seat.joined.is_set(), seat.joined.set()
        if taken:
            reason = f"{name} is in this training already: give each client a name of its own"
            context.abort(grpc.StatusCode.ALREADY_EXISTS, reason)
        context.add_callback(lambda: seat.leave(f"the client {name} has gone away"))
        yield pb.Progress(step=self._trainer.step), None
        threading.Thread(target=self._read, args=(name, seat, requests), daemon=True).start()
        while (answer := seat.answers.get()) is not None:
            if isinstance(answer, CipherDMError):
                context.abort(grpc.StatusCode.ABORTED, shown(str(answer), MOST_REASON))
            yield answer

    def _check(self, name: str, join: "pb.Join", context: grpc.ServicerContext) -> None:
        training = self._config.training
        if differing := training.differing(join.training):
            reason = f"{name} and the server differ in {', '.join(differing)}: give both files one section [training]"
        elif join.model != self._hash:
            reason = (
                f"{name} has another autoencoder, text model, first convolution or noise schedule than the server: give both "
                "sides one model"
            )
        else:
            return
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)

    def _read(self, name: str, seat: Seat, requests: Iterator["pb.Upload"]) -> None:
        """Take a client's batches as they come, as long as there is room for them."""
        try:
            for upload in requests:
                batch = Features.read(upload.batch, self._layout, self._config.training.batch, self._timesteps)
                while not seat.over.is_set():
                    try:
                        seat.batches.put(batch, timeout=_LOOK)
                        break
                    except queue.Full:
                        continue
        except CipherDMError as error:
            seat.left = f"the client {name} sent what cannot be used: {str(error).rstrip('.')}"
        except Exception:  # gRPC's own, when the call has ended; the callback notes it
            return


def _next(seat: Seat, seconds: float) -> Features | None:
    try:
        return seat.batches.get(timeout=seconds)
    except queue.Empty:
        return None


def listen(service: SplitService, config: Side) -> grpc.Server:
    """Let a service answer at the server's address. Raises CipherDMError if it cannot listen there."""
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=2 * len(config.training.clients) + 8),
        options=(*GRPC_OPTIONS, *keepalive_options(config.timeouts)),
    )
    add_service(server, pb.DESCRIPTOR, service)
    try:
        server.add_secure_port(config.address, config.identity.to_serve())
    except (RuntimeError, ValueError) as error:
        raise CipherDMError(f"the server cannot listen on {config.address}: {error}") from None
    server.start()
    return server
