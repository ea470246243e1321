"""Split trainings of a very small pipeline: its folder, pictures, and all sides within the process of a test."""

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

import grpc
import torch
from prompted_models import TINY, edit, save_pipeline

from cipherdm.engine.rpc import Stub
from cipherdm.hosts import Timeouts
from cipherdm.hosts.channels import open_channel
from cipherdm.hosts.loopback import free_ports
from cipherdm.split import Examples, Training, load_base, load_side, make_split_trial
from cipherdm.split import split_pb2 as pb
from cipherdm.split.call import take_part
from cipherdm.split.client import common_hash
from cipherdm.split.service import SplitService

# The first convolution makes more of the latents than they are, as in every model that is used.
CONFIG = replace(TINY, block_out_channels=(8, 8))
NAMES = ("client0", "client1")
SOON = 30.0  # seconds within which a side that waits is told, on a busy machine


def base_folder(folder: Path, seed: int = 0) -> Path:
    """Save a very small pipeline that predicts noise, for pictures of 16 x 16; another seed is another autoencoder."""
    save_pipeline(folder, CONFIG)
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    if seed:
        pipeline = load_base(folder)
        torch.nn.init.normal_(pipeline.vae.quant_conv.bias)
        pipeline.vae.save_pretrained(folder / "vae")
    return folder


def examples(seed: int, count: int = 20) -> Examples:
    """Random pictures and hints of 16 x 16."""
    generator = torch.Generator().manual_seed(seed)
    pictures, hints = (torch.rand(count, 3, 16, 16, generator=generator) for _ in range(2))
    return Examples.of(2 * pictures - 1, hints, [f"a {'red' if row % 2 else 'blue'} seven" for row in range(count)])


def small_trial(folder: Path, model: Path, limit: float = SOON, **settings) -> dict[str, Path]:
    """Files of a training with two clients, by role, whose sides wait no longer than `limit`, and fields of `Training`."""
    data = [folder / f"{name}.npz" for name in settings.get("clients", NAMES)]
    for seed, path in enumerate(data):
        examples(seed).save(path)
    training = Training(**{"clients": NAMES, "batch": 2, "steps": 3} | settings)
    addresses, limits = [f"127.0.0.1:{free_ports(1)}"], Timeouts(start=2 * limit, receive=limit)
    return make_split_trial(
        folder / "trial", model, data, training, addresses=addresses, timeouts=limits, seed=0, captured=2, warmup=1
    )


class Sides:
    """The sides of a trial in threads. Use it as a context manager, which begins the server."""

    def __init__(self, files: dict[str, Path]):
        self.configs = {role: load_side(path, role if role == "server" else "client") for role, path in files.items()}
        self.pipeline = load_base(self.configs["server"].model)
        self.service = SplitService(self.configs["server"], self.pipeline)
        self.trainer = self.service.trainer
        self._pool, self.begun = ThreadPoolExecutor(8), threading.Event()

    def __enter__(self) -> "Sides":
        self.server: Future = self._pool.submit(self.service.train, self.begun.set)
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown(wait=True)

    def client(self, role: str) -> Future:
        """Begin a client."""
        return self._pool.submit(take_part, self.configs[role], self.pipeline)

    def sends(self, role: str, batches: Iterable["pb.Batch"]) -> grpc.RpcError | None:
        """Join as a client that sends messages made by hand; return how its call ended."""
        config = self.configs[role]
        join = pb.Join(model=common_hash(self.pipeline), training=str(config.training))
        with open_channel(config.address, "server", config.identity, config.timeouts) as channel:
            grpc.channel_ready_future(channel).result(SOON)
            uploads = chain([pb.Upload(join=join)], (pb.Upload(batch=batch) for batch in batches))
            try:
                list(Stub(channel, pb.DESCRIPTOR).Train(uploads, timeout=SOON))
            except grpc.RpcError as error:
                return error
        return None
