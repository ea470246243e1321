"""Processes of a split training: `python -m cipherdm.split.process (server | client) FILE`, until the training ends."""

import signal
import sys
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
from .service import SplitService
from .trainer import Trainer

WITH_PARENT, RECORD = "--end-with-parent", "record.json"


def serve(config: Side) -> dict[str, Any]:
    """Serve one training to its end, and return what its record has beside the settings.

    The server's folder then has `pipeline`, which `load_split_pipeline` loads, and what was captured of each client. In
    conventional split learning it has the server's part of the network instead, `controlnet`.

    Raises:
        CipherDMError: the model cannot be used, or what `SplitService.train` raises.
    """
    training, pipeline = config.training, load_base(config.model)
    lean, conventional = (training.structure == each for each in ("lean", "conventional"))
    settings = {"activation": training.defences.activation, "lean": lean, "conventional": conventional}
    trainer = Trainer(pipeline, config.optimisation, empty=embedded(pipeline, [""]), **settings)
    client = Client(pipeline, training.defences, lean, Head(pipeline) if conventional else None)
    service = SplitService(config, client, trainer)
    if not conventional:
        trainer.restore(config.folder / "checkpoint.pt", service.about)
    for name, batches in service.train(lambda: print("all clients are here", flush=True)).items():
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


def command(kind: str, path: Path) -> list[str]:
    """Return the command of such a process; `kind` is "server" or "client"."""
    return [sys.executable, "-P", "-m", "cipherdm.split.process", kind, str(path)]


def main() -> None:
    """Entry point of the process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    if WITH_PARENT in sys.argv:
        end_with_parent()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of diffusers, which misses a library that it can do without
    try:
        config = load_side(sys.argv[2], sys.argv[1])
        if sys.argv[1] == SERVER:
            result = serve(config)
        else:
            print(WARNING, flush=True)
            result = {"wire": vars(take_part(config, load_base(config.model)))}
        write_record(config.folder / RECORD, {"training": asdict(config.training), **result})
    except CipherDMError as error:
        sys.exit(f"Error: {error}")


def _stop(*_) -> None:
    raise CipherDMError("this side was stopped: start all sides again to go on from the last checkpoint.")


if __name__ == "__main__":
    main()
