"""What a whole picture of Stable Diffusion's size would take, projected from one call of its U-Net, beside published figures.

`full_call` measures one call of the U-Net, for one picture and one prompt. A picture with classifier-free guidance takes two
calls at each step, with the prompt and without. Here they are twice the call that was measured, one after the other, and not
a batch of two: that would take half the rounds at best, and about the same time for computing and for sending bytes.

Keys and values of a prompt do not depend on the step, so that their blocks count once for each of the two prompts. All other
blocks count once for each call, weights being read from the parties' files included. Seconds over a network follow from
the latency model (`cipherdm.costs.latency`), in which computing is what was measured: three parties on the cores of one
machine, with whatever else ran on it. On three hosts each party has its own.

A projection is no measurement of a picture. `LEFT_OUT` says what is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..costs import CHEETAH_LAN, LAN, SPU_WAN, WAN, Latency, Network, latency
from ..engine import sum_totals
from ..errors import CipherDMError
from ..models import CONTEXT_KINDS

LITERATURE = (LAN, CHEETAH_LAN, WAN, SPU_WAN)
"""The networks of the projection: those that publications compute on."""

LEFT_OUT = (
    "preparing the owner's weights and sharing them with the parties, which is done once for a model and its schedule",
    "the text encoder and the VAE, which the client runs by itself on what only it sees",
    "guidance and the scheduler's update, a few operations on the latents at each step",
    "sending the shares of the prompt and of the noise, and fetching the latents",
)
"""What a picture takes besides the calls."""


@dataclass(frozen=True)
class Picture:
    """How many calls of the U-Net a picture takes.

    Attributes:
        steps: denoising steps.
        branches: calls at each step: 2 with classifier-free guidance, 1 without.

    Raises:
        CipherDMError: a number is below 1.
    """

    steps: int = 20
    branches: int = 2

    def __post_init__(self):
        if min(self.steps, self.branches) < 1:
            raise CipherDMError(
                f"a picture takes at least 1 step and 1 call at each, not {self.steps} and {self.branches}."
            )

    @property
    def calls(self) -> int:
        """Calls of the U-Net."""
        return self.steps * self.branches


@dataclass(frozen=True)
class Projection:
    """A picture over one network.

    Attributes:
        network: None where the parties are next to each other, as in the measurement.
        latency: seconds, by what they go into.
        bytes: sent by all parties.
    """

    network: Network | None
    latency: Latency
    bytes: float

    @property
    def name(self) -> str:
        """How tables and figures call the network."""
        return "one machine" if self.network is None else self.network.name


@dataclass(frozen=True)
class Published:
    """What a publication reports of a model of this size.

    Attributes:
        name: in tables and figures.
        setting: who computes.
        measured: what the figures are of.
        network: over which network and on which machines, as far as it is known here.
        parameters: of the U-Net.
        steps: denoising steps that the figures are of.
        seconds: for all of them.
        bytes: sent for all of them.
        source: where the figures come from.
    """

    name: str
    setting: str
    measured: str
    network: str
    parameters: int
    steps: int
    seconds: float
    bytes: float
    source: str

    def part(self, steps: int) -> tuple[float, float]:
        """Seconds and bytes of so many steps, in proportion."""
        return self.seconds * steps / self.steps, self.bytes * steps / self.steps


PUBLISHED = (
    Published(
        name="two parties, published",
        setting="two parties",
        measured="Stable Diffusion 1.5, 50 steps of DDIM",
        network="network, machines and guidance not known here",
        parameters=859_520_964,
        steps=50,
        seconds=3100.0,
        bytes=933e9,
        source="a paper of ICLR 2026; both figures are rounded",
    ),
)
"""What is known in seconds and bytes. CipherDM's evaluation on Stable Diffusion is not among it, because only its ranges of
gains over SPU are quoted here: 1.084 to 2.328 times less time, 1.212 to 1.791 times less communication (arXiv 2409.05414)."""


def published_of(record: Mapping[str, Any]) -> tuple[Published, ...]:
    """The published figures that are of a U-Net as large as the record's, within 5%; none for a reduced record."""
    return tuple(found for found in PUBLISHED if abs(record["parameters"] / found.parameters - 1) < 0.05)


def picture_totals(record: Mapping[str, Any], picture: Picture) -> dict[str, float]:
    """Seconds on one machine, bytes, sends, rounds and bytes on the path of a picture, from the rows of a record.

    Args:
        record: of `cipherdm bench full-call`.
        picture: how many calls.

    Raises:
        CipherDMError: the rows are of an older version, without rounds or bytes on the path.
    """
    once = sum_totals(row for row in record["rows"] if row["kind"] in CONTEXT_KINDS)
    each = sum_totals(row for row in record["rows"] if row["kind"] not in CONTEXT_KINDS)
    return {name: picture.branches * once[name] + picture.calls * each[name] for name in each}


def project(
    record: Mapping[str, Any],
    picture: Picture = Picture(),
    networks: Sequence[Network] = LITERATURE,  # noqa: B008 (frozen)
) -> tuple[Projection, ...]:
    """A picture on the machine of the measurement, then over each of the networks.

    Raises:
        CipherDMError: as `picture_totals`.
    """
    totals = picture_totals(record, picture)
    local = Projection(None, Latency(totals["seconds"], 0.0, 0.0), totals["bytes"])
    over = (latency(totals["seconds"], totals["rounds"], totals["path_bytes"], network) for network in networks)
    return local, *(Projection(network, found, totals["bytes"]) for network, found in zip(networks, over, strict=True))
