"""Random numbers that nobody can draw again, straight from the operating system.

Whoever learns a generator's seed or state subtracts the noise, as long as the model lives. Here is none to keep, and none in a
checkpoint. (PyTorch's generator on processors uses 32 bits of its seed, so few that all can be tried.)
"""

import os
from collections.abc import Callable

import numpy as np

Source = Callable[[int], bytes]
"""Number of bytes to as many random bytes."""


def source(seed: int | None = None) -> Source:
    """Return the operating system's generator; with a seed one for tests, whose noise protects nothing."""
    return os.urandom if seed is None else np.random.default_rng(seed).bytes


def uniform(count: int, random: Source) -> np.ndarray:
    """Return `count` numbers in (0, 1), uniform on the middles of 2^53 intervals."""
    # 53 bits are a double's precision. Without the half, 0 could be drawn, whose logarithm is infinite.
    return ((np.frombuffer(random(8 * count), np.uint64) >> np.uint64(11)) + 0.5) * 2.0**-53


def gaussian(count: int, random: Source) -> np.ndarray:
    """Return `count` standard normal numbers in double precision, by the method of Box and Muller."""
    pairs = (count + 1) // 2
    radius = np.sqrt(-2 * np.log(uniform(pairs, random)))
    angle = 2 * np.pi * uniform(pairs, random)
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]


def poisson_sample(size: int, rate: float, random: Source) -> np.ndarray:
    """Return the indices of a Poisson sample of range(size): each is in it with probability `rate`, whatever the others are."""
    return np.flatnonzero(uniform(size, random) < rate)
