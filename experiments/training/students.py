"""Recipes of few-step students: one frozen configuration for each student of `data/models`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from diffusers import DDIMScheduler

from cipherdm.errors import CipherDMError

from .recipes import NOISE_SCHEDULE


@dataclass(frozen=True)
class Phase:
    """`steps` steps of the optimizer at a learning rate that rises and falls to 2% within them.

    With `whole` the error is that of the picture after all calls, else that of single calls from the teacher's samples. It is
    measured by mean squares, or by the pseudo-Huber loss. `matching` weighs the distribution of pictures, which needs `whole`.
    """

    steps: int
    learning_rate: float
    whole: bool = False
    huber: bool = False
    matching: float = 0.0


@dataclass(frozen=True)
class StudentConfig:
    """A student, its teacher in `data/models`, and its optimisation by AdamW."""

    name: str
    teacher: str
    calls: int
    start: int  # noise is taken for the sample at timestep start - 1
    phases: tuple[Phase, ...]
    guidance: float = 1.0  # scale of the teacher's classifier-free guidance
    act_fn: str = "silu"  # "quad" is ours; see `modules`
    initial: str | None = None  # the student in `data/models` to begin from, in the place of the teacher
    paths: int = 8000  # pictures that the teacher draws to learn from
    pairs: int = 0  # of a caption and a hint that a teacher with a ControlNet draws for
    pixels: float = 0.0  # weight of the error of decoded pixels, on a quarter of the batch
    batch: int = 64
    judged: int = 2000  # pictures by which the student is judged on the way
    seed: int = 0
    warmup: int = 50
    weight_decay: float = 1e-4
    ema_decay: float = 0.998
    clip_norm: float = 1.0

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> tuple[Phase, int]:
        """Return the phase of a step counted from 0, and the number of the step within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise CipherDMError(f"{self.name} has {self.steps} steps, and none after them.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        phase, step = self.phase(step)
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / phase.steps))
        return phase.learning_rate * min(1.0, (step + 1) / self.warmup) * fall

    def scheduler(self) -> DDIMScheduler:
        """Return the student's scheduler: the teacher's noise levels up to timestep `start - 1`."""
        whole = NOISE_SCHEDULE["num_train_timesteps"]
        first, last = NOISE_SCHEDULE["beta_start"], NOISE_SCHEDULE["beta_end"]
        end = first + (last - first) * (self.start - 1) / (whole - 1)
        cut = {"num_train_timesteps": self.start, "beta_end": end, "timestep_spacing": "trailing", "steps_offset": 1}
        return DDIMScheduler(**NOISE_SCHEDULE | cut)


def _students() -> Iterator[StudentConfig]:
    ten = {"teacher": "mnist10"}
    four = (Phase(600, 4e-4), Phase(500, 3e-4, huber=True))
    yield StudentConfig("mnist10-turbo-4", calls=4, start=600, phases=four, **ten)
    two = (Phase(500, 4e-4), Phase(400, 3e-4, whole=True, huber=True))
    yield StudentConfig("mnist10-turbo-2", calls=2, start=600, phases=two, initial="mnist10-turbo-4", **ten)
    one = (Phase(600, 4e-4, whole=True, huber=True), Phase(600, 3e-4, whole=True, huber=True, matching=0.05))
    yield StudentConfig("mnist10-turbo-1", calls=1, start=550, phases=one, initial="mnist10-turbo-2", **ten)
    plain = (one[0], replace(one[1], matching=0.0))  # a comparison, which does not ship
    yield StudentConfig(
        "mnist10-turbo-1-without-matching", calls=1, start=550, phases=plain, initial="mnist10-turbo-2", **ten
    )
    mini = {"teacher": "sd-mini", "guidance": 4.0, "judged": 1000, "paths": 16000}
    four = (Phase(800, 4e-4), Phase(800, 3e-4, huber=True))
    yield StudentConfig("sd-mini-turbo-4", calls=4, start=600, phases=four, **mini)
    two = (Phase(500, 4e-4), Phase(700, 3e-4, whole=True, huber=True))
    yield StudentConfig("sd-mini-turbo-2", calls=2, start=600, phases=two, initial="sd-mini-turbo-4", **mini)
    one = (Phase(1000, 4e-4, whole=True, huber=True), Phase(800, 3e-4, whole=True, huber=True))
    once = {"calls": 1, "start": 550, "phases": one, "pixels": 0.3}
    yield StudentConfig("sd-mini-turbo-1", initial="sd-mini-turbo-2", **once, **mini)
    yield StudentConfig("sd-mini-turbo-1-quad", initial="sd-mini-turbo-1", act_fn="quad", **once, **mini)
    steered = mini | {"teacher": "sd-mini-dp10-control", "judged": 100, "paths": 8000, "pairs": 8000}
    both = (Phase(800, 4e-4), Phase(800, 3e-4, whole=True, huber=True))
    yield StudentConfig("sd-mini-dp10-control-turbo-2", calls=2, start=600, phases=both, **steered)


STUDENTS: dict[str, StudentConfig] = {config.name: config for config in _students()}
"""Recipes of the few-step students, by name."""
