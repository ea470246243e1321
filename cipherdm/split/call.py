"""A client's call of the server: batches go up as fast as the server takes them, and what that costs is measured."""

import queue
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from ..engine.rpc import Stub
from ..errors import CipherDMError
from ..files import replacing
from ..hosts.channels import open_channel
from ..hosts.refusals import MOST_REASON, shown
from . import split_pb2 as pb
from .client import Client, Examples, common_hash
from .config import SERVER, Side
from .features import read_tensor
from .trainer import Optimisation

WARNING = (
    "The server of this training learns every picture and every condition it is trained on: both can be computed from each "
    "message. The structure saves clients the backward pass and can keep prompts from the server. If the server must not see "
    "the pictures, do not use it."
)


@dataclass
class Wire:
    """What a client has measured.

    Bytes are those of messages, without what TLS and HTTP/2 add: of each tensor that went up, and of all that went up and
    down. Seconds are those from the end of the first step to that of the last; and those in which a batch waited to be taken,
    or the client for a gradient. Losses are the server's, one per step.
    """

    fields: dict[str, int] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    messages: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    losses: list[float] = field(default_factory=list)


class _Uploads:
    """What a client sends in its one call, computed in gRPC's thread when there is room for the next message."""

    def __init__(self, config: Side, pipeline: StableDiffusionPipeline) -> None:
        training = config.training
        self._config, self._examples = config, Examples.load(config.data)
        self._client = Client(pipeline, training.defences, training.structure)
        self.head = self._client.head
        self._adam = torch.optim.AdamW(self.head.parameters(), weight_decay=0.01) if self.head else None
        self.answers: queue.SimpleQueue[pb.Progress | pb.Gradient] = queue.SimpleQueue()
        self.wire, self.error = Wire(), None

    def messages(self) -> Iterator["pb.Upload"]:
        """Yield all messages. An error is kept in `error` and ends them."""
        try:
            training = self._config.training
            yield pb.Upload(join=pb.Join(model=common_hash(self._client.pipeline), training=str(training)))
            if (first := self.answers.get()) is None:
                return
            seed = secrets.randbits(64) if self._config.seed is None else self._config.seed
            for step in range(getattr(first, "progress", first).step, training.steps):
                generator = np.random.default_rng((seed, step))
                batch = self._client.features(*self._examples.batch(training.batch, generator), generator)
                upload, begun = pb.Upload(batch=batch.message()), time.monotonic()
                self.wire.fields = {name: self.wire.fields.get(name, 0) + size for name, size in batch.bytes.items()}
                self.wire.up += upload.ByteSize()
                self.wire.messages += 1
                yield upload
                answer = self.answers.get() if self.head else first
                self.wire.waiting += time.monotonic() - begun
                if answer is None:
                    return
                if self.head:
                    self._adam.zero_grad()
                    batch.h.backward(read_tensor(answer.gradient, "float32", tuple(batch.h.shape)))
                    self._adam.param_groups[0]["lr"] = Optimisation(training.steps).rate(step)
                    self._adam.step()
        except CipherDMError as error:
            self.error = error


def take_part(config: Side, pipeline: StableDiffusionPipeline) -> Wire:
    """Take part in a training as a client until its last step; a conventional client leaves its layers in its folder.

    `pipeline` is that of `config.model`, as `load_base` returns it.

    Raises:
        CipherDMError: files cannot be used, or the server cannot be reached, refuses this client, or ends the training.
    """
    uploads, limit = _Uploads(config, pipeline), config.timeouts.start
    wire = uploads.wire
    with open_channel(config.address, SERVER, config.identity, config.timeouts) as channel:
        try:
            grpc.channel_ready_future(channel).result(limit)
        except grpc.FutureTimeoutError:
            raise CipherDMError(
                f"no server that takes this certificate is at {config.address} within {limit:g} s: see whether it runs, and "
                "the files of [identity]."
            ) from None
        stub, begun = Stub(channel, pb.DESCRIPTOR), 0.0
        call = (stub.Exchange if uploads.head else stub.Train)(uploads.messages())
        try:
            for number, answer in enumerate(call):
                wire.down += answer.ByteSize()
                wire.losses += [getattr(answer, "progress", answer).loss] * (number > 0)
                if uploads.head or number == 0:
                    uploads.answers.put(answer)
                begun = time.monotonic() if number < 2 else begun
                wire.seconds = time.monotonic() - begun
        except grpc.RpcError as error:
            details = error.details() if error.code() != grpc.StatusCode.UNAVAILABLE else ""
            why = details or "the server has gone away, or does not take this certificate: start all sides again."
            raise uploads.error or CipherDMError(shown(why, MOST_REASON)) from None
        finally:
            uploads.answers.put(None)
            call.cancel()
    if uploads.error or len(wire.losses) < wire.messages:
        raise uploads.error or CipherDMError("the server has ended the training too early: see its log.")
    if uploads.head:
        with replacing(config.folder / "head.safetensors") as temporary:
            save_file(uploads.head.state_dict(), temporary)
    return wire
