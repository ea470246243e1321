"""The claims of Split-learning ControlNet (arXiv 2409.08503), with what the records of three experiments say of each."""

from pathlib import Path

import pandas as pd

from . import split_quality, split_wire
from .markdown import markdown, times
from .target import Records

LATE = 618  # a first timestep that the published code has


def claims_table(measurements: Path) -> str:
    """Return each claim, what was measured here, and a verdict, as Markdown."""
    records = Records(measurements)
    scores = pd.DataFrame(records["split_quality"]["rows"]).set_index("way")
    seconds = split_wire.table(records["split_wire"])
    attacks = pd.DataFrame(records["split_attacks"]["rows"]).set_index("attack")
    worth = {row["from"]: row for row in records["split_attacks"]["worth"]}
    central, split, late = (scores.loc[way] for way in (split_quality.CENTRAL, "split, from 0", f"split, from {LATE}"))
    bound, nothing = attacks.loc["bound"], attacks.loc["nothing"]
    computed, learned = attacks.loc[["algebraic"]], attacks.loc[["inverse, adaptive"]]
    adaptive = learned.set_index("from").loc[LATE]
    gain = seconds.loc["conventional", "WAN"] / seconds.loc["published", "WAN"]
    off = max(float((computed[name] - bound[name]).abs().max()) for name in ("hint", "picture"))
    rows = [
        [
            "splitting keeps the quality",
            f"IoU {split['iou']:.3f}, in one place {central['iou']:.3f}",
            _verdict(central["iou"] - split["iou"] <= 0.02),
        ],
        [
            f"so does the timestep policy, from {LATE}",
            f"IoU {late['iou']:.3f}, from 0 {split['iou']:.3f}",
            _verdict(split["iou"] - late["iou"] <= 0.02),
        ],
        ["no gradients come back, which saves time", f"{times(gain)} faster a step on a WAN", _verdict(gain > 1.2)],
        [
            "the server does not learn pictures and hints",
            f"it computes both; SSIM within {off:.3f} of the autoencoder's own",
            _verdict(off > 0.05),
        ],
        [
            "the policy keeps pictures from networks that learn to invert",
            f"SSIM {adaptive['picture']:.2f}; bound {bound['picture']:.2f}, a mean picture {nothing['picture']:.2f}",
            _verdict(adaptive["picture"] < nothing["picture"] + 0.1),
        ],
        [
            "it keeps hints from them",
            f"SSIM {adaptive['hint']:.2f}; bound {bound['hint']:.2f}, a mean hint {nothing['hint']:.2f}",
            _verdict(adaptive["hint"] < nothing["hint"] + 0.1 * bound["hint"]),
        ],
        [
            f"it has an epsilon of {worth[LATE]['published']:.1f}",
            f"with delta 1; for 1e-5 and one visit {worth[LATE]['picture']:,.0f} for a picture and {worth[LATE]['hint']:,.0f} "
            "for a hint, if noise were not sent",
            "does not hold",
        ],
        ["prompts stay with the client", "equal messages for different prompts", "holds"],
    ]
    return markdown(["claim", "measured", "here"], rows)


def _verdict(true: bool) -> str:
    return "holds" if true else "does not hold"


TABLES = {"claims_split": claims_table}
