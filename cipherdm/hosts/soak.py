"""Many small requests by several clients, each checked against plaintext: is any lost or mixed up, does memory stay flat?"""

import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..engine import Node, Spec, compile_plan
from ..engine.ports import free_ports
from ..errors import CipherDMError
from .config import Limits
from .loopback import LoopbackHosts
from .model import Model
from .remote import RemoteCluster
from .trial import make_trial

SHAPE = (32, 16)
TOLERANCE = 0.01  # of an output that is at most some 30 in size


def soak(
    requests: int = 200, clients: int = 4, *, runs: int = 2, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Start three hosts on this machine and have clients make requests, all at the same time.

    Each request brings numbers of its own, so that the answer to another's would be seen.

    Args:
        requests: of all clients together.
        clients: that make them.
        runs: that the hosts compute at a time.
        progress: called as `progress(done, requests)`.

    Returns:
        A JSON-ready record: how many answers were right, wrong or missing, the seconds of each, and after each the bytes
        of memory that each party's processes held together.
    """
    names = [f"client{index}" for index in range(clients)]
    limits = Limits(runs=runs, queue=max(16, clients), runs_per_client=1)
    outcomes: list[dict[str, Any]] = []
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
                            outcomes.append(outcome | {"memory_bytes": _memory(operator)})
                            if progress is not None:
                                progress(len(outcomes), requests)

            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                for done in [pool.submit(work, index) for index in range(clients)]:
                    done.result()
            seconds = time.perf_counter() - start
            counts = [(status.done, status.failed) for _, status in operator.states()]
    return {
        "requests": requests,
        "clients": clients,
        "runs_at_a_time": runs,
        "seconds": seconds,
        "right": sum(outcome["error"] == "" for outcome in outcomes),
        "largest_difference": max((o["difference"] for o in outcomes if o["difference"] is not None), default=None),
        "errors": sorted({outcome["error"] for outcome in outcomes} - {""}),
        "done_by_party": [done for done, _ in counts],
        "failed_by_party": [failed for _, failed in counts],
        "request_seconds": [round(outcome["seconds"], 4) for outcome in outcomes],
        "memory_bytes": [outcome["memory_bytes"] for outcome in outcomes],
    }


def growth(record: dict[str, Any]) -> list[float]:
    """By how much each party's memory grew from the second quarter of the requests to the last, as a share.

    The first quarter is left out: processes are started then, and libraries reserve what they go on to use again.
    """
    memory = np.asarray(record["memory_bytes"], float)
    quarter = len(memory) // 4
    early, late = memory[quarter : 2 * quarter], memory[-quarter:]
    return (np.median(late, axis=0) / np.median(early, axis=0) - 1).tolist()


def _register(files: dict[str, Path]) -> np.ndarray:
    weights = np.random.default_rng(99).standard_normal((SHAPE[0], SHAPE[0])).astype(np.float32) / 8
    specs = {"w": Spec.of(weights), "x": Spec(SHAPE)}
    nodes = [Node("product", jnp.matmul, ("w", "x"), ("y",)), Node("square", jnp.square, ("y",), ("y",))]
    with RemoteCluster(files["owner"]) as owner:
        plan = compile_plan(nodes, specs, ("y",))
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


def _memory(operator: RemoteCluster) -> list[int]:
    """Bytes that each party's processes hold together, by rank; 0 for one that does not answer."""
    states = operator.states()
    return [
        0
        if isinstance(state, CipherDMError)
        else state[1].memory_bytes + sum(p.memory_bytes for p in state[1].processes)
        for state in states
    ]
