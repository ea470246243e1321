"""Networks between the parties: round-trip time, bandwidth, and where each was used before."""

import math
from dataclasses import dataclass

from ..errors import CipherDMError


@dataclass(frozen=True)
class Network:
    """Network between any two of the three parties.

    Attributes:
        round_trip: seconds from sending a short message to receiving its answer; half of it is one message's delay.
        bandwidth: bit/s that a party can send to both others together, through its one network card.
        source: origin of the numbers.

    Raises:
        CipherDMError: the round trip is not from 0 to 1 second, or the bandwidth not a positive number.
    """

    name: str
    round_trip: float
    bandwidth: float
    source: str = ""

    def __post_init__(self):
        if not 0 <= self.round_trip <= 1:
            raise CipherDMError(
                f"network {self.name!r} has a round trip of {self.round_trip} s; give it in seconds, at most 1."
            )
        if not (math.isfinite(self.bandwidth) and self.bandwidth > 0):
            raise CipherDMError(
                f"network {self.name!r} has a bandwidth of {self.bandwidth} bit/s; it must be a positive number."
            )

    def __str__(self) -> str:
        return f"{self.name}: {1000 * self.round_trip:g} ms round trip, {self.bandwidth / 1e6:,.0f} Mbit/s"

    @property
    def delay(self) -> float:
        """Seconds that a message travels, not counting the time that its bytes take to leave."""
        return self.round_trip / 2


# The networks of PUMA and Ditto, since both also compute with three parties on SPU.
LAN = Network("LAN", 0.4e-3, 5e9, "PUMA (arXiv 2307.12533), Ditto (ICML 2024)")
WAN = Network("WAN", 40e-3, 400e6, "Cheetah (USENIX Security 2022), PUMA (arXiv 2307.12533), Ditto (ICML 2024)")
CHEETAH_LAN = Network("Cheetah's LAN", 0.3e-3, 3e9, "Cheetah (USENIX Security 2022)")
SPU_WAN = Network("SPU's WAN", 40e-3, 300e6, "the recipe for a slow network in SPU's own benchmarks")
NARROW = Network("narrow", 10e-3, 50e6, "ours, as between homes: bytes take long where messages do not")
NETWORKS = {"lan": LAN, "cheetah-lan": CHEETAH_LAN, "wan": WAN, "spu-wan": SPU_WAN, "narrow": NARROW}
"""All networks, by the names that the command line takes."""


def network_named(name: str) -> Network:
    """Return the network of that name in `NETWORKS`. Raises CipherDMError, listing the names, if there is none."""
    if name not in NETWORKS:
        raise CipherDMError(f"there is no network {name!r}: choose from {', '.join(NETWORKS)}.")
    return NETWORKS[name]
