"""Texts of made-up words, for small transformers."""

import numpy as np


def texts(count, seed, most=9):
    """`count` texts of 1 to most - 1 words, w0 to w27."""
    generator = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in generator.integers(0, 28, generator.integers(1, most))) for _ in range(count)]
