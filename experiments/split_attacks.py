"""What the server of a split training reads from its clients' messages: computed, averaged, learned, and searched for."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from cipherdm.datasets import load_mnist
from cipherdm.models import find_model
from cipherdm.progress import Progress, ProgressBar
from cipherdm.split import Defences, Training, load_base

from .commands import RecordOption, finish, record_path, silent
from .markdown import markdown, records_named
from .split_attacks_cases import DELTA, FROM, averaged, bounds, capture, computed, learned, searched, worth
from .target import PROMPT_MODEL, Check, Command, Records, Target, Value
from .training.control.hints import client_examples
from .training.run import one_thread
from .training.sd_mini.pictures import Source

_PUBLIC, _TRAINED = 4000, 60  # public pictures; steps after which a conventional client's layers know hints


_LATE = {"from": 618}


def run(
    count: int = 100,
    visits: Sequence[int] = (1, 4, 16, 64, 256),
    visited: int = 20,
    steps: int = 300,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Attack messages with `count` pictures each, captured from processes with all defences on; return the record.

    Averaging is tried on as many visits to each of `visited` pictures, and inverse networks learn for so many steps. A row has
    the mean SSIM of what was found with the private hints and pictures; those of "bound" went through the autoencoder.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, one_thread():
        folder, base = Path(name), load_base(find_model(PROMPT_MODEL))
        sources = (Source.of(load_mnist(split)) for split in ("test", "train"))
        own, public = (
            client_examples(source, size, np.random.default_rng(0))
            for source, size in zip(sources, (count, _PUBLIC), strict=True)
        )
        own.save(folder / "own.npz")

        def took(label: str) -> None:
            progress(len(rows), 4 * len(FROM) + len(visits) * len(FROM) + 8, label)

        ways = [("published", Defences(timesteps_from=first), 1) for first in FROM]
        ways += [("published", Defences(activation=False), 1), ("lean", Defences(), 1)]
        ways += [("conventional", Defences(), _TRAINED)]
        found = []
        for number, (structure, defences, length) in enumerate(ways):
            took(f"{structure}, from {defences.timesteps_from}")
            training = Training(("client0",), structure, count, length, defences)
            found.append(capture(folder / f"{number}", base, own, training))
        *defended, bare, lean, conventional = found
        private = defended[0].private
        rows += bounds(private, public)
        rows += [computed(captured) for captured in (*defended, lean)]
        for captured in defended:
            took("averaging")
            rows += averaged(captured.client, own, visits, visited)
        rows += learned(bare, defended, public, steps, took)
        took("unsplit")
        rows += searched(conventional)
        epsilons = worth(base, public)
    about = {"count": count, "visited": visited, "inverse_steps": steps, "delta": DELTA, "worth": epsilons}
    return {"benchmark": "split-attacks", "base": PROMPT_MODEL, **about, "rows": rows}


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each attack: what it was tried on, and the SSIM of hints and pictures."""
    frame = pd.DataFrame(record["rows"])
    return frame[["attack", "structure", "from", "visits", "hint", "picture"]]


def attacks_table(measurements: Path) -> str:
    """Return the likeness that each attack reaches, as Markdown."""
    rows = []
    for row in table(_record(measurements)).to_dict("records"):
        first, visits = ("-" if np.isnan(row[name]) else f"{row[name]:.0f}" for name in ("from", "visits"))
        likeness = ("-" if np.isnan(row[name]) else f"{row[name]:.3f}" for name in ("hint", "picture"))
        rows.append([row["attack"], first, visits, *likeness])
    return markdown(["attack", "timesteps from", "visits", "SSIM of hints", "SSIM of pictures"], rows)


def worth_table(measurements: Path) -> str:
    """Return the epsilon that the paper's rule gives each policy, and those of the Gaussian mechanism, as Markdown."""
    rows = [
        [f"{row['from']}", *(f"{row[name]:,.1f}" for name in ("published", "picture", "hint"))]
        for row in _record(measurements)["worth"]
    ]
    header = ["timesteps from", "the paper's rule", "one visit, picture", "one visit, hint"]
    return markdown(header, rows)


def _record(measurements: Path) -> dict[str, Any]:
    (record,) = records_named(measurements, "split_attacks.json", "cipherdm bench split-attacks")
    return record


TABLES = {"split_attacks": attacks_table, "split_worth": worth_table}


def measure(
    count: Annotated[int, typer.Option(help="Pictures of a message that is attacked.", min=8)] = 100,
    visited: Annotated[int, typer.Option(help="Pictures that are visited often.", min=1)] = 20,
    steps: Annotated[int, typer.Option(help="Steps that each inverse network learns.", min=1)] = 300,
    record: RecordOption = None,
) -> None:
    """Attack the messages of a split training with all defences on: by algebra, averaging, inverse networks and UnSplit."""
    with ProgressBar("attack") as bar:
        found = run(count, visited=visited, steps=steps, progress=bar)
    finish(record_path(record, "split_attacks"), found, table(found))


def _rows(records: Records, attack: str) -> pd.DataFrame:
    frame = pd.DataFrame(records["split_attacks"]["rows"])
    return frame[frame["attack"] == attack]


def _short_of_bound(records: Records) -> float:
    """The most that the algebraic attack's likeness differs from the autoencoder's own, for pictures and hints."""
    bound, found = _rows(records, "bound").iloc[0], _rows(records, "algebraic")
    return float(max((found[name] - bound[name]).abs().max() for name in ("hint", "picture")))


def _seconds(records: Records) -> float:
    return float(_rows(records, "algebraic")["seconds"].max())


def _share(attack: str, **where: int) -> Value:
    """The likeness of hints that an attack finds, as a share of the bound."""

    def value(records: Records) -> float:
        found = _rows(records, attack)
        for name, wanted in where.items():
            found = found[found[name] == wanted]
        return float(found["hint"].iloc[0] / _rows(records, "bound")["hint"].iloc[0])

    return value


def _more_than_nothing(records: Records) -> float:
    """How much liker than the public mean the pictures are that adaptive networks find under the latest policy."""
    found = _rows(records, "inverse, adaptive").sort_values("from")["picture"].iloc[-1]
    return float(found - _rows(records, "nothing")["picture"].iloc[0])


TARGET = Target(
    "split-attacks",
    "What the server of a split training reads from messages with all defences on",
    "the timestep policy and the activation defend against attacks that work on other split trainings",
    "published",
    (
        Command(
            "split_attacks",
            ("bench", "split-attacks"),
            (),
            ("--count", "16", "--visited", "2", "--steps", "20"),
        ),
    ),
    (
        Check("algebraic, SSIM from the autoencoder's own", 0.005, 0, _short_of_bound, 0.005, 4, bound="most"),
        Check("algebraic, seconds", 1, 1, _seconds, 5, 2, " s", "most"),
        Check(
            "averaging, share of the bound, 16 visits, from 618",
            0.9,
            0.05,
            _share("averaging", **_LATE, visits=16),
            0.3,
            2,
            bound="least",
        ),
        Check(
            "adaptive network, share of the bound, hints, from 618",
            0.6,
            0.1,
            _share("inverse, adaptive", **_LATE),
            None,
            2,
            bound="least",
        ),
        Check(
            "adaptive network, pictures less the public mean, from 900",
            0.05,
            0.05,
            _more_than_nothing,
            None,
            2,
            bound="most",
        ),
    ),
    order=104,
)
