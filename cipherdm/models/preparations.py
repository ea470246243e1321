"""Which preparation a set of protocols relies on."""

import numpy as np

from ..protocols import Protocols
from .fast_weights import prepare_fast
from .prepared import PreparedWeights, time_terms, without_time_blocks
from .unet import UNet


def prepare_weights(unet: UNet, timesteps: np.ndarray, protocols: Protocols) -> PreparedWeights:
    """What `protocols` has the owner prepare, for the schedule's timesteps [steps].

    Raises:
        CipherDMError: the preparation needs something that the model's folder lacks.
    """
    if protocols.prepare == "fast":
        return prepare_fast(unet, timesteps)
    if protocols.time_embedding == "inside":
        return PreparedWeights(dict(unet.params), {}, {})
    return PreparedWeights(without_time_blocks(unet), {}, time_terms(unet, timesteps))
