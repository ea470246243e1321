"""Four ways to train a ControlNet on others' pictures: what goes over the wire, how often a client waits, and for how long."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from cipherdm.costs import LAN, WAN, LinkShaper, Network
from cipherdm.files import private_folder
from cipherdm.models import find_model
from cipherdm.progress import Progress, ProgressBar
from cipherdm.split import Client, Examples, Optimisation, SplitTrial, load_base, make_split_trial

from .commands import RecordOption, finish, record_path, silent
from .markdown import markdown, records_named, times
from .target import Check, Command, Records, Target, Value
from .training.control.federated import federate
from .training.control.recipe import SD_MINI_CONTROL_SPLIT
from .training.control.split import pictures_of_clients
from .training.run import one_thread

CONFIG = replace(SD_MINI_CONTROL_SPLIT, pictures=200)
STRUCTURES, FEDERATED = ("published", "lean", "conventional"), "federated"
WAITS = {"published": 0, "lean": 0, "conventional": 1, FEDERATED: 0}  # of a client, per step
_LIMIT = 900.0  # seconds for one training


def run(
    steps: int = 40, networks: Sequence[Network | None] = (None, LAN, WAN), progress: Progress = silent
) -> dict[str, Any]:
    """Train a few steps of sd-mini's ControlNet with each structure over each network; return the record.

    Processes of a server and two clients train on this machine, over links that are slowed down to those of a network. Bytes
    are those of messages for a picture, without what TLS and HTTP/2 add; seconds are of a step, which takes a batch of each
    client. Federated averaging has the bytes of a client's round, whatever the number of pictures in it.
    """
    rows, total = [], len(STRUCTURES) * len(networks) + 1
    with tempfile.TemporaryDirectory() as name, one_thread():
        data = pictures_of_clients(Path(name), CONFIG)
        for structure in STRUCTURES:
            for network in networks:
                progress(len(rows), total, f"{structure}, {network or 'loopback'}")
                rows.append(_trained(Path(name) / f"{len(rows)}", data, structure, network, steps))
        progress(len(rows), total, FEDERATED)
        client = Client(load_base(find_model(CONFIG.base)), CONFIG.training.defences)
        _, (took,) = federate([(client, Examples.load(data[0]))], Optimisation(1), rounds=1, batch=2)
    rows.append({"structure": FEDERATED, "network": "", "fields": {}, "up": took.up, "down": took.down})
    return {"benchmark": "split-wire", "base": CONFIG.base, "steps": steps, "rows": rows}


def _trained(folder: Path, data: Sequence[Path], structure: str, network: Network | None, steps: int) -> dict[str, Any]:
    """Train with processes; return the row of what the first client measured."""
    training = replace(CONFIG.training, structure=structure, steps=steps)
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(private_folder()))
        server, addresses = sockets / "server.sock", [sockets / "server.sock"]
        if network is not None:
            addresses.append(stack.enter_context(LinkShaper(network, (server, sockets / "none.sock"))).seen_by(1)[0])
        where = {"addresses": [f"unix:{address}" for address in addresses], "seed": 0}
        trial = stack.enter_context(
            SplitTrial(make_split_trial(folder, find_model(CONFIG.base), data, training, **where))
        )
        wire = trial.records(_LIMIT)[training.clients[0]]["wire"]
    pictures = steps * training.batch
    return {
        "structure": structure,
        "network": network.name if network else "loopback",
        "fields": {field: size // pictures for field, size in wire["fields"].items()},
        **{way: wire[way] / pictures for way in ("up", "down")},
        "seconds": wire["seconds"] / (steps - 1),
        "waiting": wire["waiting"] / steps,
    }


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each structure: bytes of a picture, waits of a step, and seconds of a step over each network."""
    frame = pd.DataFrame(record["rows"]).drop(columns="fields")
    whole = frame.drop_duplicates("structure").set_index("structure")[["up", "down"]]
    whole.insert(2, "waits", [WAITS[structure] for structure in whole.index])
    seconds = frame.dropna(subset="seconds").pivot(index="structure", columns="network", values="seconds")
    return whole.join(seconds)


def wire_table(measurements: Path) -> str:
    """Return bytes, waits and seconds of each structure, as Markdown."""
    (record,) = records_named(measurements, "split_wire.json", "cipherdm bench split-wire")
    frame = table(record)
    networks, base = list(frame.columns[3:]), frame.loc["published", "up"]
    rows = []
    for structure, row in frame.iterrows():
        federated = structure == FEDERATED
        seconds = ["-" if federated else f"{row[network]:.2f} s" for network in networks]
        less = "-" if federated else times(base / row["up"])
        unit = "a round" if federated else "a picture"
        rows.append(
            [structure, unit, f"{row['up']:,.0f}", f"{row['down']:,.0f}", less, f"{row['waits']:.0f}", *seconds]
        )
    header = ["way", "bytes of", "up", "down", "fewer up", "waits of a step", *(f"a step, {name}" for name in networks)]
    return markdown(header, rows)


TABLES = {"split_wire": wire_table}


def measure(
    steps: Annotated[int, typer.Option(help="Steps of each training.", min=2)] = 40, record: RecordOption = None
) -> None:
    """Measure what split training sends and how long it takes, as published, lean and conventional, over LAN and WAN."""
    with ProgressBar("training") as bar:
        found = run(steps, progress=bar)
    finish(record_path(record, "split_wire"), found, table(found))


def _fields(structure: str) -> Value:
    """Bytes of the tensors of a picture."""

    def value(records: Records) -> float:
        rows = (row for row in records["split_wire"]["rows"] if row["structure"] == structure)
        return float(sum(next(rows)["fields"].values()))

    return value


def _faster(structure: str) -> Value:
    """How many times longer a conventional step takes on a WAN than one of a structure."""

    def value(records: Records) -> float:
        seconds = table(records["split_wire"])["WAN"]
        return float(seconds["conventional"] / seconds[structure])

    return value


TARGET = Target(
    "split-wire",
    "Bytes, waits and seconds of split training, as published, lean, conventional and federated",
    "no gradients need to come back, so clients send ahead; federated and conventional training send more or wait",
    "published",
    (Command("split_wire", ("bench", "split-wire"), (), ("--steps", "4")),),
    (
        Check("bytes of a picture, published", 13_832, 0, _fields("published"), 0, 0, " B"),
        Check("bytes of a picture, lean", 2_568, 0, _fields("lean"), 0, 0, " B"),
        Check(
            "time of a step on a WAN, conventional / published", 1.3, 0.2, _faster("published"), None, 1, bound="least"
        ),
        Check("time of a step on a WAN, conventional / lean", 2, 0.3, _faster("lean"), None, 1, bound="least"),
    ),
    order=103,
)
