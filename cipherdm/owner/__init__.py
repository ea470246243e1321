"""The work of a model's owner in the clear: observe layers, calibrate, fit, fold, prepare weights, check ranges."""

from .fold import prepare_weights as prepare_weights
from .observe import load_calibration as load_calibration
from .observe import save_calibration as save_calibration
from .prepared import PreparedWeights as PreparedWeights
from .prepared import WeightsLayout as WeightsLayout
from .prepared import chosen_blocks as chosen_blocks
