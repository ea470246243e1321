"""Values of a sampling run by role: the model owner's, the client's, and what everyone may know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine import Session, Spec
from ..errors import CipherDMError, check_whole
from ..models import Config
from ..owner import WEIGHTS, PreparedWeights
from ..protocols.fast import WEIGHT_BITS
from ..protocols.fixed import encode
from ..schedules import Schedule, whole_steps
from .steps import COEFFICIENT_BITS, MEMORY, TIME_TERM, StepShape

Values = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Task:
    """All that a run needs: the public shape, and the values that each role brings, as they are to be shared."""

    shape: StepShape
    owner: Values
    client: Values
    public: Values  # all parties may know them; the others are secret-shared
    # Embeddings [branches, captions, tokens, width], and hints [hints, C, H, W], with which the owner plans rings.
    known_prompts: np.ndarray | None = None
    known_hints: np.ndarray | None = None

    @property
    def specs(self) -> dict[str, Spec]:
        """Shape, dtype and visibility of all values."""
        specs = {name: Spec.of(np.asarray(array)) for name, array in (self.owner | self.client).items()}
        return specs | {name: Spec.of(np.asarray(array), public=True) for name, array in self.public.items()}

    def share(self, session: Session) -> None:
        """Send the parties their shares."""
        session.share(self.owner)
        session.share(self.client)
        session.share(self.public, public=True)

    def decoded(self, sample: np.ndarray) -> np.ndarray:
        """Real numbers from a sample as the parties hold it."""
        return self.shape.decoded(sample)

    @property
    def examples(self) -> Values:
        """What the owner's own runs take besides the weights."""
        known = {"prompts": self.known_prompts, "hints": self.known_hints}
        return {name: array for name, array in known.items() if array is not None}

    def of_owner(self, seed: int) -> Values:
        """Return what a client would share in a run of the owner's own: with the classes or captions from the seed's on."""
        numbers, known = seed + np.arange(self.shape.batch), self.known_prompts
        classes = self.client["class_onehot"].shape[1] if "class_onehot" in self.client else None
        labels = None if classes is None else numbers % classes
        prompts = None if known is None else known[:, numbers % known.shape[1]].reshape(-1, *known.shape[2:])
        hints = None if self.known_hints is None else self.known_hints[numbers % len(self.known_hints)]
        return client_values(labels, self.shape, seed, prompts=prompts, hints=hints)


def owner_values(weights: PreparedWeights, shape: StepShape) -> Values:
    """Return what the model owner shares: the weights, and tables of what changes with the step or with the class.

    "step_table" is [steps, width]; "class_table" is [classes, steps, width], from which the client's secret label picks
    a row, or "class_rows" [1, steps, width] if the model has no classes.
    """
    value_bits = shape.protocols.value_bits

    def encoded(arrays: Mapping[str, np.ndarray]) -> Values:
        if value_bits is None:
            of_engine = (
                shape.protocols.walk_bits
            )  # of a set whose weights are words for some layers, and numbers for others
            return {
                n: encode(x, weights.bits[n], shape.ring, of_engine) if n in weights.bits else x
                for n, x in arrays.items()
            }
        default = {name: value_bits if name.endswith(TIME_TERM) else WEIGHT_BITS for name in arrays}
        return {n: encode(array, weights.bits.get(n, default[n]), shape.ring) for n, array in arrays.items()}

    values = {WEIGHTS + name: array for name, array in encoded(weights.constant).items()}
    if weights.by_step:
        values["step_table"] = _side_by_side(encoded(weights.by_step), axes=1)
    if weights.by_class:
        table = _side_by_side(encoded(weights.by_class), axes=2)
        values["class_table" if len(table) > 1 else "class_rows"] = table
    return values


def client_values(
    labels: Sequence[int] | None,
    shape: StepShape,
    seed: int,
    *,
    latents: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
    hints: np.ndarray | None = None,
) -> Values:
    """Return what the client shares: its labels as one-hot rows or its prompts and hints, and all noise, known to nobody else.

    "sample" [B, C, H, W] is the initial noise, "noise" [steps, B, C, H, W] the fresh noise of each step, if the schedule
    has any. The generator is NumPy's, seeded by `seed`; in production a client draws an unpredictable seed.

    Args:
        labels: labels of the images, for a model with classes.
        shape: shape of the step.
        seed: seed of the noise.
        latents: array to start from instead of noise, in the shape of "sample".
        prompts: embeddings [branches * B, tokens, width] that the model attends to, "encoder_hidden_states".
        hints: images [B, C, H, W] in [0, 1] that a ControlNet reads, "hint".

    Raises:
        CipherDMError: a label that the model does not have.
    """
    check_whole("the seed", seed, 0)
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal(shape.image_shape, dtype=np.float32) * np.float32(shape.deviation)
    values = {"sample": noise if latents is None else latents}
    if shape.noisy:
        values["noise"] = generator.standard_normal((shape.steps, *shape.image_shape), dtype=np.float32)
    if prompts is not None:
        values["encoder_hidden_states"] = prompts
    if hints is not None:
        values["hint"] = hints
    bits = shape.protocols.value_bits
    if bits is not None:
        values = {name: encode(array, bits, shape.ring) for name, array in values.items()}
    if shape.multistep:
        # There is no step before the first; its factors for these are 0.
        outputs = np.concatenate([values["sample"]] * shape.branches)
        values |= dict(zip(MEMORY, (values["sample"], outputs), strict=True))
    if labels is not None:
        rows = one_hot(labels, shape.config)
        values["class_onehot"] = rows if bits is None else encode(rows, 0, shape.ring)
    return values


def public_values(schedule: Schedule, shape: StepShape) -> Values:
    """Return what all parties may know: coefficients, timesteps, and the number of each step as "step.i"."""
    tables = {"coefficients": schedule.coefficients, "prediction": schedule.prediction}
    if shape.reuse > 1:
        _, tables["reuse_weights"] = whole_steps(shape.steps, shape.reuse)
    if shape.protocols.value_bits is not None:
        tables = {name: encode(table, COEFFICIENT_BITS, shape.ring) for name, table in tables.items()}
    values = {**tables, "timesteps": schedule.timesteps.astype(np.float32)[:, None]}
    return values | {f"step.{i}": np.int32(i) for i in range(schedule.steps)}


def whole_labels(labels: Sequence[int] | np.ndarray | int | None) -> list[int] | None:
    """Return one label, or any sequence or array of them, as a list. Raises CipherDMError for anything but whole numbers."""
    array = np.atleast_1d(np.asarray([] if labels is None else labels))
    if not array.size:
        return None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise CipherDMError(f"labels must be whole numbers, one per image; got {labels!r}.")
    return array.tolist()


def one_hot(labels: Sequence[int], config: Config) -> np.ndarray:
    """Return labels as float32 rows [B, num_class_embeds] with a single one.

    Raises CipherDMError if a label is out of range, or the model has no classes.
    """
    classes = config.num_class_embeds
    if classes is None:
        raise CipherDMError("this model has no classes; leave the labels out and say how many images you want.")
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise CipherDMError(f"label {wrong[0]} does not exist: this model has the labels 0 to {classes - 1}.")
    return np.eye(classes, dtype=np.float32)[np.asarray(labels, dtype=np.int64)]


def _side_by_side(arrays: Mapping[str, np.ndarray], axes: int) -> np.ndarray:
    """Flatten arrays after their first `axes` axes, which are equal, and put them side by side; float32."""
    rows = [array.reshape(*array.shape[:axes], -1) for array in arrays.values()]
    return np.concatenate(rows, axis=axes).astype(np.float32)
