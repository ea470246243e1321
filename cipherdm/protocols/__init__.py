"""Functions that models are computed with: exact ones, published approximations, FAST's, and the named sets of them."""

from .fast_kernels import LEAST_MULTIPLY_ADDS as LEAST_MULTIPLY_ADDS
from .fixed import Fixed as Fixed
from .fixed import decode as decode
from .fixed import encode as encode
from .sets import CIPHERDM as CIPHERDM
from .sets import CIPHERDM_CORRECTED as CIPHERDM_CORRECTED
from .sets import DIRECT as DIRECT
from .sets import FAST as FAST
from .sets import FAST_GUARDED as FAST_GUARDED
from .sets import FAST_KERNELS as FAST_KERNELS
from .sets import NAMES as NAMES
from .sets import PUMA as PUMA
from .sets import Protocols as Protocols
from .sets import default as default
from .sets import named as named
