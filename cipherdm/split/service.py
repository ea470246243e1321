"""The server of a split training: it admits clients by certificate, and mixes one batch of each into every step."""

import queue
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple

import grpc
from diffusers import StableDiffusionPipeline

from ..engine.rpc import add_service
from ..engine.wire import GRPC_OPTIONS
from ..errors import CipherDMError
from ..hosts.certificates import caller_of
from ..hosts.channels import keepalive_options
from ..hosts.refusals import MOST_REASON, shown
from ..hosts.roles import Deadlines
from . import split_pb2 as pb
from .client import Client, common_hash
from .config import SERVER, Side
from .features import Features, tensor_message
from .trainer import Trainer

_LOOK = 0.1  # seconds between two looks for clients that have come
_CHECKPOINT, _LAST_WORDS = 120.0, 3.0  # seconds between two checkpoints, and for clients to get the reason of a failure
_AHEAD = 8 << 20  # bytes of batches that a client may send before they are asked for


class _Seat(NamedTuple):
    """A client's place in the training: what comes from it, and what it is told."""

    context: grpc.ServicerContext
    requests: Iterator["pb.Upload"]
    answers: queue.SimpleQueue


class SplitService:
    """Calls of clients, and the steps taken with their batches; see split.proto.

    Args:
        config: of the server. Its folder may have a checkpoint of this training.
        pipeline: that of `config.model`, as `load_base` returns it.

    Attributes:
        trainer: the ControlNet in training.

    Raises:
        CipherDMError: the checkpoint cannot be used.
    """

    def __init__(self, config: Side, pipeline: StableDiffusionPipeline) -> None:
        training, self._config, self._hash = config.training, config, common_hash(pipeline)
        client = Client(pipeline, training.defences, training.structure)
        self.trainer, self._layout = Trainer(client, config.optimisation), client.layout()
        self._timesteps = range(training.defences.timesteps_from, len(pipeline.scheduler.alphas_cumprod))
        # There is none of conventional split learning, where clients have a part of the network.
        self._checkpoint = None if training.structure == "conventional" else config.folder / "checkpoint.pt"
        if self._checkpoint:
            self.trainer.restore(self._checkpoint, self._about)
        self._seats: dict[str, _Seat] = {}
        self._deadlines = Deadlines(lambda context: None)

    def Train(self, requests, context):
        yield from (progress for progress, _ in self._answers(requests, context))

    def Exchange(self, requests, context):
        yield from (pb.Gradient(progress=step, gradient=own) for step, own in self._answers(requests, context))

    def train(self, begun: Callable[[], None] = lambda: None) -> None:
        """Listen, and take the steps that are left with one batch of every client each. `begun()` is called before the first.

        The first `config.captured` batches of each client are kept in the server's folder, as `Features.load` reads them.

        Raises:
            CipherDMError: the address cannot be used, a client does not come, leaves, or sends what cannot be used, or a step
                fails. All clients are told the reason.
        """
        training, trainer = self._config.training, self.trainer
        server, reason, saved = self._listen(), None, time.monotonic()
        try:
            self._gather()
            begun()
            while not trainer.finished:
                loss, gradient = trainer.take_step(Features.joined([self._next(name) for name in training.clients]))
                for number, name in enumerate(training.clients):
                    rows = slice(number * training.batch, (number + 1) * training.batch)
                    own = None if gradient is None else tensor_message("h", gradient[rows])
                    self._seats[name].answers.put((pb.Progress(step=trainer.step, loss=loss), own))
                if self._checkpoint and (trainer.finished or time.monotonic() - saved > _CHECKPOINT):
                    trainer.save(self._checkpoint, self._about)
                    saved = time.monotonic()
        except CipherDMError as error:
            reason = error
            raise
        finally:
            for seat in self._seats.values():
                seat.answers.put(reason)
            server.stop(self._config.timeouts.receive if trainer.finished else _LAST_WORDS).wait()

    @property
    def _about(self) -> str:
        """What a checkpoint depends on."""
        return f"{self._hash} {self._config.training} {self._config.optimisation}"

    def _listen(self) -> grpc.Server:
        config = self._config
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=2 * len(config.training.clients) + 8),
            options=(*GRPC_OPTIONS, *keepalive_options(config.timeouts), ("grpc.http2.lookahead_bytes", _AHEAD)),
        )
        add_service(server, pb.DESCRIPTOR, self)
        try:
            server.add_secure_port(config.address, config.identity.to_serve())
        except (RuntimeError, ValueError) as error:
            raise CipherDMError(f"the server cannot listen at {config.address}: choose another ({error}).") from None
        server.start()
        return server

    def _gather(self) -> None:
        limit, clients = self._config.timeouts.start, self._config.training.clients
        deadline = time.monotonic() + limit
        while missing := [name for name in clients if name not in self._seats]:
            if time.monotonic() > deadline:
                raise CipherDMError(f"{', '.join(missing)} did not come within {limit:g} s: start all sides again.")
            time.sleep(_LOOK)

    def _next(self, name: str) -> Features:
        seat, limit = self._seats[name], self._config.timeouts.receive
        self._deadlines.set(seat.context, limit)
        try:
            upload = next(seat.requests)
            batch = Features.read(upload.batch, self._layout, self._config.training.batch, self._timesteps)
            if (step := self.trainer.step) < self._config.captured:
                batch.save(self._config.folder / f"{name}-{step:03d}.safetensors")
            return batch
        except (grpc.RpcError, StopIteration):
            raise CipherDMError(f"{name} has gone, or sent nothing for {limit:g} s: start all sides again.") from None
        except CipherDMError as error:
            raise CipherDMError(f"{name} sent what cannot be used: {error}") from None
        finally:
            self._deadlines.set(seat.context, None)

    def _answers(self, requests: Iterator["pb.Upload"], context: grpc.ServicerContext) -> Iterator[tuple]:
        name, training = caller_of(context.auth_context()["x509_pem_cert"][0], (SERVER,)), self._config.training
        if name not in training.clients:
            who = shown(name) or "a certificate without a name"
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{who} is no client of this training.")
        self._deadlines.set(context, self._config.timeouts.connect)
        join = next(requests, pb.Upload()).join
        self._deadlines.set(context, None)
        if (join.training, join.model) != (str(training), self._hash):
            what = "model, of which hashes differ" if join.training == str(training) else "section [training]"
            reason = f"{name} and the server must have one {what}: here it is {training}, {self._hash}."
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        seat = _Seat(context, requests, queue.SimpleQueue())
        seat.answers.put((pb.Progress(step=self.trainer.step), None))
        if self._seats.setdefault(name, seat) is not seat:
            reason = f"{name} is in this training already: give each client a name of its own."
            context.abort(grpc.StatusCode.ALREADY_EXISTS, reason)
        context.add_callback(lambda: seat.answers.put(None))
        while (answer := seat.answers.get()) is not None:
            if isinstance(answer, CipherDMError):
                context.abort(grpc.StatusCode.ABORTED, shown(str(answer), MOST_REASON))
            yield answer
