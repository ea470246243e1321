"""What a model owner shares: weights, and whatever it can compute from them in the clear beforehand."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import jax
import numpy as np

from ..models.config import UNetConditionConfig, UNetConfig
from ..models.layout import Block, unet_blocks
from ..models.unet import TIME_KINDS, UNet, run_blocks
from ..protocols import DIRECT

Entry = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightsLayout:
    """What is public of `PreparedWeights`: all but the arrays' contents. Shapes are those of one step and one class."""

    constant: tuple[str, ...]
    by_step: tuple[Entry, ...]
    by_class: tuple[Entry, ...]
    bits: tuple[tuple[str, int], ...] = ()
    static: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedWeights:
    """What the owner shares, as float32 arrays under diffusers' names, or names of its own beside them.

    Attributes:
        constant: the same at all steps.
        by_step: [steps, ...], one row a step.
        by_class: [classes, steps, ...], one row a step and class, of which the secret label picks; one class if the model
            has none. The time terms of the residual blocks are here.
        bits: fraction bits by name, for sets that compute on `Fixed` numbers.
        static: public whole numbers that a layer's function gets beside its parameters, by name.
    """

    constant: Mapping[str, np.ndarray]
    by_step: Mapping[str, np.ndarray]
    by_class: Mapping[str, np.ndarray]
    bits: Mapping[str, int] = field(default_factory=dict)
    static: Mapping[str, int] = field(default_factory=dict)

    @property
    def layout(self) -> WeightsLayout:
        """Names and shapes."""
        return WeightsLayout(
            tuple(self.constant),
            tuple((name, array.shape[1:]) for name, array in self.by_step.items()),
            tuple((name, array.shape[2:]) for name, array in self.by_class.items()),
            tuple(self.bits.items()),
            tuple(self.static.items()),
        )


def chosen_blocks(config: UNetConfig | UNetConditionConfig, names: Collection[str] | None) -> list[Block]:
    """The blocks of these names, or all of them, but not those that compute time terms."""
    blocks = [block for block in unet_blocks(config) if block.kind not in TIME_KINDS]
    return [block for block in blocks if names is None or block.name in names]


def without_time_blocks(unet: UNet, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The weights of all blocks, or of those of these names, but not of those that compute time terms."""
    return {full: unet.params[full] for block in chosen_blocks(unet.config, names) for _, full in block.params}


def time_terms(unet: UNet, timesteps: np.ndarray, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Every residual block's time term for all classes and steps, as "BLOCK.time_term": float32 [classes or 1, steps, width].

    Exact: these terms depend on nothing but the weights, the step and the class, so the owner computes in the clear what
    the secure program would otherwise compute at every step. With `names` only the terms that these blocks read.
    """
    read = {name for block in chosen_blocks(unet.config, names) for name in block.inputs}
    if not any(name.endswith(".time_term") for name in read):
        return {}
    blocks = [block for block in unet_blocks(unet.config) if block.kind in TIME_KINDS]
    params = {full: unet.params[full] for block in blocks for _, full in block.params}
    rows = [_time_row(unet.config)(params, np.float32([step])) for step in timesteps]
    return {name: np.stack([np.asarray(row[name]) for row in rows], axis=1) for name in rows[0] if name in read}


@lru_cache(maxsize=16)
def _time_row(config: UNetConfig | UNetConditionConfig):
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
