"""Training sd-mini-control-split: by processes of a server and its clients, over gRPC with mutual TLS on this machine."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from cipherdm.datasets import Digits, load_mnist
from cipherdm.errors import CipherDMError
from cipherdm.files import checkout
from cipherdm.split import SplitControlNetModel, SplitTrial, load_base, load_split_pipeline, make_split_trial

from ..export import trained
from ..run import one_thread
from ..sd_mini.pictures import Source
from ..sd_mini.score import reader_of
from .export import controlled_pipeline, export
from .hints import client_examples
from .recipe import SD_MINI_CONTROL_SPLIT, SplitControlConfig
from .score import HeldOut
from .train import LOOK_EVERY

_LOOK = 1.0  # seconds between two looks at the processes


def train_split_control(
    out: str | Path | None = None,
    *,
    config: SplitControlConfig = SD_MINI_CONTROL_SPLIT,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
) -> Path:
    """Train a ControlNet by split learning, and return the folder of its pipeline.

    Arguments are those of `train_sd_mini`; another number of steps is another training. Raises CipherDMError if a process
    fails, with its last words, or the runs' folder has the files of another training.
    """
    if steps is not None:
        config = replace(config, training=replace(config.training, steps=steps))
    out = checkout() / "data" / "models" / config.name if out is None else Path(out)
    base, folder = trained(config.base, runs), Path(runs) / config.name / f"{config.training.steps}-steps"
    if not resume and folder.exists():
        raise CipherDMError(f"{folder} has the files of a training: move it away to begin anew.")
    files = {role: folder / f"{role}.toml" for role in ("server", *config.training.clients)}
    if not files["server"].exists():
        files = _trial_files(folder, base, config)
    trial, left = SplitTrial(files), folder / "server-state"
    with one_thread():
        held_out, scores = HeldOut.of(config.judged, reader_of(base), every=2 if config.digits == "test" else 1), []
        if not (left / "pipeline").exists():
            with trial:
                scores = _watched(trial, left, load_base(base), held_out)
        records = trial.records(0)
        pipeline = load_split_pipeline(left / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        scores.append({"step": config.training.steps, **held_out.score(held_out.drawn(pipeline))})
        export(pipeline, held_out, config, _told(records, scores), base, out)
    return out


def pictures_of_clients(folder: Path, config: SplitControlConfig) -> list[Path]:
    """Write each client's pictures, composed of its own share of MNIST; return the files."""
    files = []
    for number, name in enumerate(config.training.clients):
        source = Source.of(client_digits(config, number))
        files.append(folder / f"{name}.npz")
        client_examples(source, config.pictures, np.random.default_rng((config.seed, number))).save(files[-1])
    return files


def client_digits(config: SplitControlConfig, number: int) -> Digits:
    """Return the digits of MNIST that the client with this number has; no other has them, and none of them is held out."""
    every = 2 if config.digits == "test" else 1
    return load_mnist(config.digits)[every * number :: every * len(config.training.clients)]


def _trial_files(folder: Path, base: Path, config: SplitControlConfig) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    data = pictures_of_clients(folder, config)
    # A socket in the folder, by its path from here: those that are longer than 107 characters do not work.
    return make_split_trial(
        folder, base, data, config.training, addresses=[f"unix:{folder / 'socket'}"], seed=config.seed
    )


def _watched(trial: SplitTrial, left: Path, base: StableDiffusionPipeline, held_out: HeldOut) -> list[dict[str, float]]:
    """Wait until all processes have ended; return scores of the server's checkpoints on the way."""
    network, scores, seen = SplitControlNetModel.of(base.unet), [], LOOK_EVERY
    pipeline, path = controlled_pipeline(base, network), left / "checkpoint.pt"
    while any(process.poll() is None for process in trial.processes.values()):
        time.sleep(_LOOK)
        if not path.exists():
            continue
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if saved["step"] < seen:
            continue
        averaged = saved["average"].items()
        network.load_state_dict({name.removeprefix("module."): each for name, each in averaged if name != "n_averaged"})
        pictures = held_out.drawn(pipeline)
        held_out.sheet(pictures, left / f"drawn-{saved['step']:06d}.png")
        scores.append({"step": saved["step"], **held_out.score(pictures)})
        seen = saved["step"] + LOOK_EVERY
    return scores


def _told(records: Mapping[str, Any], scores: list[dict[str, float]]) -> dict[str, Any]:
    """What the training record has beside the settings: losses, scores, and what each client measured on its wire."""
    losses = records["server"]["losses"]
    by_100 = [round(float(np.mean(losses[edge : edge + 100])), 5) for edge in range(0, len(losses), 100)]
    wires = {
        name: {key: value for key, value in record["wire"].items() if key != "losses"}
        for name, record in records.items()
        if name != "server"
    }
    return {"steps_done": len(losses), "loss_by_100_steps": by_100, "scores": scores, "wires": wires}
