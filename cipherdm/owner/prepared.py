"""The arrays that a model's owner shares: weights, and what it computes from them in the clear beforehand."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import jax
import numpy as np

from ..models.building import Block
from ..models.config import Config
from ..models.layout import unet_blocks
from ..models.unet import TIME_KINDS, UNet, run_blocks
from ..protocols import DIRECT

Entry = tuple[str, tuple[int, ...]]
WEIGHTS = "unet/"  # prefix of the names under which weights are shared, which are otherwise diffusers'


@dataclass(frozen=True)
class WeightsLayout:
    """The public part of `PreparedWeights`: all but the arrays' contents. Shapes are those of one step and one class."""

    constant: tuple[str, ...]
    by_step: tuple[Entry, ...]
    by_class: tuple[Entry, ...]
    bits: tuple[tuple[str, int], ...] = ()
    static: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedWeights:
    """Arrays that the owner shares, under diffusers' names or names derived from them.

    Those by step are [steps, ...]. Those by class are [classes, steps, ...], and the secret label picks from them; a model
    without classes has one. The time terms of the residual blocks are here. `bits` are fraction bits, for protocol sets that
    compute on `Fixed` numbers, and `static` public whole numbers, which a layer's function gets beside its parameters.
    """

    constant: Mapping[str, np.ndarray]
    by_step: Mapping[str, np.ndarray]
    by_class: Mapping[str, np.ndarray]
    bits: Mapping[str, int] = field(default_factory=dict)
    static: Mapping[str, int] = field(default_factory=dict)

    @property
    def layout(self) -> WeightsLayout:
        """Names, shapes, bits and whole numbers."""
        return WeightsLayout(
            tuple(self.constant),
            tuple((name, array.shape[1:]) for name, array in self.by_step.items()),
            tuple((name, array.shape[2:]) for name, array in self.by_class.items()),
            tuple(self.bits.items()),
            tuple(self.static.items()),
        )


def chosen_blocks(config: Config, names: Collection[str] | None) -> list[Block]:
    """Return the blocks of these names, or all of them, without those that compute time terms."""
    blocks = [block for block in unet_blocks(config) if block.kind not in TIME_KINDS]
    return [block for block in blocks if names is None or block.name in names]


def without_time_blocks(unet: UNet, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the weights of all blocks, or of those of these names, without those that compute time terms."""
    return {full: unet.params[full] for block in chosen_blocks(unet.config, names) for _, full in block.params}


def time_terms(unet: UNet, timesteps: np.ndarray, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the residual blocks' time terms, "BLOCK.time_term", for all classes and steps: float32 [classes or 1, steps, C].

    Exact: the terms depend on weights, step and class alone, so the owner computes them in the clear, and no secure program
    has to at every step. With `names` only the terms that these blocks read.
    """
    read = {name for block in chosen_blocks(unet.config, names) for name in block.inputs}
    if not any(name.endswith(".time_term") for name in read):
        return {}
    blocks = [block for block in unet_blocks(unet.config) if block.kind in TIME_KINDS]
    params = {full: unet.params[full] for block in blocks for _, full in block.params}
    rows = [_time_row(unet.config)(params, np.float32([step])) for step in timesteps]
    return {name: np.stack([np.asarray(row[name]) for row in rows], axis=1) for name in rows[0] if name in read}


@lru_cache(maxsize=16)
def _time_row(config: Config):
    """The jitted function (params, timestep [1]) to the time terms [classes or 1, width] by name."""
    blocks = [block for block in unet_blocks(config) if block.kind in TIME_KINDS]
    classes = config.num_class_embeds

    def row(params, timestep):
        inputs = {"timestep": timestep}
        if classes is not None:
            inputs["class_onehot"] = np.eye(classes, dtype=np.float32)
        values = run_blocks(blocks, params, inputs, protocols=DIRECT)
        return {name: values[name] for block in blocks if block.kind == "time_projection" for name in block.outputs}

    return jax.jit(row)
