"""Processes of a split training: `python -m cipherdm.split.process (server | client) FILE`, until the training ends."""

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionControlNetPipeline
from diffusers.utils import logging
from transformers.utils.logging import disable_progress_bar

from ..errors import CipherDMError
from ..hardening import end_with_parent
from ..records import write_record
from .call import WARNING, take_part
from .client import load_base
from .config import SERVER, Side, load_side
from .service import SplitService

WITH_PARENT, RECORD = "--end-with-parent", "record.json"
# For its process: gRPC's own words, and of libraries those on what they can do without.
QUIET = {"GRPC_VERBOSITY": "NONE", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}


def serve(config: Side) -> dict[str, Any]:
    """Serve one training to its end, and return what its record has beside the settings.

    The server's folder then has `pipeline`, which `load_split_pipeline` loads, or in conventional split learning `controlnet`,
    the server's part of the network.

    Raises:
        CipherDMError: the model cannot be used, or what `SplitService.train` raises.
    """
    pipeline = load_base(config.model)
    service = SplitService(config, pipeline)
    service.train(lambda: print("all clients are here", flush=True))
    trainer = service.trainer
    if config.training.structure == "conventional":
        trainer.controlnet.save_pretrained(config.folder / "controlnet")  # clients have no averages to go with its own
    else:
        made = StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=trainer.averaged)
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
        end_with_parent(int(sys.argv[-1]))
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    disable_progress_bar()
    try:
        config = load_side(sys.argv[2], sys.argv[1])
        if sys.argv[1] == SERVER:
            result = serve(config)
        else:
            print(WARNING, flush=True)
            result = {"wire": vars(take_part(config, load_base(config.model)))}
        write_record(config.folder / RECORD, {"training": asdict(config.training), **result})
    except CipherDMError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)  # gRPC's thread may still compute a batch, and a normal exit would tear the interpreter down around it


def _stop(*_) -> None:
    raise CipherDMError("this side was stopped: start all sides again to go on from the last checkpoint.")


if __name__ == "__main__":
    main()
