"""Three ways to multiply matrices of digits exactly.

- `INT8`: digits of 8 bits, the processor's int8 units (VNNI or AMX, through PyTorch's oneDNN), int32 accumulators. A digit
  is at most 2^7 in size, a product of two 2^14. In Z_2^64 an accumulator sums 8 K of them, K the inner dimension, and 8 K
  2^14 <= 2^31 - 1 gives K <= 16383; in Z_2^32 it sums 4 K, and K <= 32767.
- `FLOAT64`: floating-point matrix products, exact up to 2^53. In Z_2^64 three digits of 22, 22 and 20 bits, the largest sum is
  2 K 2^21 2^21, and K <= 2^10; in Z_2^32 two digits of 16 bits, 2 K 2^15 2^15, and K <= 2^22. Any processor does these well.
- `INTEGERS`: NumPy's integer products, whose words wrap around as the ring does. The reference to read and test by.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CipherDMError
from .digits import Format


@dataclass(frozen=True)
class Path:
    """One way to compute products.

    Attributes:
        name: how reports call it.
        forms: the digits of each ring, Z_2^64 and Z_2^32.
        multiply: multiply(left, right, out) sets out [M, N] to the exact product of digits left [M, K] and right [N, K].
    """

    name: str
    forms: tuple[Format, Format]
    multiply: Callable[[np.ndarray, np.ndarray, np.ndarray], None]

    def form(self, word: type[np.unsignedinteger]) -> Format:
        """The digits of a ring's words, np.uint64 or np.uint32.

        Raises:
            CipherDMError: for another type.
        """
        for form in self.forms:
            if form.word == word:
                return form
        raise CipherDMError(f"no ring has words of {np.dtype(word)} here; use uint64 or uint32")


def _int8(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    torch._int_mm(torch.from_numpy(left), torch.from_numpy(right).t(), out=torch.from_numpy(out))


def _float64(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    torch.mm(torch.from_numpy(left), torch.from_numpy(right).t(), out=torch.from_numpy(out))


def _integers(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    np.matmul(left, right.T, out=out)


INT8 = Path(
    "int8", (Format(np.uint64, np.int8, np.int32, 8, 16383), Format(np.uint32, np.int8, np.int32, 8, 32767)), _int8
)
FLOAT64 = Path(
    "float64",
    (Format(np.uint64, np.float64, np.float64, 22, 1 << 10), Format(np.uint32, np.float64, np.float64, 16, 1 << 22)),
    _float64,
)
INTEGERS = Path(
    "integers",
    (Format(np.uint64, np.uint64, np.uint64, 64, None), Format(np.uint32, np.uint32, np.uint32, 32, None)),
    _integers,
)
PATHS = (INT8, FLOAT64, INTEGERS)
