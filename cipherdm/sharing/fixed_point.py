"""Real numbers as words of a ring: value = word / 2^fraction_bits, the word read with its sign."""

from dataclasses import dataclass

import numpy as np

from ..errors import CipherDMError
from .ring import Ring


@dataclass(frozen=True)
class FixedPoint:
    """How numbers become words. The numbers that exist are the multiples of `unit` from `lowest` to `highest`.

    Attributes:
        ring: where the words live.
        fraction_bits: from 0 (whole numbers) to the ring's bits less one.

    Raises:
        CipherDMError: for fraction bits that the ring has no room for.
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
        """The distance between neighbouring numbers, 2^-fraction_bits. Rounding is off by half of it at most."""
        return 2.0**-self.fraction_bits

    @property
    def lowest(self) -> float:
        """The most negative number."""
        return self.ring.lowest * self.unit

    @property
    def highest(self) -> float:
        """The largest number; in rings above 53 bits float64 shows it rounded up by less than a unit."""
        return self.ring.highest * self.unit

    def encode(self, values) -> np.ndarray:
        """Words of the numbers nearest to `values`, halves to the even word. Whole numbers in integer arrays are exact.

        Raises:
            CipherDMError: for values that are not finite or out of range. Nothing is ever wrapped or clipped here.
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
        """float64 values of words; int64 if there are no fraction bits."""
        numbers = self.ring.signed(words)
        return numbers if self.fraction_bits == 0 else numbers * self.unit

    def _require(self, fits: np.ndarray, values: np.ndarray) -> None:
        if not np.all(fits):
            culprit = np.asarray(values)[~np.asarray(fits)].flat[0]
            raise CipherDMError(
                f"{culprit} is outside [{self.lowest:g}, {self.highest:g}], the range of {self.ring.bits}-bit words with "
                f"{self.fraction_bits} fraction bits; scale the values down, or choose fewer fraction bits or a larger ring"
            )
