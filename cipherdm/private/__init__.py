"""Differentially private training: a budget, clipped sums, a step with noise, the statement that goes with a model, and audits."""

from .audit import audit_step, most_true_positives, membership_roc
from .budget import PrivacyBudget
from .clipping import ClippedSums
from .statement import PrivacyStatement, privacy_of
from .step import PrivateStep
from .trainable import PARTS, share, train_only
