"""Linear layers on replicated shares as exact integer products, at the speed of a processor's integer matrix units.

`digits`, `paths`, `products`: matrix products modulo 2^64 and 2^32. `zero`: zero shares. `shares`: a party's pair of
components and the one message of a multiplication. `patches`, `kernels`: matrix product, convolution and batched product of
one party. Nothing here knows of SPU, of a network or of a model.
"""
