"""Time of sampling over a network, from records of a denoising step: the latency model times the number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CipherDMError
from ..records import read_record
from .latency import Latency, latency
from .networks import Network

SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM", "dpmsolver++": "DPM-Solver++"}
"""Names of schedulers in tables and figures."""

_COLUMNS = ("model", "variant", "batch", "seconds", "bytes", "rounds", "path_bytes")


@dataclass(frozen=True)
class StepCost:
    """Cost of one denoising step with all parties on one machine."""

    model: str
    variant: str  # name of the way in which the step is computed, in most cases of a protocol set
    batch: int  # images at a time
    seconds: float
    bytes: int  # of all parties
    rounds: int  # messages that have to wait for one another
    path_bytes: int  # bytes that leave one after the other

    def over(self, network: Network, steps: int = 1) -> Latency:
        """Apply the latency model to so many steps."""
        return latency(steps * self.seconds, steps * self.rounds, steps * self.path_bytes, network)


def step_costs(path: str | Path) -> tuple[StepCost, ...]:
    """Read the rows of a record of `cipherdm bench step`, or the sums over a step of one of `cipherdm bench breakdown`.

    Raises CipherDMError if there is no such record, or it is older than the counting of rounds.
    """
    path = Path(path)
    benchmark, _, model = path.stem.partition("_")
    command = f"cipherdm bench {benchmark} {model}"
    record = read_record(path, command)
    frame = pd.DataFrame(record["rows"])
    missing = " and ".join(name for name in ("rounds", "path_bytes") if name not in frame)
    if missing:
        raise CipherDMError(f"the rows of {path.name} have no {missing}: make it with `{command}`.")
    if record["benchmark"] == "breakdown":
        frame = frame.groupby("variant", sort=False)[["seconds", "bytes", "rounds", "path_bytes"]].sum().reset_index()
        frame = frame.assign(model=record["model"], batch=record["batch"])
    numbers = {"batch": int, "bytes": int, "rounds": int, "path_bytes": int}
    return tuple(StepCost(**row) for row in frame[list(_COLUMNS)].astype(numbers).to_dict("records"))


def cost_of(costs: Sequence[StepCost], variant: str, batch: int = 1) -> StepCost:
    """Return the cost of this variant and batch. Raises CipherDMError, naming the available ones, if there is none."""
    for cost in costs:
        if (cost.variant, cost.batch) == (variant, batch):
            return cost
    there = ", ".join(f"{cost.variant} for {cost.batch}" for cost in costs)
    raise CipherDMError(f"there is no step of {variant!r} for {batch} images: there are {there}.")


def shares(cost: StepCost, round_trips: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
    """Return the shares of computing, delays and sending in a step's time, float64 [3, R, B], over a grid of networks.

    Round trips [R] are in seconds, bandwidths [B] in bit/s. The shares add up to 1 over the first axis.
    """
    delays = cost.rounds * round_trips[:, None] / 2 + np.zeros_like(bandwidths)
    sending = 8 * cost.path_bytes / bandwidths + np.zeros_like(round_trips)[:, None]
    parts = np.stack([np.full_like(delays, cost.seconds), delays, sending])
    return parts / parts.sum(axis=0)
