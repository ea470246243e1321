"""Many small requests by several clients, each checked against plaintext: none may be lost, and memory stays level."""

import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import typer
from matplotlib.figure import Figure

from cipherdm.engine import Node, Spec, compile_plan
from cipherdm.errors import CipherDMError
from cipherdm.hosts.config import Limits
from cipherdm.hosts.loopback import LoopbackHosts, free_ports
from cipherdm.hosts.model import Model
from cipherdm.hosts.remote import RemoteCluster
from cipherdm.hosts.trial_files import make_trial
from cipherdm.progress import Progress, ProgressBar
from cipherdm.records import read_record, write_record
from cipherdm.views.style import PALETTE, describe, new_figure

from .commands import RecordOption, record_path, silent
from .target import Check, Command, Target

SHAPE = (32, 16)
TOLERANCE = 0.01  # outputs are up to 30 in size


def run(requests: int = 4000, clients: int = 4, *, runs: int = 2, progress: Progress = silent) -> dict[str, Any]:
    """Start three hosts on this machine and have clients make requests, all at the same time. Return the record.

    Each request brings numbers of its own, so that an answer to another request would be noticed. The hosts compute `runs` at
    a time. "memory_bytes" is what each party's processes held together, None where a party does not tell, after every so many
    requests that there are some 200 such rows.
    """
    names = [f"client{index}" for index in range(clients)]
    limits = Limits(runs=runs, queue=max(16, clients), runs_per_client=1)
    outcomes: list[dict[str, Any]] = []
    memory: list[list[int | None]] = []
    every = max(1, requests // 200)
    lock = threading.Lock()
    with tempfile.TemporaryDirectory(prefix="cipherdm-soak-") as folder:
        files = make_trial(Path(folder) / "trial", port=free_ports(3 + 3 * runs), clients=names, limits=limits)
        with LoopbackHosts(files), RemoteCluster(files["operator"]) as operator:
            weights = _register(files)

            def work(index: int) -> None:
                generator = np.random.default_rng(index)
                with RemoteCluster(files[names[index]]) as cluster:
                    for _ in range(index, requests, clients):
                        outcome = _one(cluster, weights, generator)
                        with lock:
                            outcomes.append(outcome)
                            if len(outcomes) % every == 0:
                                memory.append(_memory(operator))
                            progress(len(outcomes), requests, "answered")

            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(work, range(clients)))  # which raises what a client has raised
            seconds = time.perf_counter() - start
            states = [status for _, status in operator.states()]
    return {
        "requests": requests,
        "clients": clients,
        "runs_at_a_time": runs,
        "seconds": seconds,
        "right": sum(outcome["error"] == "" for outcome in outcomes),
        "largest_difference": max((o["difference"] for o in outcomes if o["difference"] is not None), default=None),
        "errors": sorted({outcome["error"] for outcome in outcomes} - {""}),
        "done_by_party": [status.done for status in states],
        "failed_by_party": [status.failed for status in states],
        "request_seconds": [round(outcome["seconds"], 4) for outcome in outcomes],
        "memory_bytes": memory,
    }


def growth(record: Mapping[str, Any]) -> list[float]:
    """Return the growth of each party's memory from the second quarter of the requests to the last, as a share."""
    memory = np.asarray(record["memory_bytes"], float)
    quarter = len(memory) // 4
    early, late = memory[quarter : 2 * quarter], memory[-quarter:]
    return (np.nanmedian(late, axis=0) / np.nanmedian(early, axis=0) - 1).tolist()


def _register(files: dict[str, Path]) -> np.ndarray:
    weights = np.random.default_rng(99).standard_normal((SHAPE[0], SHAPE[0])).astype(np.float32) / 8
    nodes = [Node("product", jnp.matmul, ("w", "x"), ("y",)), Node("square", jnp.square, ("y",), ("y",))]
    plan = compile_plan(nodes, {"w": Spec.of(weights), "x": Spec(SHAPE)}, ("y",))
    with RemoteCluster(files["owner"]) as owner:
        owner.register(Model("soak", plan, {"w": weights}, {"x": Spec(SHAPE)}, ("y",)))
    return weights


