"""Linear layers on replicated shares as exact integer products, at the speed of a processor's integer matrix units.

`digits` and `products` multiply matrices modulo 2^k. `shares` has a party's pair of components. `patches` and `layers` make
matrix products, convolutions and batched products of them, as one party computes them. `operation` is a convolution as one
operation of JAX. `keys` are what parties agree on to draw words without a message.

`cut` truncates products and shares them anew, with words of `streams` and messages of `rounds`. `trace` reads a JAX function as
a `ring_program`, which `walk` computes. `apart`, `narrow` and `rings` make of it a plan with rings by value. Nothing here knows
of SPU, networks or models.
"""

import lazy_loader

# PyTorch is imported only by those who multiply: models name `operation` in their functions, and need none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "digits": ["Digits", "Format"],
        "keys": ["AgreedKeys", "agree", "fresh_key"],
        "layers": ["Weights", "batched_product", "conv2d", "matmul", "prepare"],
        "products": [
            "FLOAT64",
            "INT8",
            "INTEGERS",
            "PATHS",
            "choose_path",
            "matrix_product",
            "measured_rate",
            "product",
            "trial",
        ],
        "shares": ["joined", "replicate"],
    },
)
