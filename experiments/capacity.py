"""What a triple of hosts serves in an hour, and how long requests wait, simulated from measured run times."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from cipherdm.costs import LAN, NARROW, WAN, Network
from cipherdm.costs.latency import Latency, latency
from cipherdm.costs.sampling import step_costs
from cipherdm.progress import Progress, ProgressBar
from cipherdm.records import MEASUREMENTS, read_record

from .commands import RecordOption, finish, record_path, silent
from .markdown import duration, markdown
from .pictures import way_named
from .target import Check, Command, Target

CORES, BETWEEN = (1, 4, 16), (LAN, WAN, NARROW)
TRIPLES, LOADS, ASKED = (1, 10, 100), (0.5, 0.8, 0.9), (1, 2)
SIMULATED = "mnist10-turbo-2"  # whose run of ten digits over a LAN is what requests ask for
_STEPPED = (
    *(f"{model}_batch{pictures}" for model in ("mnist10", "sd-mini", "mnist01-tiny") for pictures in (4, 16)),
    *("mnist01-tiny", "mnist-dit"),
)
_STEPS = 20  # of draws that are in records of a step alone
_FREE = 1  # percentile of a soak's request times that stands for those that found a free slot


@dataclass(frozen=True)
class Draw:
    """One run that draws pictures, with all parties on one machine."""

    name: str
    pictures: int
    seconds: float
    rounds: int
    path_bytes: int

    def over(self, network: Network) -> Latency:
        """Apply the latency model to the run."""
        return latency(self.seconds, self.rounds, self.path_bytes, network)

    def an_hour(self, network: Network, cores: int) -> float:
        """Return the pictures of an hour, with one run at a time for each core of a party.

        Runs wait for messages side by side, but their bytes leave through one network card, one after the other. So there are
        at most `cores` runs in the time of one, and at most one in the time that its bytes take to leave.
        """
        time = self.over(network)
        runs = min(cores / time.seconds, 1 / time.sending)
        return 3600 * self.pictures * runs


def draws(measurements: Path) -> list[Draw]:
    """Return the shipped models' runs by fast-rings: those of `bench pictures`, others as many times a step as they take."""
    found = [
        Draw(way_named(row), *(row[name] for name in ("pictures", "seconds", "rounds", "path_bytes")))
        for row in read_record(measurements / "pictures.json")["rows"]
        if row["protocols"] == "fast-rings"
    ]
    for stem in _STEPPED:
        found += [
            Draw(
                f"{cost.model}, DDIM, {_STEPS} steps, {cost.variant}",
                cost.batch,
                *(_STEPS * number for number in (cost.seconds, cost.rounds, cost.path_bytes)),
            )
            for cost in step_costs(measurements / f"step_{stem}.json")
            if cost.variant == "fast-rings"
        ]
    return found


def capacity_table(measurements: Path) -> str:
    """Return the pictures an hour of a triple, by the way of drawing, the network and the cores of a party."""
    header = ["one run", "pictures", *(f"{network.name}, {cores} cores" for network, cores in product(BETWEEN, CORES))]
    rows = [
        [draw.name, str(draw.pictures)]
        + [f"{draw.an_hour(network, cores):,.0f}" for network, cores in product(BETWEEN, CORES)]
        for draw in draws(measurements)
    ]
    return markdown([each.replace(" 1 cores", " 1 core") for each in header], rows)


