"""Functions that models are computed with: exact ones, published approximations, FAST's, and the named sets of them."""

from .fixed import Fixed, decode, encode
from .sets import (
    CIPHERDM,
    CIPHERDM_CORRECTED,
    DIRECT,
    DITTO,
    FAST,
    FAST_64,
    FAST_GUARDED,
    FAST_RINGS,
    MPCFORMER,
    NAMES,
    NIMBUS,
    PUMA,
    Protocols,
    default,
    named,
)
