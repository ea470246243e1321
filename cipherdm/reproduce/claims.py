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


STEP_BATCHES = (1, 4, 16)
"""Numbers of pictures that a step is measured with."""


def step_record(model: str, batch: int = 1) -> str:
    """The name of the record of `bench step` for so many pictures, without its folder and ending."""
    return f"step_{model}" + (f"_batch{batch}" if batch > 1 else "")


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


def gains_by_batch(
    rows: Sequence[Mapping[str, Any]], protocols: str = "cipherdm", quantity: str = "time"
) -> pd.DataFrame:
    """`gains` of one set in one quantity: a row for each model and baseline, a column for each number of pictures."""
    tables = [gains(rows, batch).assign(batch=batch) for batch in sorted({row["batch"] for row in rows})]
    table = pd.concat(tables)
    mine = table[table["protocols"] == protocols]
    return mine.pivot(index=["model", "baseline"], columns="batch", values=quantity).rename_axis(columns="pictures")


def verdict(gain: float, quantity: str) -> str:
    """ "below", "within" or "above" the claimed range of "time" or "bytes"."""
    low, high = CLAIMED[quantity]
    return "below" if gain < low else "above" if gain > high else "within"


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """`gains` with the verdict on time and on bytes, for the set "cipherdm" that the claim is about."""
    mine = table[table["protocols"] == "cipherdm"]
    told = {f"{quantity}, claimed": [verdict(gain, quantity) for gain in mine[quantity]] for quantity in CLAIMED}
    return mine[["model", "baseline", "time", "bytes"]].assign(**told).reset_index(drop=True)


_SHOWN = {  # of each kind: the published function, the corrected one, and ours with its scales folded
    "exp": ("exp_cipherdm", "exp_corrected", "exp_bounded4_folded"),
    "silu": ("silu_cipherdm", "silu_corrected", "silu_degree8_bound6_folded"),
    "mish": ("mish_cipherdm", "mish_corrected", "mish_degree6_bound6_folded"),
    "softmax": ("softmax_cipherdm", "softmax_corrected", "softmax_bounded4_calibrated_folded"),
}
_WAYS = ("published", "corrected", "ours")


def function_gains(record: Mapping[str, Any], elements: int = 100_000) -> pd.DataFrame:
    """Each function that CipherDM replaces, four ways, from the record of `bench activations`.

    Returns:
        Indexed by kind and way ("direct", "direct-pade", "published", "corrected", "ours"): largest error, ms and bytes an
        element; how many times less time and fewer bytes than "direct" and than "direct-pade". Softmax rows are of about
        `elements` numbers in all. The error of our exp is a share of the value, on its own domain.
    """
    rows = [row for row in record["rows"] if row["elements"] == elements]
    found = {}
    for kind, functions in _SHOWN.items():
        names = {(f, "taylor"): way for f, way in zip(functions, _WAYS, strict=True)}
        names |= {("direct", "taylor"): "direct", ("direct", "pade"): "direct-pade"}
        mine = {
            names[key]: row for row in rows if row["kind"] == kind and (key := (row["function"], row["exp"])) in names
        }
        for way in (*BASELINES, *_WAYS):
            row = mine[way]
            found[kind, way] = {
                "largest error": row["max_error"],
                "ms": row["ms"],
                "bytes an element": row["bytes"] / elements,
                **{f"time, {base} /": mine[base]["ms"] / row["ms"] for base in BASELINES},
                **{f"bytes, {base} /": mine[base]["bytes"] / row["bytes"] for base in BASELINES},
            }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["function", "way"])


RERUN = pd.DataFrame(
    {
        "FID": [117.13, 316.56, 242.65],
        "F1": [0.8575, 0.0820, 0.6000],
        "seconds": [14.12, 430.59, 442.23],
    },
    index=pd.Index(["plaintext", "CipherDM", "CipherDM with their correction"], name="binary MNIST on SPU"),
)
"""The independent re-run: "Secure Inference for Diffusion Models via Unconditional Scores", ICLR 2026."""
