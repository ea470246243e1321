"""Processes of a split training: `python -m cipherdm.split.process (server | client) FILE`, until the training ends."""

import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionControlNetPipeline
from diffusers.utils import logging

from ..errors import CipherDMError
from ..hardening import end_with_parent
from ..records import write_record
from .call import WARNING, take_part
from .client import Client, Head, embedded, load_base
from .config import SERVER, Side, load_side
from .features import Features
from .service import SplitService, listen
from .trainer import Trainer

_LAST_WORDS = 3.0  # seconds in which clients get the reason of an end
WITH_PARENT, RECORD = "--end-with-parent", "record.json"


def serve(config: Side, stopped: threading.Event) -> dict[str, Any]:
    """Serve one training to its end, write its results to `config.folder`, and return its part of the record.

    These are `pipeline`, a folder of diffusers with the trained ControlNet (in conventional split learning the server's part
    of it alone, in `controlnet`), and what was captured of each client.

    Raises:
        CipherDMError: what `SplitService.train` and `listen` raise, or a model that cannot be used.
    """
    training, pipeline = config.training, load_base(config.model)
    conventional = training.structure == "conventional"
    lean = training.structure == "lean"
    trainer = Trainer(
        pipeline,
        config.optimisation,
        activation=training.defences.activation,
        lean=lean,
        empty=embedded(pipeline, [""]),
        conventional=conventional,
    )
    client = Client(pipeline, training.defences, lean, Head(pipeline) if conventional else None)
    service = SplitService(config, client, trainer)
    if not conventional:
        trainer.restore(config.folder / "checkpoint.pt", service.about)
    server = listen(service, config)
    print(f"ready at {config.address}", flush=True)
    try:
        captured = service.train(stopped)
    finally:
        server.stop(_LAST_WORDS).wait()
    service.save()
    for name, batches in captured.items():
        if batches:
            Features.joined(batches).save(config.folder / f"captured-{name}.safetensors")
    if conventional:
        trainer.controlnet.save_pretrained(config.folder / "controlnet")  # clients have no averages to go with its own
    else:
        parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        made = StableDiffusionControlNetPipeline(**parts, controlnet=trainer.averaged, **without)
        made.save_pretrained(config.folder / "pipeline")
    return {"optimisation": vars(config.optimisation), "losses": trainer.losses}


def main() -> None:
    """Entry point of the process."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if WITH_PARENT in sys.argv:
        end_with_parent()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of diffusers, which misses a library that it can do without
    role, path = sys.argv[1:3]
    try:
        config = load_side(path, role)
        if role == SERVER:
            result = serve(config, stopped)
        else:
            print(WARNING, flush=True)
            result = {"wire": vars(take_part(config, stopped))}
        write_record(config.folder / RECORD, {"training": asdict(config.training), **result})
    except CipherDMError as error:
        sys.exit(f"Error: {error}")


def command(role: str, path: Path) -> list[str]:
    """Return the command of such a process; `role` is "server" or "client"."""
    return [sys.executable, "-P", "-m", "cipherdm.split.process", role, str(path)]


if __name__ == "__main__":
    main()
