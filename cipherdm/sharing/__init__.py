"""Replicated secret sharing from scratch, for reading. It runs in one process from one seed, so it keeps no secrets.

Secrets are kept by SPU (`cipherdm.engine`). This package shows in NumPy what SPU does inside: rings and fixed point (`ring`,
`fixed_point`), shares (`shares`), products and their messages (`parties`, `transcript`), truncation, bits and comparison,
polynomials. Begin with `ThreeParties`.
"""

from .bits import bit_decomposition, bit_to_number
from .comparison import less_than, less_than_zero, maximum, relu, select
from .fixed_point import FixedPoint
from .parties import ThreeParties
from .polynomial import polynomial
from .ring import BIT, Ring
from .shares import Shared, additive_shares, concatenate, replicate, stack
from .transcript import Message, Transcript, View
from .truncation import truncate, truncate_local
