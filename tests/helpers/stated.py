"""Numbers that docstrings of `cipherdm.approximations` state, and values to check them with."""

import ast
import inspect
import itertools
import re
from pathlib import Path

import numpy as np
import scipy.special

from cipherdm import approximations


def grid(low, high):
    return np.linspace(low, high, 400_001, dtype=np.float32)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def activations():
    """x ~ N(0, 1.5^2), as the quantiles in the middle of 20,000 equal shares."""
    return 1.5 * scipy.special.ndtri((np.arange(20_000) + 0.5) / 20_000)


def stated(name):
    """The docstring of a function, class or value of `cipherdm.approximations`; a value's is the string below it."""
    for path in Path(approximations.__file__).parent.glob("*.py"):
        body = ast.parse(path.read_text()).body
        for statement, below in itertools.pairwise([*body, None]):
            if getattr(statement, "name", None) == name:
                return ast.get_docstring(statement)
            if isinstance(statement, ast.Assign) and statement.targets[0].id == name:
                return inspect.cleandoc(below.value.value)
    raise LookupError(name)


def stated_rows(name):
    """The numbers of the table in a docstring, by row."""
    lines = re.findall(r"^ {10}([\d.]+(?: +[\d.]+)+)$", stated(name), re.MULTILINE)
    return [list(map(float, line.split())) for line in lines]


def stated_errors(name):
    """The largest error, where it is, and the root of the mean square, from a docstring."""
    return map(float, re.search(r"at most ([\d.]+) \(at ([\d.-]+)\).*rms ([\d.]+) for", stated(name)).groups())


def stated_largest(name):
    """The largest error, from a docstring."""
    return float(re.search(r"at most ([\d.]+) ", stated(name)).group(1))
