"""Three parties in one process: sharing, opening, products. For reading and experiments; it keeps no secrets.

One process computes, from one seed, what three parties would compute separately. The messages are realistic: each party's
results depend only on what it holds and what was sent to it.

Threat model: parties follow the protocol but examine everything they see (semi-honest), and no two of them share what they
saw.
Source: Araki, Furukawa, Lindell, Nof, Ohara, "High-Throughput Semi-Honest Secure Three-Party Computation with an Honest
Majority", CCS 2016; Mohassel, Rindal, "ABY3", CCS 2018.
"""

from collections.abc import Callable

import numpy as np

from ..errors import CipherDMError
from .fixed_point import FixedPoint
from .randomness import KEY_BYTES, PairwiseRandomness
from .ring import WORD, Ring
from .shares import PARTIES, Shared, additive_shares, check_same_ring, replicate
from .transcript import CLIENT, Transcript, View

_BYTE = Ring(8)


class ThreeParties:
    """Three parties and their client.

    Args:
        fraction_bits: default number of fraction bits of shared numbers.
        ring: default ring of their words.
        seed: seed of all random numbers, so a lecture can be repeated. Real parties ask the operating system.
        zero_shares: True to mask products; False shows what the masks are for.

    Attributes:
        transcript: every message so far.
    """

    def __init__(self, fraction_bits: int = 18, ring: Ring = WORD, seed: int = 0, zero_shares: bool = True):
        self.encoding = FixedPoint(ring, fraction_bits)
        self.zero_shares = zero_shares
        self.transcript = Transcript()
        self._generator = np.random.default_rng(seed)
        self._keys = [self._generator.bytes(KEY_BYTES) for _ in range(PARTIES)]
        self._randomness = PairwiseRandomness(self._keys)
        with self.transcript.operation("keys"), self.transcript.round():
            for party, key in enumerate(self._keys):  # party i draws key i; party i - 1 is to know it too
                self.transcript.send(party, (party - 1) % PARTIES, np.frombuffer(key, np.uint8), _BYTE)

    def share(self, values, fraction_bits: int | None = None, ring: Ring | None = None) -> Shared:
        """Split the client's numbers and send each party two components. One round.

        Raises CipherDMError if a value is outside of the fixed-point range.
        """
        ring = ring or self.encoding.ring
        encoding = FixedPoint(ring, self.encoding.fraction_bits if fraction_bits is None else fraction_bits)
        held = replicate(additive_shares(encoding.encode(values), ring, self._generator))
        with self.transcript.operation("share"), self.transcript.round():
            for party in range(PARTIES):
                held[party] = self.transcript.send(CLIENT, party, held[party], ring)
        return Shared(held, ring, encoding.fraction_bits)

    def open(self, x: Shared) -> np.ndarray:
        """Send each party's first component to the client, who adds them up. One round.

        Returns:
            float64 values; int64 if x has no fraction bits.
        """
        with self.transcript.operation("open"), self.transcript.round():
            received = [self.transcript.send(party, CLIENT, x.of(party)[0], x.ring) for party in range(PARTIES)]
        return x.encoding.decode(x.ring.reduce(np.sum(received, axis=0, dtype=x.ring.dtype)))

    def open_to_parties(self, x: Shared) -> np.ndarray:
        """Send each party the one component that it lacks, from its neighbour, so all parties learn x. One round."""
        with self.transcript.operation("open to parties"), self.transcript.round():
            # Party i lacks component i + 2, which is the first that party i - 1 holds.
            lacking = [self.transcript.send((i - 1) % PARTIES, i, x.of((i - 1) % PARTIES)[0], x.ring) for i in range(3)]
        return x.encoding.decode(x.ring.reduce(np.sum([*x.of(0), lacking[0]], axis=0, dtype=x.ring.dtype)))

    def random(self, ring: Ring, shape: tuple[int, ...]) -> Shared:
        """Draw uniform words that no party knows, without a message."""
        return Shared(self._randomness.draw(ring, shape), ring, 0)

    def multiply(self, x: Shared, y: Shared) -> Shared:
        """Multiply element by element; products have the fraction bits of both factors. One round, one word to each party.

        Raises CipherDMError if shapes or rings differ, or the ring has no room for so many fraction bits.
        """
        if x.shape != y.shape:
            raise CipherDMError(f"shapes {x.shape} and {y.shape} differ; use broadcast_to first")
        return self._product(x, y, np.multiply, "multiply")

    def matmul(self, x: Shared, y: Shared) -> Shared:
        """Multiply two matrices. One round, and one word to each party per entry of the result.

        Parties add up inner products before they send anything, so the inner dimension costs no traffic. Raises CipherDMError
        if the shapes have no product, or as `multiply` does.
        """
        if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[1] != y.shape[0]:
            raise CipherDMError(
                f"matrices of shapes {x.shape} and {y.shape} have no product; bring them to [n,k] and [k,m]"
            )
        return self._product(x, y, np.matmul, "matmul")

    def _product(self, x: Shared, y: Shared, times: Callable, name: str) -> Shared:
        check_same_ring(x, y)
        encoding = FixedPoint(x.ring, x.fraction_bits + y.fraction_bits)  # raises if there is no room for it
        # Party i computes row i from its own row alone. Each party gets three of the nine products x_j y_k.
        (x0, x1), (y0, y1) = x.held.swapaxes(0, 1), y.held.swapaxes(0, 1)
        products = x.ring.reduce(times(x0, y0) + times(x0, y1) + times(x1, y0))
        if self.zero_shares:
            products = x.ring.reduce(products + self._randomness.zero(x.ring, products.shape[1:]))
        with self.transcript.operation(name):
            return Shared(self._reshare(products, x.ring), x.ring, encoding.fraction_bits)

    def _reshare(self, components: np.ndarray, ring: Ring) -> np.ndarray:
        """Return the parties' pairs after party i, who alone knows component i, has sent it to party i - 1. One round."""
        with self.transcript.round():
            received = [
                self.transcript.send((i + 1) % PARTIES, i, components[(i + 1) % PARTIES], ring) for i in range(PARTIES)
            ]
        return np.stack([components, np.stack(received)], axis=1)

    @np.errstate(over="ignore")  # NumPy warns when a single word wraps around, unlike for arrays
    def share_from_party_zero(self, words: np.ndarray, ring: Ring) -> Shared:
        """Share words that party 0 knows. One message, to party 1.

        Component 0 is drawn from the key of parties 0 and 2. Component 1 is the words minus component 0, component 2 is zero.
        """
        mask = self._randomness.draw(ring, np.shape(words))
        with self.transcript.round():
            difference = self.transcript.send(0, 1, ring.reduce(words - mask[0, 0]), ring)
        nothing = np.zeros_like(difference)
        held = [[mask[0, 0], difference], [difference, nothing], [nothing, mask[2, 1]]]
        return Shared(np.array(held, ring.dtype), ring, 0)

    def view(self, party: int) -> View:
        """Return all that one party has seen so far."""
        return View(party, self.transcript.received_by(party), self._keys[party])
