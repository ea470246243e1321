"""Round trip and throughput of a connection over shaped links, beside those that were asked for."""

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from cipherdm.costs import NETWORKS, LinkShaper, Network
from cipherdm.costs.shaping import ping
from cipherdm.progress import Progress, ProgressBar

from .commands import RecordOption, finish, record_path, silent
from .target import Check, Command, Records, Target, Value

_LARGEST = 250_000_000  # bytes of a transfer
_ADDRESSES = (Path("/nowhere"),) * 3  # of parties that nobody connects to here


def run(
    networks: Sequence[Network] = tuple(NETWORKS.values()), repetitions: int = 5, progress: Progress = silent
) -> dict[str, Any]:
    """Measure shaped connections, each network's `repetitions` times in turns, and return the record."""
    found: dict[str, list[tuple[float, float]]] = {network.name: [] for network in networks}
    for turn in range(repetitions):
        for index, network in enumerate(networks):
            progress(turn * len(networks) + index, repetitions * len(networks), network.name)
            with LinkShaper(network, _ADDRESSES) as shaper:
                found[network.name].append((measure_round_trip(shaper), measure_throughput(shaper)))
    rows = [_row(network, found[network.name]) for network in networks]
    return {"benchmark": "network", "repetitions": repetitions, "rows": rows}


def measure_round_trip(shaper: LinkShaper) -> float:
    """Return the median seconds of a byte there and back, from 100 times, or from ten or more if they take over a second."""
    pings = min(100, max(10, round(1 / max(shaper.network.round_trip, 1e-3))))
    with shaper.probe() as (near, far):
        return statistics.median(ping(near, far) for _ in range(pings))


def measure_throughput(shaper: LinkShaper) -> float:
    """Return the bit/s of one long transfer, from the arrival of its first bytes to that of its last."""
    size = int(min(0.5 * shaper.network.bandwidth / 8, _LARGEST))  # about half a second
    buffer = bytearray(1 << 18)
    with shaper.probe() as (near, far):
        sender = threading.Thread(target=near.sendall, args=(bytes(size),))
        sender.start()
        first = received = far.recv_into(buffer)
        start = time.perf_counter()
        while received < size:
            received += far.recv_into(buffer)
        seconds = time.perf_counter() - start
        sender.join()
    return 8 * (size - first) / seconds


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each network: round trip (ms) and throughput (Mbit/s), asked and measured, and errors in percent."""
    frame = pd.DataFrame(record["rows"]).set_index("network")
    columns = {}
    for name, asked, unit, size in (
        ("round trip", "round_trip", "ms", 1e-3),
        ("bandwidth", "bandwidth", "Mbit/s", 1e6),
    ):
        measured = frame[f"measured_{asked}"]
        columns |= {f"asked {unit}": frame[asked] / size, f"measured {unit}": measured / size}
        columns[f"{name} error %"] = 100 * (measured / frame[asked] - 1)
    return pd.DataFrame(columns)


def _row(network: Network, measured: Sequence[tuple[float, float]]) -> dict[str, Any]:
    row = {"network": network.name, "round_trip": network.round_trip, "bandwidth": network.bandwidth}
    for name, values in zip(("round_trip", "bandwidth"), zip(*measured, strict=True), strict=True):
        row |= {f"measured_{name}": statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}
    return row


def largest_error(*networks: str) -> Value:
    """Return the function that takes the largest error of some networks' links, or of all, in percent."""

    def value(records: Records) -> float:
        rows = [row for row in records["network"]["rows"] if not networks or row["network"] in networks]
        return max(100 * abs(r[f"measured_{name}"] / r[name] - 1) for r in rows for name in ("round_trip", "bandwidth"))

    return value


def measure(
    repetitions: Annotated[int, typer.Option(help="Times that each network's links are set up.", min=1)] = 5,
    record: RecordOption = None,
) -> None:
    """Measure how exactly links are shaped: round trip and throughput, asked for and measured. Takes about a minute."""
    with ProgressBar("run") as bar:
        found = run(repetitions=repetitions, progress=bar)
    finish(record_path(record, "network"), found, table(found))


TARGET = Target(
    "network",
    "How exactly links are shaped",
    "round trip and bandwidth are within 10% of what was asked for",
    "ours",
    (Command("network", ("bench", "network"), (), ("--repetitions", "1")),),
    (
        # A busy machine cannot carry a LAN's bandwidth, and one measurement of a network may meet a busy moment.
        Check("largest error", 10, 0, largest_error(), None, 0, "%", "most"),
        Check("largest error of WAN and narrow", 10, 0, largest_error("WAN", "narrow"), 20, 0, "%", "most"),
    ),
    order=180,
)
