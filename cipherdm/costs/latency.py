"""Latency model: the time over a network of a run that was measured on one machine.

    seconds = computing + rounds * round trip / 2 + bytes on the path * 8 / bandwidth

*Computing* is the time of the run with all parties on one machine, including the handling of messages. A *round* is a message
that has to arrive before anyone can go on. In ABY3 it goes one way: its receiver does not answer, but works on and sends its
own message to the third party. So a round costs half a round trip. The *bytes on the path* leave one after the other; the
other parties' bytes leave at the same time from their own network cards.

SPU counts messages, which are not rounds: in one round all three parties may send, or one party twice. Rounds follow from how
often each kernel of SPU's protocol ran, as its profile reports (`CostReport.kernels`):

| kernel | messages | rounds | share of its bytes on the path |
|---|---|---|---|
| products, and bits of comparisons: each party sends one to its neighbour in each round | 3 a round | | 1/3 |
| trunc_a: two parties exchange twice, the third helps and waits for nobody | 5 | 2 | 12 of 28 |
| mul_a1b, a number times a bit: two transfers at once, whose results are passed on | 8 | 2 | 1/2 |
| b2a of at most 8 bits: one such transfer | 4 | 2 | 1/3 |
| b2a of more bits: an adder of 8 rounds, two parties reveal, each sends one | 28 | 10 | 1/3 |

The rounds were read in SPU's source. They were confirmed by running operations over links with two delays: the difference in
time, divided by the difference of the delays, is the number of rounds. The model leaves out that a party which waits for nobody
runs ahead and saves some rounds, and that acknowledgements take a few percent of the bandwidth. Parties here share the cores of
one machine, so computing is faster on three hosts. The client's connections are not part of the model.
"""

from dataclasses import dataclass

import pandas as pd

from .networks import Network

_ROUNDS_A_CALL = {"trunc_a": 2, "mul_a1b": 2, "walk": 1}
_SHARE_OF_BYTES = {"trunc_a": 12 / 28, "mul_a1b": 1 / 2}

# Ratio for a product with its truncation, the most frequent pair: 3 rounds of 8 messages.
_ROUNDS_A_MESSAGE = 3 / 8


@dataclass(frozen=True)
class Latency:
    """Seconds of a run over a network, in three parts."""

    computing: float  # measured with all parties on one machine
    delays: float  # messages travel
    sending: float  # bytes wait to leave

    @property
    def seconds(self) -> float:
        """Sum of the three parts."""
        return self.computing + self.delays + self.sending


def latency(seconds: float, rounds: float, path_bytes: float, network: Network) -> Latency:
    """Apply the model to a run on one machine: its seconds, rounds and bytes on the path."""
    return Latency(seconds, rounds * network.round_trip / 2, 8 * path_bytes / network.bandwidth)


def count_rounds(kernels: pd.DataFrame, sends: int) -> int:
    """Return the rounds of a run, from `CostReport.kernels`: messages that cannot be sent before another has arrived.

    A run without kernels (not profiled, or from an old record) is treated as products with truncation only: 3 rounds for
    8 messages of all parties. For a denoising step this estimate is 4 to 13% too high.
    """
    if kernels.empty:
        return round(sends * _ROUNDS_A_MESSAGE)
    return round(sum(_rounds(row.Index, row.calls, row.sends) for row in _by_kernel(kernels).itertuples()))


def count_path_bytes(kernels: pd.DataFrame, programs: pd.DataFrame) -> int:
    """Return the bytes of a run that leave one after the other, from `CostReport.kernels`.

    Without kernels, these are all bytes of the party that sends most.
    """
    if kernels.empty:
        return int(programs.groupby("party")["sent_bytes"].sum().max()) if len(programs) else 0
    rows = _by_kernel(kernels).itertuples()
    return round(sum(row.sent_bytes * _SHARE_OF_BYTES.get(row.Index, 1 / 3) for row in rows))


def _by_kernel(kernels: pd.DataFrame) -> pd.DataFrame:
    """Sum up each kernel: calls of one party; messages and bytes of all."""
    table = kernels.groupby("kernel")[["calls", "sends", "sent_bytes"]].sum()
    return table.assign(calls=table["calls"] / kernels["party"].nunique())


def _rounds(kernel: str, calls: float, messages: int) -> float:
    if kernel in _ROUNDS_A_CALL:
        return calls * _ROUNDS_A_CALL[kernel]
    if kernel == "b2a":
        # A call takes 4 messages and 2 rounds, or 28 and 10. Both ways 3 times its rounds are its messages plus 2.
        return (messages + 2 * calls) / 3
    return messages / 3
