"""The paper's claim, as ratios against direct SPU, and the same ratios from records of `cipherdm bench step`.

CipherDM (arXiv 2409.05414) claims 1.084 to 2.328 times less time and 1.212 to 1.791 times less communication than the plain
model on SPU. Its release runs SPU with the Pade exponential; SPU's default is the Taylor exponential, which is cheaper. So
there are two baselines, and a gain says little without the name of its baseline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..bench.step import BASELINES

CLAIMED = {"time": (1.084, 2.328), "bytes": (1.212, 1.791)}
"""The lowest and the highest ratio that the paper claims."""


def gains(rows: Sequence[Mapping[str, Any]], batch: int = 1) -> pd.DataFrame:
    """How many times less every set of protocols takes than each of the two baselines, from rows of `bench step`.

    Returns:
        A row for each model, set and baseline, with columns model, protocols, baseline, time, time_low, time_high, bytes,
        sends. The last five are baseline divided by set; time is of medians, time_low and time_high of the least favourable
        and of the most favourable runs.
    """
    found = []
    here = [row for row in rows if row["batch"] == batch]
    for row in here:
        for base in here:
            if base["model"] == row["model"] and base["variant"] in BASELINES and row["variant"] not in BASELINES:
                found.append(
                    {
                        "model": row["model"],
                        "protocols": row["variant"],
                        "baseline": base["variant"],
                        "time": base["seconds"] / row["seconds"],
                        "time_low": base["seconds_low"] / row["seconds_high"],
                        "time_high": base["seconds_high"] / row["seconds_low"],
                        "bytes": base["bytes"] / row["bytes"],
                        "sends": base["sends"] / row["sends"],
                    }
                )
    return pd.DataFrame(
        found, columns=["model", "protocols", "baseline", "time", "time_low", "time_high", "bytes", "sends"]
    )


def verdict(gain: float, quantity: str) -> str:
    """ "below", "within" or "above" the claimed range of "time" or "bytes"."""
    low, high = CLAIMED[quantity]
    return "below" if gain < low else "above" if gain > high else "within"


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """`gains` with the verdict on time and on bytes, for the set "cipherdm" that the claim is about."""
    mine = table[table["protocols"] == "cipherdm"]
    told = {f"{quantity}, claimed": [verdict(gain, quantity) for gain in mine[quantity]] for quantity in CLAIMED}
    return mine[["model", "baseline", "time", "bytes"]].assign(**told).reset_index(drop=True)
