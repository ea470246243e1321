"""What a model's owner does in the clear: observe layers, calibrate, fit, fold, prepare weights, check ranges."""

from .fold import prepare_weights as prepare_weights
from .prepared import PreparedWeights as PreparedWeights
from .prepared import WeightsLayout as WeightsLayout
