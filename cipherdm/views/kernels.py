"""Words of a ring as digits, of which products on shares are made."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..kernels.digits import Format


def digit_table(form: Format, numbers: Sequence[int]) -> pd.DataFrame:
    """Table with a row per number of the ring: its digits, the lowest first, and their sum in the ring, read with its sign."""
    words = np.array([number % (1 << 64) for number in numbers], np.uint64)
    digits = form.split(words).astype(np.int64)
    columns = [f"B^{place}" if place else "1" for place in range(form.count)]
    table = pd.DataFrame(digits.T, index=[f"{number:,}" for number in numbers], columns=columns)
    table["sum"] = [f"{_joined(form, row):,}" for row in digits.T]
    return table


def _joined(form: Format, digits: np.ndarray) -> int:
    """Join digits to their number, with Python's integers."""
    word = sum(int(digit) << form.base * place for place, digit in enumerate(digits)) % (1 << form.bits)
    return word - (word >> form.bits - 1 << form.bits)
