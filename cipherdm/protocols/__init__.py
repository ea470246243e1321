"""The functions that models are computed with: exact ones, published approximations, and the named sets of them."""

from .base import Protocols
from .sets import (
    CIPHERDM,
    CIPHERDM_CORRECTED,
    DIRECT,
    FAST,
    FAST_GUARDED,
    FAST_MIXED,
    FAST_SHARES,
    NAMES,
    PUMA,
    default,
    named,
)

__all__ = [
    "CIPHERDM",
    "CIPHERDM_CORRECTED",
    "DIRECT",
    "FAST",
    "FAST_GUARDED",
    "FAST_MIXED",
    "FAST_SHARES",
    "NAMES",
    "PUMA",
    "Protocols",
    "default",
    "named",
]
