"""The same prompts under many settings, emulated in plaintext: what steps, guidance and protocols do to a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..comparison import psnr
from ..errors import CipherDMError
from ..protocols import CIPHERDM, CIPHERDM_CORRECTED, DIRECT, FAST, PUMA, Protocols
from ..sampling.pipeline import Pipeline
from ..sampling.prompt_calibration import calibration_of
from ..sampling.text_to_image import text_to_image
from .prompts import PROMPTS
from .recording import grey_levels, read_with_pictures

Progress = Callable[[int, int, str], None]

STEPS = (5, 10, 20, 50)
GUIDANCE_SCALES = (1.0, 2.0, 4.0, 7.0)
SETS = (DIRECT, CIPHERDM, CIPHERDM_CORRECTED, PUMA, FAST)
"""The exact functions first: the others are compared with them."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A run, as `read` gives it.

    Attributes:
        about: the record: model, prompts, steps, guidance_scales, protocols, seed, calibration, rows, environment.
        pictures: uint8 [protocols, guidance scales, steps, prompts, C, H, W].
    """

    about: Mapping[str, Any]
    pictures: np.ndarray

    def picture(self, protocols: str, guidance_scale: float, steps: int, prompt: int) -> np.ndarray:
        """uint8 [C, H, W], of a set by its name and a prompt by its number. Raises CipherDMError for what was not drawn."""
        return self.pictures[*self._place(protocols, guidance_scale, steps), prompt]

    def psnr(self, protocols: str, guidance_scale: float, steps: int) -> np.ndarray:
        """In dB, [prompts], to the pictures of the first set. Raises CipherDMError for what was not drawn."""
        self._place(protocols, guidance_scale, steps)
        wanted = (protocols, guidance_scale, steps)
        rows = (row for row in self.about["rows"] if (row["protocols"], row["guidance_scale"], row["steps"]) == wanted)
        return np.array(next(rows)["psnr_db"])

    def _place(self, protocols: str, guidance_scale: float, steps: int) -> tuple[int, int, int]:
        wanted = {"protocols": protocols, "guidance_scales": guidance_scale, "steps": steps}
        for name, value in wanted.items():
            if value not in self.about[name]:
                drawn = ", ".join(map(str, self.about[name]))
                raise CipherDMError(f"the grid has no pictures with {name} {value}: there are {drawn}.")
        return tuple(self.about[name].index(value) for name, value in wanted.items())


def run(
    pipeline: Pipeline,
    prompts: Sequence[str] = PROMPTS[:3],
    *,
    steps: Sequence[int] = STEPS,
    guidance_scales: Sequence[float] = GUIDANCE_SCALES,
    protocols: Sequence[Protocols] = SETS,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Draw prompts by DDIM under all combinations, from the same noise; the record, and its pictures, for `recording.write`.

    A row has the PSNR in dB of each picture, as it is shown, to that of the first set of protocols. A set that is calibrated
    works with what is stored with the model, which was made for one guidance scale and some timesteps. It is used under all
    others too, at the nearest timestep, so that the record shows what that does; "calibration" says what it was made for.
    A value that overflows is shown as grey.

    Raises:
        CipherDMError: a prompt, a number of steps, a guidance scale or a set is missing; or as `text_to_image`.
    """
    if not (prompts and steps and guidance_scales and protocols):
        raise CipherDMError("there must be at least one prompt, number of steps, guidance scale and set of protocols.")
    calibrated = any(chosen.prepare is not None for chosen in protocols)
    calibration = calibration_of(pipeline) if calibrated else None  # before minutes of drawing
    shape = (len(protocols), len(guidance_scales), len(steps))
    pictures, rows = {}, []
    for done, place in enumerate(np.ndindex(shape)):
        chosen, guidance_scale, count = protocols[place[0]], guidance_scales[place[1]], steps[place[2]]
        if progress is not None:
            progress(done, int(np.prod(shape)), f"{chosen.name}, guidance {guidance_scale:g}, {count} steps")
        settings = {"steps": count, "guidance_scale": guidance_scale, "seed": seed}
        pictures[place] = grey_levels(text_to_image(pipeline, None, prompts, protocols=chosen, **settings).images)
        found = psnr(*(pictures[at] / np.float32(127.5) - 1 for at in (place, (0, *place[1:]))))
        rows.append({"protocols": chosen.name, "guidance_scale": guidance_scale, "steps": count, "psnr_db": found})
    record = {
        "benchmark": "grid",
        "model": pipeline.unet.folder.resolve().name,
        "prompts": list(prompts),
        "protocols": [chosen.name for chosen in protocols],
        "guidance_scales": list(guidance_scales),
        "steps": list(steps),
        "seed": seed,
        "calibration": calibration,
        "rows": rows,
    }
    whole = np.stack(list(pictures.values()))
    return record, {"pictures": whole.reshape(*shape, *whole.shape[1:])}


def read(path: str | Path) -> Grid:
    """Read what `run` found and `recording.write` wrote. Raises CipherDMError if it is not there or not whole."""
    return Grid(**read_with_pictures(path, "make it with `cipherdm bench grid`."))


def summary(record: Mapping[str, Any]) -> str:
    """Mean PSNR of each set, a row for each guidance scale and a column for each number of steps."""
    frame = pd.DataFrame(record["rows"])
    frame["psnr_db"] = frame["psnr_db"].map(np.mean)
    return frame.pivot(index=["protocols", "guidance_scale"], columns="steps", values="psnr_db").round(1).to_string()
