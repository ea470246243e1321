"""The statement that goes with a privately trained model: who is promised what, what is not covered, and its check."""

import json
import math
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import CipherDMError, refuse
from ..files import replacing
from .budget import COARSE, FINE, MEANING, PrivacyBudget

FILE = "privacy.json"
_BUDGET = tuple(field.name for field in fields(PrivacyBudget))
_TOLERANCE = 5e-4  # by which versions of the accountant may differ


@dataclass(frozen=True)
class PrivacyStatement:
    """What a model's owner states about its training. Nothing in it depends on the private data.

    Args:
        budget: the promise and the settings that keep it.
        clip: largest norm of one example's gradient.
        draws: number of losses per example, averaged before clipping.
        unit: what is added or removed: "image".
        data: the private data: "MNIST's training set".
        public: what the model was before: "a model of rendered letters".
        trained: what saw the private data: "the transformers of the U-Net".
        share: share of the network's parameters that this is, between 0 and 1.
        trusted: who sees the private data, against whom nothing is promised.
        private: whether the noise came from the operating system; False if it can be drawn again from a seed.
    """

    budget: PrivacyBudget
    clip: float
    draws: int
    unit: str
    data: str
    public: str
    trained: str
    share: float
    trusted: str = "whoever runs the training"
    private: bool = True

    @property
    def text(self) -> str:
        """The statement in sentences."""
        budget, unit = self.budget, self.unit
        if not self.private:
            return f"NOT PRIVATE: the noise was drawn from a seed, for tests. Whoever has the seed sees {self.data}."
        weak = ", which is weak as a guarantee" if budget.epsilon > 3 else ""
        return (
            f"({budget.epsilon:g}, {budget.delta:g})-differentially private with respect to adding or removing one {unit} of "
            f"{self.data}. Only {self.trained} ({self.share:.1%} of the network's parameters) learnt from it, beginning "
            f"with {self.public}. Each of {budget.steps} steps took each {unit} with probability {budget.sample_rate:.4g}, and "
            f"added noise of {budget.noise_multiplier:.4g} times what one {unit} may add.\n"
            f"Whatever is concluded about one {unit}, its odds change by a factor of {math.exp(min(budget.epsilon, 700)):,.1f} "
            f"at most, up to a probability of {budget.delta:g}{weak}. For k {unit}s of one person epsilon is k times as large, "
            "and delta larger still.\n"
            f"Not covered: the choice of settings, unless it was made on other data; people with several {unit}s; "
            f"{self.trusted}; prompts and pictures at sampling time; and the rounding of noise to floating point. Nobody "
            "outside has audited it. That the weights come out of such a training is the owner's word; that the numbers fit "
            "together is checked."
        )

    def write(self, folder: str | Path) -> None:
        """Write `privacy.json` into the folder of the model."""
        rest = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "budget"}
        versions = {name: version(name) for name in ("cipherdm", "dp-accounting", "torch")}
        with replacing(Path(folder) / FILE) as temporary:
            temporary.write_text(json.dumps(self.budget.as_json() | rest | {"versions": versions}, indent=1) + "\n")


def privacy_of(folder: str | Path) -> PrivacyStatement:
    """Return the statement of a model's folder, after computing its epsilon anew from its noise, rate, steps and delta.

    Raises:
        CipherDMError: there is no such file, it cannot be read, or its numbers do not fit together.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise CipherDMError(f"{folder} has no {FILE}: nothing is stated about the data that this model learnt from.")
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        rest = {field.name: told.pop(field.name) for field in fields(PrivacyStatement) if field.name != "budget"}
        statement = PrivacyStatement(PrivacyBudget(*(told.pop(name) for name in _BUDGET)), **rest)
        coarse, fine = (told["epsilon_by_grid"][f"{grid:g}"] for grid in (COARSE, FINE))
        spent = statement.budget.spent()
        others = told.keys() - MEANING.keys() - {"epsilon_by_grid", "versions"}
        problems = {
            f"it has the fields {', '.join(sorted(others))} too": others,
            f"it is not counted as {', '.join(MEANING.values())}": not told.items() >= MEANING.items(),
            f"its noise gives an epsilon of {spent:.4f}, not {coarse}": not abs(coarse / spent - 1) <= _TOLERANCE,
            f"the finer grid cannot give {fine}": not 0.9 * spent <= fine <= (1 + _TOLERANCE) * spent,
            "private must be true or false": not isinstance(statement.private, bool),
            "share must be in [0, 1]": not 0 <= statement.share <= 1,
        }
        refuse(problems)
    except (KeyError, TypeError, ValueError, AttributeError, CipherDMError) as error:
        what = f"{error} is missing." if isinstance(error, KeyError) else str(error)
        raise CipherDMError(
            f"{path} is not to be believed: {what} Ask for the file as the training wrote it."
        ) from None
    return statement
