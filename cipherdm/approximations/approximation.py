"""Base of all elementwise approximations: a name, a domain, and errors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Approximation:
    """A pure JAX function, elementwise on float32 arrays of any shape, as a value that knows where it may be used.

    Equal approximations are interchangeable, so they share compiled programs.

    Attributes:
        name: Python identifier, under which it appears in records and tables.
        domain: interval outside which it is not the function that it stands for; may be infinite.
    """

    name: str
    domain: tuple[float, float]

    def __call__(self, x):
        raise NotImplementedError

    @property
    def __name__(self) -> str:
        return self.name

    def curve(self, low: float, high: float, points: int = 1001) -> tuple[np.ndarray, np.ndarray]:
        """Return evenly spaced x from low to high and the values there, as a plot needs them."""
        x = np.linspace(low, high, points, dtype=np.float32)
        return x, np.asarray(self(x))

    def max_error(
        self, reference: Callable, low: float, high: float, *, relative: bool = False, points: int = 100_001
    ) -> float:
        """Return the largest |self(x) - reference(x)|, or share of |reference(x)|, on a grid from low to high.

        `reference` is a NumPy function.
        """
        x, y = self.curve(low, high, points)
        exact = reference(x.astype(np.float64))
        error = np.abs(y - exact)
        return float((error / np.abs(exact) if relative else error).max())

    def weighted_error(self, reference: Callable, samples: np.ndarray) -> float:
        """Return the root of the mean squared error over samples of x, such as a model's activations."""
        x = np.asarray(samples, np.float32)
        return float(np.sqrt(np.mean(np.square(np.asarray(self(x)) - reference(x.astype(np.float64))))))
