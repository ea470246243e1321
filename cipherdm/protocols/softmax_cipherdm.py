"""Softmax as CipherDM published it: subtract the row's maximum, exp by Chebyshev polynomial, divide by the row's sum.

Formula:  e_i = exp(s_i - max s), softmax_i = e_i / sum of e, with exp of `exp_chebyshev`.
Domain:   rows in which most scores are near the maximum.
Error:    no bound. The polynomial is negative on most of [-14, 0], so a row's sum can come near zero or be negative,
          and the quotient is then arbitrarily far from a probability. On a row of equal scores it is exact.
Source:   CipherDM (arXiv 2409.05414), as in its released code, where a default argument leaves it switched off.
Cost:     all parties together in rows of 100, measured (`cipherdm bench activations`): softmax_cipherdm: 776 B an
          element, 488 sends.
"""

from .exp_chebyshev import exp_published
from .rows import ShiftedSoftmax

softmax_published = ShiftedSoftmax("softmax_cipherdm", exp_published)
