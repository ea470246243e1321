"""The work of a model's owner in the clear: observe layers, calibrate, fit, fold, prepare weights, check ranges."""

from .fold import prepare_weights
from .observe import load_calibration, save_calibration
from .prepared import WEIGHTS, PreparedWeights, WeightsLayout, chosen_blocks
