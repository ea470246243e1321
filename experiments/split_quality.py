"""How well pictures follow their hints after split, central and federated training of a ControlNet, at equal steps."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from diffusers import StableDiffusionPipeline

from cipherdm.models import find_model
from cipherdm.progress import Progress, ProgressBar
from cipherdm.split import (
    Client,
    Defences,
    Examples,
    Features,
    Optimisation,
    SplitControlNetModel,
    Trainer,
    load_base,
)

from .commands import RecordOption, finish, record_path, silent
from .markdown import duration, markdown, records_named
from .target import PROMPT_MODEL, Check, Command, Records, Target, Value
from .training.classifier import load_classifier
from .training.control.export import controlled_pipeline
from .training.control.federated import federate, federate_privately
from .training.control.recipe import SD_MINI_CONTROL_SPLIT
from .training.control.score import HeldOut
from .training.control.split import pictures_of_clients
from .training.private_run import PrivateStage
from .training.run import one_thread
from .training.sd_mini.recipe import Optimisation as Plan
from .training.sd_mini.score import READER, decoded

FROM = (0, 300, 618)  # first timesteps of the policy
CENTRAL, FEDERATED, PRIVATE = "in one place", "federated", "federated, eps 10"
_BATCH, _ROUND = 16, 50  # pictures of a client in a step, and its steps in a round of federated averaging
# A private step takes 256 pictures on average, so that its noise is small beside them; there are fewer of them.
_PRIVATE_BATCH, _PRIVATE_SHARE = 256, 5
_PARTS = ("iou", "ssim", "digit", "colour", "background", "all")

Train = Callable[[], SplitControlNetModel]


def run(steps: int = 1000, count: int = 300, pictures: int = 8000, progress: Progress = silent) -> dict[str, Any]:
    """Train the same network in each way on the same pictures of two clients, and score what it draws; return the record.

    What a server computes with messages is computed here without processes, with the same numbers. In one place there is no
    message: no activation, all timesteps, and prompts. "none" is the pipeline without a ControlNet, "bound" real pictures after
    the autoencoder. Federated training at an epsilon is the remedy that does protect: clients add noise at home, and the odds
    of whatever is concluded about one picture change no more than that promises.
    """
    base = load_base(folder := find_model(PROMPT_MODEL))
    base.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as name, one_thread():
        own = replace(SD_MINI_CONTROL_SPLIT, pictures=pictures)
        examples = [Examples.load(path) for path in pictures_of_clients(Path(name), own)]
        held_out = HeldOut.of(count, load_classifier(folder / READER))
        rows = [
            {"way": "bound", **held_out.score(decoded(base.vae, held_out.pictures))},
            {"way": "none", **held_out.score(held_out.drawn(base))},
        ]
        for way, train in ways(base, examples, steps).items():
            progress(len(rows) - 2, len(FROM) + 3, way)
            begin = time.perf_counter()
            network = train()
            seconds = time.perf_counter() - begin
            drawn = held_out.drawn(controlled_pipeline(base, network))
            rows.append({"way": way, **held_out.score(drawn), "seconds": seconds})
    about = {"base": PROMPT_MODEL, "steps": steps, "count": count, "pictures": pictures}
    return {"benchmark": "split-quality", **about, "rows": rows}


def ways(base: StableDiffusionPipeline, examples: list[Examples], steps: int) -> dict[str, Train]:
    """Return what trains the network in each way, by its name."""

    def mixed(defences: Defences) -> SplitControlNetModel:
        client = Client(base, defences)
        trainer = Trainer(client, Optimisation(steps))
        for step in range(steps):
            generator = np.random.default_rng((0, step))
            batches = [client.features(*own.batch(_BATCH, generator), generator) for own in examples]
            trainer.take_step(Features.joined(batches))
        return trainer.averaged

    def federated() -> SplitControlNetModel:
        clients, rounds = [(Client(base), own) for own in examples], max(1, steps // _ROUND)
        return federate(clients, Optimisation(steps), rounds=rounds, batch=_BATCH)[0]

    def private() -> SplitControlNetModel:
        clients, taken = [(Client(base), own) for own in examples], max(1, steps // _PRIVATE_SHARE)
        size = min(len(own.pictures) for own in examples)
        batch = min(_PRIVATE_BATCH, size)
        plan = Plan(
            steps=taken, batch=batch, learning_rate=1e-3, warmup=10, cooldown=max(1, taken // 2), ema_decay=0.95
        )
        stage = PrivateStage(10.0, plan, sample_rate=batch / size, draws=1, part="all", microbatch=64)
        return federate_privately(clients, stage, rounds=max(1, taken // 10))[0]

    split = {f"split, from {first}": Defences(timesteps_from=first) for first in FROM}
    all_ways = {CENTRAL: Defences(activation=False, hide_prompts=False), **split}
    return {way: lambda defences=defences: mixed(defences) for way, defences in all_ways.items()} | {
        FEDERATED: federated,
        PRIVATE: private,
    }


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each way: IoU and SSIM, and the shares of pictures that are read back."""
    return pd.DataFrame(record["rows"])[["way", *_PARTS]]


def quality_table(measurements: Path) -> str:
    """Return the scores of each way, as Markdown."""
    (record,) = records_named(measurements, "split_quality.json", "cipherdm bench split-quality")
    rows = [
        [row["way"], *(f"{row[name]:.3f}" for name in _PARTS[:2]), *(f"{row[name]:.0%}" for name in _PARTS[2:])]
        + [duration(row["seconds"]) if "seconds" in row else "-"]
        for row in record["rows"]
    ]
    return markdown(["trained", "IoU", "SSIM of outlines", *_PARTS[2:], "took"], rows)


TABLES = {"split_quality": quality_table}


def measure(
    steps: Annotated[int, typer.Option(help="Steps of each training.", min=1)] = 1000,
    count: Annotated[int, typer.Option(help="Pictures that are drawn and judged.", min=1)] = 300,
    pictures: Annotated[int, typer.Option(help="Pictures of each client.", min=1)] = 8000,
    record: RecordOption = None,
) -> None:
    """Train sd-mini's ControlNet split under three policies, in one place and federated, and judge what it draws."""
    with ProgressBar("training") as bar:
        found = run(steps, count, pictures, progress=bar)
    finish(record_path(record, "split_quality"), found, table(found))


def _of(way: str, name: str) -> Value:
    def value(records: Records) -> float:
        (row,) = (row for row in records["split_quality"]["rows"] if row["way"] == way)
        return float(row[name])

    return value


def _read_as_well(records: Records) -> float:
    """The share of pictures read back after split training without a policy, by that after training in one place."""
    return _of("split, from 0", "all")(records) / _of(CENTRAL, "all")(records)


def _worse(records: Records) -> float:
    """How much smaller the IoU of split training without a policy is than that of training in one place."""
    return _of(CENTRAL, "iou")(records) - _of("split, from 0", "iou")(records)


TARGET = Target(
    "split-quality",
    "How pictures follow hints after split, central and federated training of a ControlNet",
    "splitting does not compromise the quality of images",
    "published",
    (
        Command(
            "split_quality",
            ("bench", "split-quality"),
            (),
            ("--steps", "20", "--count", "20", "--pictures", "100"),
        ),
    ),
    (
        Check("IoU, in one place less split", 0.02, 0, _worse, None, 3, bound="most"),
        Check("pictures read back, split / in one place", 0.97, 0.02, _read_as_well, None, 2, bound="least"),
    ),
    order=105,
)
