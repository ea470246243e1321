"""Numbers that docstrings of `cipherdm.protocols` state, and values to check them with."""

import importlib
import re

import numpy as np
import scipy.special


def grid(low, high):
    return np.linspace(low, high, 400_001, dtype=np.float32)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def activations():
    """x ~ N(0, 1.5^2), as the quantiles in the middle of 20,000 equal shares."""
    return 1.5 * scipy.special.ndtri((np.arange(20_000) + 0.5) / 20_000)


def stated(module):
    """The docstring of a module of `cipherdm.protocols`."""
    return importlib.import_module(f"cipherdm.protocols.{module}").__doc__


def stated_rows(module):
    """The numbers of the table in a docstring, by row."""
    lines = re.findall(r"^ {10}([\d.]+(?: +[\d.]+)+)$", stated(module), re.MULTILINE)
    return [list(map(float, line.split())) for line in lines]
