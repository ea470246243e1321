"""Projected cost of an image at Stable Diffusion's size, from one measured call of its U-Net, beside published figures.

With classifier-free guidance each step takes two calls, with the prompt and without, which count twice the measured call. One
batch of two would take half the rounds at best, and about as long for computing and for sending bytes. Keys and values of a
prompt do not depend on the step, so their blocks count once for each of the two prompts.

Seconds over a network follow from the latency model. Its computing is the measured time, of three parties on the cores of one
machine; in a deployment each party has its own host. `LEFT_OUT` lists what is not in a projection.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cipherdm.costs import CHEETAH_LAN, LAN, SPU_WAN, WAN, Latency, Network, latency
from cipherdm.engine import sum_totals
from cipherdm.errors import CipherDMError
from cipherdm.models import CONTEXT_KINDS
from cipherdm.records import read_record
from cipherdm.views.networks import PARTS
from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .full_call import summary
from .markdown import markdown, records_named

LITERATURE = (LAN, CHEETAH_LAN, WAN, SPU_WAN)
"""Networks of the projection: those that publications compute on."""

_PUBLISHED_COLOUR = "#bbbbbb"

LEFT_OUT = (
    "preparing the owner's weights and sharing them with the parties, which is done once for a model and its schedule",
    "the text encoder and the VAE, which the client runs by itself on what only it sees",
    "guidance, a few operations on the latents at each step",
    "sending the shares of the prompt and of the noise, and fetching the latents",
)
"""Work for an image besides the calls."""


@dataclass(frozen=True)
class Picture:
    """An image of some denoising steps, with one call of the U-Net per branch: 2 with classifier-free guidance, 1 without."""

    steps: int = 20
    branches: int = 2

    def __post_init__(self):
        if min(self.steps, self.branches) < 1:
            raise CipherDMError(
                f"a picture takes at least 1 step and 1 call at each, not {self.steps} and {self.branches}."
            )

    @property
    def calls(self) -> int:
        """Number of calls of the U-Net."""
        return self.steps * self.branches


@dataclass(frozen=True)
class Projection:
    """Cost of an image over one network, or on one machine, as in the measurement. All parties send the bytes."""

    network: Network | None
    latency: Latency
    bytes: float

    @property
    def name(self) -> str:
        """Name of the network in tables and figures."""
        return "one machine" if self.network is None else self.network.name


@dataclass(frozen=True)
class Published:
    """Published cost of a model of this size: seconds and bytes for all steps."""

    name: str
    measured: str  # model and sampler
    network: str  # also the machines, as far as they are known here
    parameters: int
    steps: int
    seconds: float
    bytes: float
    source: str

    def part(self, steps: int) -> tuple[float, float]:
        """Return seconds and bytes of some number of steps, in proportion."""
        return self.seconds * steps / self.steps, self.bytes * steps / self.steps


PUBLISHED = (
    Published(
        name="two parties, published",
        measured="Stable Diffusion 1.5, 50 steps of DDIM",
        network="network, machines and guidance not known here",
        parameters=859_520_964,
        steps=50,
        seconds=3100.0,
        bytes=933e9,
        source="a paper of ICLR 2026; both figures are rounded",
    ),
)
"""Publications with seconds and bytes. CipherDM's evaluation on Stable Diffusion is not among them, because only its ranges of
gains over SPU are known here: 1.084 to 2.328 times less time, 1.212 to 1.791 times less communication (arXiv 2409.05414)."""


def published_of(record: Mapping[str, Any]) -> tuple[Published, ...]:
    """Return the published figures of a U-Net as large as the record's, within 5%; none for a reduced record."""
    return tuple(found for found in PUBLISHED if abs(record["parameters"] / found.parameters - 1) < 0.05)


def picture_totals(record: Mapping[str, Any], picture: Picture) -> dict[str, float]:
    """Return an image's seconds on one machine, bytes, sends, rounds and bytes on the path, from the rows of a record."""
    once = sum_totals(row for row in record["rows"] if row["kind"] in CONTEXT_KINDS)
    each = sum_totals(row for row in record["rows"] if row["kind"] not in CONTEXT_KINDS and not row.get("step"))
    return {name: picture.branches * once[name] + picture.calls * each[name] for name in each}


def project(
    record: Mapping[str, Any],
    picture: Picture = Picture(),
    networks: Sequence[Network] = LITERATURE,  # noqa: B008 (frozen)
) -> tuple[Projection, ...]:
    """Return the cost of an image on the machine of the measurement, then over each network. Raises as `picture_totals`."""
    totals = picture_totals(record, picture)
    seconds, rounds, size = (totals[name] for name in ("seconds", "rounds", "path_bytes"))
    over = [(None, Latency(seconds, 0.0, 0.0)), *((n, latency(seconds, rounds, size, n)) for n in networks)]
    return tuple(Projection(network, found, totals["bytes"]) for network, found in over)


