"""Replicated secret sharing from scratch, for reading. It runs in one process from one seed, so it keeps no secrets.

Secrets are kept by SPU (`cipherdm.engine`). This package shows in NumPy what SPU does inside: rings and fixed point (`ring`,
`fixed_point`), shares (`shares`), products and their messages (`parties`, `transcript`), truncation, bits and comparison,
polynomials. Begin with `ThreeParties`.
"""

from .bits import bit_decomposition as bit_decomposition
from .bits import bit_to_number as bit_to_number
from .comparison import less_than as less_than
from .comparison import less_than_zero as less_than_zero
from .comparison import maximum as maximum
from .comparison import relu as relu
from .comparison import select as select
from .fixed_point import FixedPoint as FixedPoint
from .parties import ThreeParties as ThreeParties
from .polynomial import polynomial as polynomial
from .ring import BIT as BIT
from .ring import Ring as Ring
from .shares import Shared as Shared
from .shares import additive_shares as additive_shares
from .shares import concatenate as concatenate
from .shares import replicate as replicate
from .shares import stack as stack
from .transcript import Message as Message
from .transcript import Transcript as Transcript
from .transcript import View as View
from .truncation import truncate as truncate
from .truncation import truncate_local as truncate_local
