"""Differentially private training: budgets, clipped sums, a step with noise, a model's statement, and an audit of the step."""

from .audit import audit_step
from .budget import PrivacyBudget
from .clipping import ClippedSums
from .statement import PrivacyStatement, privacy_of
from .step import PrivateStep
from .trainable import PARTS, share, train_only