def full_size_frame(record: Mapping[str, Any], picture: Picture = Picture()) -> pd.DataFrame:  # noqa: B008 (frozen)
    """Return a row for each network, then for each publication: hours of `PARTS`, hours, GB, a description, a short one.

    Publications, of U-Nets of the record's size alone, are scaled to the image's steps, and have no parts.
    """
    rows = []
    for projection in project(record, picture):
        found = projection.latency
        parts = {part: s / 3600 for part, s in zip(PARTS, (found.computing, found.delays, found.sending), strict=True)}
        what = "as measured" if projection.network is None else str(projection.network).partition(": ")[2]
        about = {"hours": found.seconds / 3600, "GB": projection.bytes / 1e9, "what": what}
        rows.append({"over": projection.name, **parts, **about})
    for published in published_of(record):
        seconds, size = published.part(picture.steps)
        what = f"{published.measured}, of which {picture.steps} in proportion; {published.network}"
        short = f"{picture.steps} of {published.steps} steps, in proportion"
        rows.append({"over": published.name, "hours": seconds / 3600, "GB": size / 1e9, "what": what, "short": short})
    frame = pd.DataFrame(rows, columns=["over", *PARTS, "hours", "GB", "what", "short"]).set_index("over")
    return frame.assign(short=frame["short"].fillna(frame["what"]))


def full_size_figure(record: Mapping[str, Any], picture: Picture = Picture()) -> Figure:  # noqa: B008 (frozen)
    """Draw the hours of an image as stacked bars, by network, and published figures below."""
    frame = full_size_frame(record, picture)
    ours, published = frame[frame[PARTS[0]].notna()], frame[frame[PARTS[0]].isna()]
    figure = new_figure(7.6, 1.7 + 0.42 * len(frame))
    axis = figure.subplots()
    left = ours[[*PARTS]].cumsum(axis="columns") - ours[[*PARTS]]
    for part, colour in zip(PARTS, PALETTE, strict=False):
        axis.barh(range(len(ours)), ours[part], left=left[part], color=colour, height=0.7)
    axis.barh(range(len(ours), len(frame)), published["hours"], color=_PUBLISHED_COLOUR, height=0.7)
    for place, (hours, size) in enumerate(zip(frame["hours"], frame["GB"], strict=True)):
        axis.text(hours + 0.01 * frame["hours"].max(), place, _told(hours, size), va="center", fontsize=9, color=GREY)
    axis.set_yticks(range(len(frame)), [f"{name}\n{short}" for name, short in frame["short"].items()], fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.3 * frame["hours"].max()), xlabel=f"hours for a picture of {picture.steps} steps, projected")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    handles = [Patch(color=colour, label=part) for part, colour in zip(PARTS, PALETTE, strict=False)]
    if len(published):
        handles.append(Patch(color=_PUBLISHED_COLOUR, label="as published"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    told = "; ".join(f"{name} {_told(row['hours'], row['GB'])}" for name, row in frame.iterrows())
    return describe(
        figure,
        f"Bars, the projected hours of a picture of {picture.steps} steps with {picture.calls} calls of a U-Net of "
        f"{record['parameters'] / 1e6:.1f} million parameters under {record['protocols']}: {told}. Not in them: "
        f"{'; '.join(LEFT_OUT)}.",
    )


def _told(hours: float, size: float) -> str:
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    return f"{time}, {size:,.0f} GB"


def measured_table(measurements: Path) -> str:
    """Return images of Stable Diffusion's size that three parties drew, from sharing to decoding, above published figures.

    Between them stand calls with large attention scores, of which the plans say bytes and rounds.
    """
    found = [read_record(measurements / f"{name}.json") for name in ("sd15_step", "sd15_4_calls")]
    rows = [
        [f"three parties, {record['protocols']}", str(len(record["timesteps"])), f"{record['bytes'] / 1e9:,.1f}"]
        + [f"{record[name]:,.0f} s" for name in ("seconds", "share_seconds", "decode_seconds")]
        + [f"{record['rounds']:,}", f"{record['error']['parties']['rms']:.3f}"]
        for record in found
    ]
    for record in records_named(measurements, "sd15_step_scores-*.json", "cipherdm bench full-call --plan --scores 10"):
        name = f"three parties, {record['protocols']}, scores up to {record['scores']:g}, by the plan"
        rows.append([name, "1", f"{record['bytes'] / 1e9:,.1f}", "-", "-", "-", f"{record['rounds']:,}", "-"])
    for published in PUBLISHED:
        known = [f"{published.bytes / 1e9:,.0f}", f"{published.seconds:,.0f} s", "-", "-", "-", "-"]
        rows.append([published.name, f"{published.steps} steps", *known])
    header = [
        "by",
        "calls",
        "GB",
        "computing",
        "planning and sharing weights",
        "decoding",
        "rounds",
        "error of latents, of their rms",
    ]
    return markdown(header, rows)


def full_size_table(measurements: Path) -> str:
    """Return an image of Stable Diffusion's size, projected from one call, beside published figures, and what is left out."""
    path = measurements / "sd15_step.json"
    if not path.exists():
        return f"The record {path.name} is not there yet; `cipherdm bench full-call` makes it."
    record = read_record(path)
    rows = []
    for name, row in full_size_frame(record).iterrows():
        parts = ("-" if math.isnan(row[part]) else f"{row[part]:.2f}" for part in PARTS)
        rows.append([name, row["what"], *parts, f"{row['hours']:.2f}", f"{row['GB']:,.0f}"])
    header = ["over", "network", *(f"{part}, h" for part in PARTS), "h", "GB"]
    return (
        f"{summary(record)}\n\nFrom that call, for a picture of {Picture().steps} steps with classifier-free guidance, "
        f"{Picture().calls} calls, with the keys and values of each of two prompts computed once:\n\n"
        f"{markdown(header, rows)}\n\nNot in these hours: {'; '.join(LEFT_OUT)}."
    )


TABLES = {"full_size": full_size_table, "full_size_measured": measured_table}