def _one(cluster: RemoteCluster, weights: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
    x = generator.uniform(-2, 2, SHAPE).astype(np.float32)
    start = time.perf_counter()
    try:
        found = cluster.request("soak", {"x": x}).outputs["y"]
    except CipherDMError as error:
        return {"error": str(error), "difference": None, "seconds": time.perf_counter() - start}
    difference = float(np.abs(found - (weights @ x) ** 2).max())
    error = "" if difference < TOLERANCE else "a wrong answer"
    return {"error": error, "difference": difference, "seconds": time.perf_counter() - start}


def _memory(operator: RemoteCluster) -> list[int | None]:
    """Return the bytes that each party's processes hold together, by rank; None for a party that does not tell."""
    found = [None if isinstance(state, CipherDMError) else state[1] for state in operator.states()]
    return [s and (s.memory_bytes + sum(p.memory_bytes for p in s.processes) or None) for s in found]


def endurance(record: Mapping[str, Any]) -> Figure:
    """Draw the seconds of each request of a record, and the memory of each party's processes after it."""
    seconds, memory = np.asarray(record["request_seconds"]), np.asarray(record["memory_bytes"], float) / 2**20
    figure = new_figure(8.6, 3.2)
    left, right = figure.subplots(1, 2)
    order, ticks = np.arange(1, len(seconds) + 1), [0.25, 0.5, 1, 2, 4, 8, 16]
    left.scatter(order, seconds, s=max(2, 2800 / len(order)), color=PALETTE[0])
    left.set(yscale="log", xlabel="requests, in the order in which they ended", ylabel="seconds of a request")
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    for rank, held in enumerate(memory.T):
        # Narrower lines over wider ones, since the three nearly coincide.
        answered = np.arange(1, len(held) + 1) * (len(order) // len(held))
        right.plot(answered, held, color=PALETTE[rank], linewidth=(7, 4, 1.5)[rank], label=f"party {rank}")
    right.set(xlabel="requests answered", ylabel="MiB of a party's processes", ylim=(0, 1.15 * np.nanmax(memory)))
    right.legend(loc="lower right", frameon=False, fontsize=9)
    for axis in (left, right):
        axis.grid(color="#e5e5e5")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return describe(
        figure,
        f"Left, the seconds of {len(seconds)} requests: {np.median(seconds):.2g} in the middle, {seconds.max():.3g} for the "
        f"slowest, among the first. Right, the memory of each party, at most {np.nanmax(memory):.0f} MiB, which from the "
        f"second quarter to the last grew by {', '.join(f'{share:+.1%}' for share in growth(record))}.",
    )


def measure(
    requests: Annotated[int, typer.Option(help="Number of requests, of all clients together.", min=4)] = 4000,
    clients: Annotated[int, typer.Option(help="Number of clients, all at the same time.", min=1)] = 4,
    record: RecordOption = None,
) -> None:
    """Have three hosts on this machine answer many requests of several clients, and check each answer against plaintext."""
    path = record_path(record, "soak")
    with ProgressBar("request") as bar:
        found = run(requests, clients, progress=bar)
    write_record(path, found)
    typer.echo(
        f"{found['right']} of {requests} answers right in {found['seconds']:.0f} s; memory of the parties grew by "
        f"{', '.join(f'{share:+.1%}' for share in growth(found))}.\nWrote {path}."
    )
    raise typer.Exit(0 if found["right"] == requests else 3)


_GROWTH = "growth of a party's memory, second quarter to last"

TARGET = Target(
    "soak",
    "Three hosts answer 4,000 small requests of four clients",
    "no answer is lost or mixed up, and after the first quarter of the requests the parties' memory stays level",
    "ours",
    (Command("soak", ("bench", "soak"), (), ("--requests", "48")),),
    (
        Check("answers that are right", 100, 0, lambda r: 100 * r["soak"]["right"] / r["soak"]["requests"], 0, 1, "%"),
        Check(_GROWTH, 2, 0, lambda r: 100 * max(growth(r["soak"])), 3, unit="%", bound="most"),
    ),
    lambda records: endurance(read_record(records / "soak.json")),
    order=210,
)
