"""`cipherdm classify`: classes of texts on three parties, beside those that the exact model gives in plaintext."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import cipherdm as cdm

from ..progress import ProgressBar
from ..records import write_record
from .options import SETS, writable


def classify(
    text: Annotated[list[str], typer.Argument(help="Texts, each in quotation marks.")],
    model: Annotated[
        str, typer.Option(help="Name in data/models, or path of a transformers folder.")
    ] = "reviews-tiny-quad",
    protocols: Annotated[str, typer.Option(help=f"{SETS}.")] = "fast-rings",
    tokens: Annotated[
        int | None, typer.Option(help="Tokens that each text is filled up to; the next multiple of 16 by default.")
    ] = None,
    embedded: Annotated[
        bool, typer.Option(help="Whether the owner has published its embeddings, which the client then shares.")
    ] = False,
    granularity: Annotated[str, typer.Option(help="Unit that becomes one program: block, or step for all.")] = "step",
    record: Annotated[
        Path | None, typer.Option(help="JSON file for the results and their costs.", callback=writable)
    ] = None,
) -> None:
    """Find the class of each text on three parties, and in plaintext with the exact model.

    Three processes on this machine compute on secret shares of the weights and the texts.
    """
    loaded = cdm.load_transformer(model)
    settings = {"tokens": tokens, "embedded": embedded}
    exact = cdm.classify(loaded, None, text, **settings)
    with cdm.LocalCluster() as cluster, ProgressBar("call") as bar:
        settings |= {"protocols": protocols, "granularity": granularity}
        found = cdm.classify(loaded, cluster, text, progress=bar, **settings)
    for line, label, given, expected in zip(text, found.labels, found.logits, exact.logits, strict=True):
        typer.echo(
            f"{label} ({_probabilities(given, loaded)}; in plaintext {_probabilities(expected, loaded)}): {line}"
        )
    cost = found.cost
    typer.echo(f"{cost.seconds:.2f} s; the parties sent {cost.bytes / 1e6:.2f} MB in {cost.sends} messages.")
    if record is not None:
        about = {"model": Path(loaded.folder).resolve().name, "texts": text, **settings}
        logits = {"logits": found.logits.tolist(), "plaintext": exact.logits.tolist()}
        write_record(record, about | logits | {"peak_memory_bytes": found.peak_memory, "cost": cost.to_dict()})


def _probabilities(logits: np.ndarray, model) -> str:
    """Name the classes with their probabilities."""
    weights = np.exp(logits - logits.max())
    pairs = zip(model.config.labels, weights / weights.sum(), strict=True)
    return ", ".join(f"{name} {share:.0%}" for name, share in pairs)
