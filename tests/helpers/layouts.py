"""What holds for the list of blocks of every kind of U-Net."""

from collections import Counter
from collections.abc import Iterable, Mapping

from cipherdm.models import unet_blocks, unet_shapes


def check_parameters(config, theirs: Mapping) -> None:
    """Each of diffusers' parameters belongs to one block, in diffusers' shape."""
    used = Counter(full for block in unet_blocks(config) for _, full in block.params)
    assert set(used.values()) == {1}
    assert unet_shapes(config) == {name: value.shape for name, value in theirs.items()}
    assert set(used) == set(unet_shapes(config))


def check_order(config, inputs: Iterable[str]) -> None:
    """Blocks read what was made before, write new names, can be looked up by value, and end with the prediction."""
    known, blocks = set(inputs), unet_blocks(config)
    for block in blocks:
        assert set(block.inputs) <= known, block.name
        assert not set(block.outputs) & known, block.name
        known |= set(block.outputs)
        hash((block.function, block.static))
        assert getattr(__import__(block.function.__module__, fromlist=["_"]), block.function.__name__) is block.function
    assert blocks[-1].outputs == ("eps",)
