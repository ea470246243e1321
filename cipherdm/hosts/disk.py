"""What lies on a party's disk of a registered model: for lessons, and to see what a stolen disk gives away."""

import numpy as np

from ..engine.trial import words_in
from ..errors import CipherDMError
from .config import HostConfig
from .store import read_published


def words_on_disk(host: HostConfig, model: str, value: str) -> np.ndarray:
    """A party's share of one of a model's secret values, read from its folder. The party may be running or not.

    Args:
        host: the party's configuration.
        model: what its owner registered.
        value: the name of one of the owner's arrays.

    Returns:
        uint64 [elements, 2]: the party's own component of each number and the next party's. The three different ones add up
        to the value times 2^fraction_bits.

    Raises:
        CipherDMError: there is no such model or value, or it is public.
    """
    stored = read_published(host.state, model)
    declared = {item.name: item for item in stored.manifest.values}
    if value not in declared or declared[value].public:
        raise CipherDMError(
            f"{model} has no secret value {value!r}; there is: {', '.join(sorted(declared)) or 'none'}."
        )
    return words_in(piece.chunk for piece in stored.pieces() if piece.name == value)
