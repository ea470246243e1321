"""Real numbers as words of a ring: value = word / 2^fraction_bits, the word read with its sign."""

from dataclasses import dataclass

import numpy as np

from ..errors import CipherDMError
from .ring import Ring


@dataclass(frozen=True)
class FixedPoint:
    """Encoding of numbers as words. It can represent the multiples of `unit` from `lowest` to `highest`.

    Attributes:
        ring: ring of the words.
        fraction_bits: number of bits after the binary point, from 0 (whole numbers) to the ring's bits less one.

    Raises:
        CipherDMError: the ring has no room for so many fraction bits.
    """

    ring: Ring
    fraction_bits: int

    def __post_init__(self):
        if not 0 <= self.fraction_bits < self.ring.bits:
            raise CipherDMError(
                f"{self.fraction_bits} fraction bits do not fit into {self.ring.bits}-bit words; "
                f"choose 0 to {self.ring.bits - 1}, or truncate products before the next multiplication"
            )

    @property
    def unit(self) -> float:
        """Distance between neighbouring numbers, 2^-fraction_bits. Rounding errs by at most half of it."""
        return 2.0**-self.fraction_bits

    @property
    def lowest(self) -> float:
        """Most negative number."""
        return self.ring.lowest * self.unit

    @property
    def highest(self) -> float:
        """Largest number. In rings of more than 53 bits, float64 shows it rounded up by less than a unit."""
        return self.ring.highest * self.unit

    def encode(self, values) -> np.ndarray:
        """Return the words nearest to `values`; a tie goes to the even word. Integer arrays are encoded exactly.

        Raises CipherDMError if a value is not finite or out of range. Values are never wrapped or clipped here.
        """
        values = np.asarray(values)
        if values.dtype == bool:
            values = values.astype(np.int64)
        if values.dtype.kind not in "iuf":
            raise CipherDMError(f"numbers of type {values.dtype} cannot be shared; convert them to float64 or int64")
        if values.dtype.kind == "f":
            if not np.isfinite(values).all():
                raise CipherDMError("a value is not finite; only finite numbers can be shared")
            scaled = np.round(values.astype(np.float64) * 2.0**self.fraction_bits)
            lowest, end = float(self.ring.lowest), float(self.ring.highest + 1)
            self._require((scaled >= lowest) & (scaled < end), values)
            return self.ring.reduce(scaled.astype(np.int64))
        end = (self.ring.highest + 1) >> self.fraction_bits
        self._require((values >= -end * (self.ring.bits > 1)) & (values <= end - 1), values)
        return self.ring.reduce(values.astype(np.int64) << np.int64(self.fraction_bits))

    def decode(self, words: np.ndarray) -> np.ndarray:
        """Return the values of words as float64, or as int64 if there are no fraction bits."""
        numbers = self.ring.signed(words)
        return numbers if self.fraction_bits == 0 else numbers * self.unit

    def _require(self, fits: np.ndarray, values: np.ndarray) -> None:
        if not np.all(fits):
            culprit = np.asarray(values)[~np.asarray(fits)].flat[0]
            raise CipherDMError(
                f"{culprit} is outside [{self.lowest:g}, {self.highest:g}], the range of {self.ring.bits}-bit words with "
                f"{self.fraction_bits} fraction bits; scale the values down, or choose fewer fraction bits or a larger ring"
            )
