"""Who brings what into a sampling run: the model owner's values, the client's, and what everyone may know."""

from collections.abc import Sequence
from functools import lru_cache

import jax
import numpy as np

from ..errors import CipherDMError
from ..models import TIME_KINDS, UNet, UNetConfig, run_blocks, unet_blocks
from ..protocols import DIRECT
from .schedules import Schedule
from .steps import WEIGHTS, StepShape

Values = dict[str, np.ndarray]


def owner_values(unet: UNet, schedule: Schedule, shape: StepShape) -> Values:
    """What the model owner shares: the weights, and the time terms if the owner computes those in plaintext.

    The time terms are "time_table" [classes, steps, width] for conditional models, from which the client's secret label
    picks a row, and "time_terms" [1, steps, width] for others.
    """
    if shape.protocols.time_embedding == "inside":
        return {WEIGHTS + name: array for name, array in unet.params.items()}
    blocks = [block for block in unet_blocks(unet.config) if block.kind not in TIME_KINDS]
    names = [full for block in blocks for _, full in block.params]
    table = time_table(unet, schedule.timesteps)
    table_name = "time_terms" if unet.config.num_class_embeds is None else "time_table"
    return {WEIGHTS + name: unet.params[name] for name in names} | {table_name: table}


def client_values(labels: Sequence[int] | None, schedule: Schedule, shape: StepShape, seed: int) -> Values:
    """What the client shares: its labels as one-hot rows, and all noise, drawn here and known to nobody else.

    "sample" [B, C, H, W] is the initial noise, "noise" [steps, B, C, H, W] the fresh noise of each step, if the schedule
    has any. The generator is NumPy's, seeded by `seed`: a client in earnest draws an unpredictable one.

    Raises:
        CipherDMError: a label that the model does not have.
    """
    generator = np.random.default_rng(seed)
    values = {"sample": generator.standard_normal(shape.image_shape, dtype=np.float32)}
    if shape.noisy:
        values["noise"] = generator.standard_normal((schedule.steps, *shape.image_shape), dtype=np.float32)
    if labels is not None:
        values["class_onehot"] = one_hot(labels, shape.config)
    return values


def public_values(schedule: Schedule) -> Values:
    """The schedule, which all parties may know: coefficients, timesteps, and the number of each step as "step.i"."""
    values = {
        "coefficients": schedule.coefficients,
        "prediction": schedule.prediction,
        "timesteps": schedule.timesteps.astype(np.float32)[:, None],
    }
    return values | {f"step.{i}": np.int32(i) for i in range(schedule.steps)}


def one_hot(labels: Sequence[int], config: UNetConfig) -> np.ndarray:
    """Labels as float32 rows [B, num_class_embeds] with a single one. Raises CipherDMError for a label out of range."""
    classes = config.num_class_embeds
    if classes is None:
        raise CipherDMError("this model has no classes; leave the labels out and say how many images you want.")
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise CipherDMError(f"label {wrong[0]} does not exist: this model has the labels 0 to {classes - 1}.")
    return np.eye(classes, dtype=np.float32)[np.asarray(labels, dtype=np.int64)]


def time_table(unet: UNet, timesteps: np.ndarray) -> np.ndarray:
    """Every residual block's time term for all classes and steps, side by side: float32 [classes or 1, steps, width].

    Exact: these terms depend on nothing but the weights, the step and the class, so the owner computes in the clear what
    the secure program would otherwise compute at every step.
    """
    params = {name: unet.params[full] for name, full in _time_params(unet.config)}
    rows = [_time_row(unet.config)(params, np.float32([step])) for step in timesteps]
    return np.stack([np.asarray(row) for row in rows], axis=1)


def _time_params(config: UNetConfig) -> list[tuple[str, str]]:
    blocks = [block for block in unet_blocks(config) if block.kind in TIME_KINDS]
    return [(full, full) for block in blocks for _, full in block.params]


@lru_cache(maxsize=16)
def _time_row(config: UNetConfig):
    """The jitted function (params, timestep [1]) to [classes or 1, width]."""
    blocks = [block for block in unet_blocks(config) if block.kind in TIME_KINDS]
    terms = [name for block in blocks if block.kind == "time_projection" for name in block.outputs]
    classes = config.num_class_embeds

    def row(params, timestep):
        inputs = {"timestep": timestep}
        if classes is not None:
            inputs["class_onehot"] = np.eye(classes, dtype=np.float32)
        values = run_blocks(blocks, params, inputs, protocols=DIRECT)
        return jax.numpy.concatenate([values[name] for name in terms], axis=1)

    return jax.jit(row)
