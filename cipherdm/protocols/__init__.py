"""The functions that models are computed with: exact ones, published approximations, and the named sets of them."""

from .base import Protocols
from .sets import CIPHERDM, DIRECT, NAMES, named

__all__ = ["CIPHERDM", "DIRECT", "NAMES", "Protocols", "named"]
