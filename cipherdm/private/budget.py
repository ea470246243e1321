"""What a training may reveal about one example, and the noise that keeps it: (epsilon, delta) by privacy loss distributions."""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

from ..errors import check_whole, refuse

NOISE = (0.3, 100.0)
"""Noise multipliers between which one is looked for."""
COARSE, FINE = 1e-3, 1e-4
"""Grids of the privacy loss: the first is quick and a little pessimistic, the second confirms what the first has found."""
MOST_STEPS = 10**6
"""Steps that are counted within seconds and a few GB, whatever the other numbers of a file are."""
MEANING = {"accountant": "privacy loss distribution, dp-accounting", "neighbours": "add or remove one"}
"""How all budgets are counted, and between which data sets."""


@dataclass(frozen=True)
class PrivacyBudget:
    """The promise that a training keeps, and the settings that keep it. One whose noise does not give its epsilon is refused.

    Each step takes each example with probability `sample_rate`, independently (Poisson sampling), and adds Gaussian noise of
    `noise_multiplier` times the largest norm of one example's gradient. After `steps` of them the weights are (epsilon, delta)
    differentially private with respect to adding or removing one example.

    Raises:
        CipherDMError: a value is out of its range, or the epsilon of this noise at the coarse grid is above `epsilon`.
    """

    epsilon: float
    delta: float
    sample_rate: float
    steps: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check(self.epsilon, self.delta, self.sample_rate, self.steps)
        problem = f"noise_multiplier must be in [{NOISE[0]}, {NOISE[1]}]; got {self.noise_multiplier!r}"
        refuse({problem: not _within(self.noise_multiplier, *NOISE)})
        spent = self.spent()
        problem = f"{self} has a noise that gives an epsilon of {spent:.4f}, not {self.epsilon}: take PrivacyBudget.of"
        refuse({problem: spent > self.epsilon})

    @classmethod
    def of(cls, *, epsilon: float, delta: float, sample_rate: float, steps: int) -> "PrivacyBudget":
        """Return the budget with the smallest noise multiplier that gives `epsilon`, to one part in 10,000.

        Args:
            epsilon: bound on the logarithm of how much likelier one example makes any result; above 0.
            delta: probability by which that may fail; in (0, 1), and far below one over the number of examples.
            sample_rate: probability with which a step takes an example; in (0, 1]. A public constant.
            steps: number of steps, a million at most.

        Raises:
            CipherDMError: a value is out of its range, or no noise multiplier in [0.3, 100] gives this epsilon.
        """
        _check(epsilon, delta, sample_rate, steps)

        def enough(noise: float) -> bool:
            return epsilon_of(noise, sample_rate, steps, delta, COARSE) <= epsilon

        beginning = f"No noise multiplier in [{NOISE[0]}, {NOISE[1]}] gives an epsilon of {epsilon}: "
        low, high = NOISE
        refuse({"lower sample_rate or steps, or raise epsilon": not enough(high)}, beginning)
        while high > low * 1.0001:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if enough(middle) else (middle, high)
        refuse({"the least noise gives less already, so lower epsilon or take more steps": low == NOISE[0]}, beginning)
        found = cls(epsilon, delta, sample_rate, steps, high)
        refuse({f"dp-accounting contradicts itself at a grid of {FINE}: report it": found.spent(grid=FINE) > epsilon})
        return found

    def spent(self, steps: int | None = None, *, grid: float = COARSE) -> float:
        """Return the epsilon of the first `steps` steps (of all by default) at this budget's delta, rounded up.

        Source: composition of privacy loss distributions (Doroshenko et al., PoPETs 2022), by dp-accounting.
        """
        steps = self.steps if steps is None else steps
        check_whole("steps", steps, 0, self.steps)
        return epsilon_of(self.noise_multiplier, self.sample_rate, steps, self.delta, grid) if steps else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the five numbers, how they are meant, and the epsilon that both grids find."""
        found = {f"{grid:g}": self.spent(grid=grid) for grid in (COARSE, FINE)}
        return asdict(self) | MEANING | {"epsilon_by_grid": found}


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high  # NaN is in no range


def _check(epsilon: float, delta: float, sample_rate: float, steps: int) -> None:
    above = math.nextafter(0, 1)
    refuse(
        {
            f"epsilon must be above 0, such as 1 or 10; got {epsilon!r}": not _within(epsilon, above, 1e4),
            f"delta must be in (0, 1), such as 1e-5; got {delta!r}": not _within(delta, above, math.nextafter(1, 0)),
            f"sample_rate must be in (0, 1], such as 1/30; got {sample_rate!r}": not _within(sample_rate, above, 1),
        }
    )
    check_whole("steps", steps, 1, MOST_STEPS)


@lru_cache(maxsize=256)
def epsilon_of(noise: float, rate: float, steps: int, delta: float, grid: float) -> float:
    """Return the epsilon of `steps` Gaussian mechanisms on Poisson samples, by privacy loss distributions on a grid.

    It is infinity where it would be in the tens of thousands. Arguments are those of `PrivacyBudget`.
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    # How far apart the two normal distributions are that the steps amount to: without sampling, and with it by the central
    # limit theorem. Beyond 200 an epsilon promises nothing, and its distribution would fill the memory.
    sampled = rate * math.sqrt(steps * math.expm1(noise**-2))
    if min(math.sqrt(steps) / noise, sampled) > 200:
        return math.inf
    accountant = PLDAccountant(value_discretization_interval=grid)  # whose neighbours add or remove one example
    step = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
    return float(accountant.compose(SelfComposedDpEvent(step, steps)).get_epsilon(delta))