def waits(
    triples: int, load: float, seconds: float, *, asked: int = 1, slots: int = 1, requests: int = 50_000, seed: int = 0
) -> np.ndarray:
    """Return how many seconds each request waits for a slot, in a simulation of triples that share nothing.

    The first fifth of the requests is left out, because they find less before them than later ones.

    Args:
        triples: number of triples.
        load: requests that come, as a share of those that all slots can answer, below 1. They come at random (Poisson).
        seconds: time of a run.
        asked: number of triples, drawn at random, of which a client takes the one with the fewest requests in hand.
        slots: runs at a time at each triple.
        requests: number of requests in all.
        seed: seed of the simulation.
    """
    generator, environment = np.random.default_rng(seed), simpy.Environment()
    hosts = [simpy.Resource(environment, slots) for _ in range(triples)]
    waited = np.zeros(requests)

    def answered(index: int) -> Iterator[simpy.Event]:
        came = environment.now
        host = min((hosts[each] for each in generator.integers(triples, size=asked)), key=_in_hand)
        with host.request() as place:
            yield place
            waited[index] = environment.now - came
            yield environment.timeout(seconds)

    def arrivals() -> Iterator[simpy.Event]:
        for index, gap in enumerate(generator.exponential(seconds / (load * triples * slots), requests)):
            yield environment.timeout(gap)
            environment.process(answered(index))

    environment.process(arrivals())
    environment.run()
    return waited[requests // 5 :]


def soaked(record: Mapping[str, Any]) -> float:
    """Return the seconds that a soak should take, by a simulation from the time of requests that found a free slot.

    Each client asks again as soon as it is answered.
    """
    environment = simpy.Environment()
    host = simpy.Resource(environment, record["runs_at_a_time"])
    seconds = float(np.percentile(record["request_seconds"], _FREE))

    def client(requests: int) -> Iterator[simpy.Event]:
        for _ in range(requests):
            with host.request() as place:
                yield place
                yield environment.timeout(seconds)

    for index in range(record["clients"]):
        environment.process(client(len(range(index, record["requests"], record["clients"]))))
    environment.run()
    return environment.now


def _in_hand(host: simpy.Resource) -> int:
    return host.count + len(host.queue)


def run(measurements: Path = MEASUREMENTS, *, requests: int = 100_000, progress: Progress = silent) -> dict[str, Any]:
    """Simulate every number of triples, load, and number of triples asked, and return the record."""
    (drawn,) = (draw for draw in draws(measurements) if draw.name.startswith(f"{SIMULATED},"))
    seconds = drawn.over(LAN).seconds
    rows, cases = [], list(product(LOADS, TRIPLES, ASKED))
    for index, (load, triples, asked) in enumerate(cases):
        progress(index, len(cases), f"{triples} triples, load {load:.0%}")
        if asked <= triples:
            found = waits(triples, load, seconds, asked=asked, requests=max(requests, 2000 * triples))
            row = {"load": load, "triples": triples, "asked": asked, "mean": found.mean()}
            rows.append(row | {"middle": np.median(found), "slowest_twentieth": np.percentile(found, 95)})
    soak = read_record(measurements / "soak.json")
    return {
        "benchmark": "capacity",
        "model": SIMULATED,
        "network": LAN.name,
        "run_seconds": seconds,
        "rows": rows,
        "soak": {"simulated": soaked(soak), "measured": soak["seconds"]},
    }


def by_formula(load: float, seconds: float) -> float:
    """Return the mean wait for one server with random arrivals and one length of service, M/D/1 (Pollaczek and Khinchine)."""
    return seconds * load / (2 * (1 - load))


def waits_table(measurements: Path) -> str:
    """Return how long simulated requests wait, by load and number of triples."""
    record = read_record(measurements / "capacity.json")
    header = ["load", "triples", "runs an hour", "triples asked", "mean wait", "by M/D/1", "slowest twentieth"]
    rows = [
        [
            f"{row['load']:.0%}",
            str(row["triples"]),
            f"{3600 * row['load'] * row['triples'] / record['run_seconds']:,.0f}",
            str(row["asked"]),
            duration(row["mean"]),
            duration(by_formula(row["load"], record["run_seconds"])) if row["asked"] == 1 else "-",
            f"{duration(row['slowest_twentieth'])} or more",
        ]
        for row in record["rows"]
    ]
    return markdown(header, rows)


def measure(record: RecordOption = None) -> None:
    """Simulate how long requests wait at 1, 10 and 100 triples, from measured run times; measures nothing itself."""
    path = record_path(record, "capacity")
    with ProgressBar("simulation") as bar:
        found = run(progress=bar)
    finish(path, found)


TABLES = {"capacity": capacity_table, "waits": waits_table}


def _farthest(records: Mapping[str, Any]) -> float:
    found = records["capacity"]
    errors = (
        abs(row["mean"] / by_formula(row["load"], found["run_seconds"]) - 1)
        for row in found["rows"]
        if row["asked"] == 1
    )
    return 100 * max(errors)


TARGET = Target(
    "capacity",
    "Waiting times at 1, 10 and 100 triples of hosts",
    "the simulation takes as long for the soak as the soak took, and waits as M/D/1 says",
    "ours",
    (Command("capacity", ("bench", "capacity")),),
    (
        Check(
            "seconds of the soak, simulated over measured",
            1,
            0.1,
            lambda records: records["capacity"]["soak"]["simulated"] / records["capacity"]["soak"]["measured"],
            0.1,
            2,
        ),
        Check("largest error of a mean wait against M/D/1", 8, 0, _farthest, 0, 0, "%", "most"),
    ),
    order=215,
)
