"""A client's call of the server: batches go up as fast as the server takes them, and what that costs is measured."""

import queue
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import torch
from safetensors.torch import save_file

from ..engine.rpc import Stub
from ..errors import CipherDMError
from ..files import replacing
from ..hosts.channels import open_channel
from ..hosts.refusals import MOST_REASON, shown
from . import split_pb2 as pb
from .client import Client, Head, common_hash, load_base
from .config import SERVER, Side
from .data import Examples
from .features import Features, read_tensor
from .trainer import Optimisation

WARNING = (
    "The server of this training learns every picture and every condition it is trained on: both can be computed from each "
    "message. The structure saves clients the backward pass and can keep prompts from the server. If the server must not see "
    "the pictures, do not use it."
)
"""What a client's operator has to know before anything is sent."""

_LOOK = 0.1  # seconds between two looks for what has happened while waiting


@dataclass
class Wire:
    """What a client has measured. Bytes are those of messages, without what TLS and HTTP/2 add.

    Attributes:
        fields: bytes of each tensor that went up.
        up, down: bytes of all messages.
        messages: messages that went up.
        round_trips: times that the client had to wait for an answer before it could go on.
        seconds: seconds of the call, from joining to the last answer.
        waiting: seconds of these in which it could not go on.
        losses: as the server told them, one per step.
    """

    fields: dict[str, int] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    messages: int = 0
    round_trips: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    losses: list[float] = field(default_factory=list)


class Call:
    """A client's one call. Use it as a context manager: leaving the block ends it.

    Raises:
        CipherDMError: (on any use) the server cannot be reached, refuses, ends the training or says nothing for too long.
    """

    def __init__(self, config: Side, stopped: threading.Event) -> None:
        self._config, self._stopped, self.wire = config, stopped, Wire()
        self._uploads: queue.Queue[pb.Upload | None] = queue.Queue(1)
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._error: CipherDMError | None = None

    def __enter__(self) -> "Call":
        config = self._config
        self._channel = open_channel(config.address, SERVER, config.identity, config.timeouts)
        ready, deadline = grpc.channel_ready_future(self._channel), time.monotonic() + config.timeouts.start
        while not self._stopped.wait(_LOOK) and not ready.done():
            if time.monotonic() > deadline:
                self._channel.close()
                raise CipherDMError(
                    f"no server with a certificate of this training's authority is at {config.address} within "
                    f"{config.timeouts.start:g} s: see whether it runs, and the files of [identity]."
                )
        ready.cancel()
        stub = Stub(self._channel, pb.DESCRIPTOR)
        method = stub.Exchange if config.training.structure == "conventional" else stub.Train
        self._call = method(iter(self._uploads.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *exception) -> None:
        self._call.cancel()
        self._channel.close()

    def join(self, model: str) -> int:
        """Join the training with the hash of the model; return the number of steps that are finished already."""
        self._begun = time.monotonic()
        self._put(pb.Upload(join=pb.Join(model=model, training=str(self._config.training))))
        return _progress(self.answer()).step

    def send(self, batch: Features) -> None:
        """Send a batch, once the server has room for it."""
        upload = pb.Upload(batch=batch.message())
        for name, size in batch.bytes.items():
            self.wire.fields[name] = self.wire.fields.get(name, 0) + size
        self.wire.up += upload.ByteSize()
        self.wire.messages += 1
        self._put(upload)

    def answer(self) -> Any:
        """Return the next answer, once it is there: a Progress, or a Gradient whose first answer has none."""
        return self._waited(lambda: self._answers.get(timeout=_LOOK), queue.Empty)

    def finish(self, steps: int) -> Wire:
        """Wait until all steps are taken; return what was measured."""
        while len(self.wire.losses) < steps:
            self.answer()
        self.wire.seconds = time.monotonic() - self._begun
        return self.wire

    def _put(self, upload: "pb.Upload") -> None:
        self._waited(lambda: self._uploads.put(upload, timeout=_LOOK), queue.Full)

    def _waited(self, attempt, nothing: type[Exception]) -> Any:
        begun = time.monotonic()
        # Other clients may keep the server waiting, for as long as a message may take; and then it says so.
        limit = 2 * self._config.timeouts.receive + self._config.timeouts.start
        while True:
            try:
                done = attempt()
                self.wire.waiting += time.monotonic() - begun
                return done
            except nothing:
                if self._error:
                    raise self._error from None
                if self._stopped.is_set():
                    raise CipherDMError("this client was stopped: start all sides again to go on.") from None
                if time.monotonic() - begun > limit:
                    raise CipherDMError(f"the server has said nothing for {limit:g} s: see its log.") from None

    def _read(self) -> None:
        try:
            for first, answer in enumerate(self._call):
                self.wire.down += answer.ByteSize()
                if first:
                    self.wire.losses.append(_progress(answer).loss)
                self._answers.put(answer)
            reason = "the server has ended the call"
        except grpc.RpcError as error:
            gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            reason = "the server has gone away, or does not take this certificate" if gone else error.details()
        self._error = CipherDMError(shown(f"{(reason or 'the call failed').rstrip('.')}.", MOST_REASON))


def _progress(answer: Any) -> "pb.Progress":
    return answer.progress if isinstance(answer, pb.Gradient) else answer


def take_part(config: Side, stopped: threading.Event) -> Wire:
    """Take part in a training as a client until its last step; a conventional client leaves its layers in its folder.

    Raises:
        CipherDMError: what `Call` raises, or files that cannot be used.
    """
    examples, pipeline, training = Examples.load(config.data), load_base(config.model), config.training
    with torch.random.fork_rng():
        torch.manual_seed(0)  # all clients begin with the same layers
        head = Head(pipeline) if training.structure == "conventional" else None
    client = Client(pipeline, training.defences, training.structure == "lean", head)
    optimisation = Optimisation(training.steps)
    adam = torch.optim.AdamW(head.parameters(), weight_decay=optimisation.weight_decay) if head else None
    seed = secrets.randbits(64) if config.seed is None else config.seed
    with Call(config, stopped) as call:
        first = call.join(common_hash(pipeline))
        for step in range(first, training.steps):
            generator = np.random.default_rng((seed, step))
            batch = client.features(*examples.batch(training.batch, generator), generator)
            call.send(batch)
            if head:
                gradient = read_tensor(call.answer().gradient, "float32", tuple(batch.h.shape))
                call.wire.round_trips += 1
                adam.zero_grad()
                batch.h.backward(gradient)
                for group in adam.param_groups:
                    group["lr"] = optimisation.rate(step)
                adam.step()
        wire = call.finish(training.steps - first)
    if head:
        with replacing(config.folder / "head.safetensors") as temporary:
            save_file(head.state_dict(), temporary)
    return wire
