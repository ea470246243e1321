"""The same prompts under many settings, emulated in plaintext: steps, guidance and protocols change what is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure

from cipherdm.calibration import calibration_of
from cipherdm.errors import CipherDMError
from cipherdm.likeness import grey_levels, psnr
from cipherdm.models import find_model
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import CIPHERDM, CIPHERDM_CORRECTED, DIRECT, FAST, PUMA, Protocols
from cipherdm.sampling.pipeline import Pipeline, load_pipeline
from cipherdm.sampling.text_to_image import text_to_image
from cipherdm.views.style import GREY, describe, new_figure, strip
from cipherdm.views.widgets import Control, Explorer

from . import recording
from .commands import PromptModel, RecordOption, parse_numbers, record_path, silent
from .prompts import PROMPTS
from .recording import draw_levels, labelled_images, shown_pixels
from .target import PROMPT_MODEL, Check, Command, Target, Value

SETS = (DIRECT, CIPHERDM, CIPHERDM_CORRECTED, PUMA, FAST)
"""Protocol sets, the exact functions first. The others are compared with them."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A recorded run: the record, and images uint8 [protocols, guidance scales, steps, prompts, C, H, W]."""

    about: Mapping[str, Any]
    pictures: np.ndarray

    def picture(self, protocols: str, guidance_scale: float, steps: int, prompt: int) -> np.ndarray:
        """Return an image uint8 [C, H, W] of a protocol set and a prompt's number. Raises CipherDMError if it was not drawn."""
        return self.pictures[*self._place(protocols, guidance_scale, steps), prompt]

    def psnr(self, protocols: str, guidance_scale: float, steps: int) -> np.ndarray:
        """Return the PSNR in dB to the first set's images, [prompts]. Raises CipherDMError if they were not drawn."""
        self._place(protocols, guidance_scale, steps)
        return np.array(_row(self.about, protocols, guidance_scale, steps)["psnr_db"])

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
    steps: Sequence[int] = (5, 10, 20, 50),
    guidance_scales: Sequence[float] = (1.0, 2.0, 4.0, 7.0),
    protocols: Sequence[Protocols] = SETS,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Draw prompts by DDIM under all combinations, from the same noise. Return the record and its images.

    A row has the PSNR in dB of each image, as it is shown, to that of the first protocol set. A value that overflows is shown
    as grey. A stored calibration, for the guidance scale and timesteps that "calibration" names, serves all scales, and all
    steps by the nearest timestep. Raises CipherDMError as `text_to_image`, or if there is nothing to draw.
    """
    if not (prompts and steps and guidance_scales and protocols):
        raise CipherDMError("there must be at least one prompt, number of steps, guidance scale and protocol set.")
    calibrated = any(chosen.prepare is not None for chosen in protocols)
    calibration = calibration_of(pipeline) if calibrated else None  # before minutes of drawing
    shape = (len(protocols), len(guidance_scales), len(steps))
    pictures, rows = {}, []
    for done, place in enumerate(np.ndindex(shape)):
        chosen, guidance_scale, count = protocols[place[0]], guidance_scales[place[1]], steps[place[2]]
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
    """Read a recorded run. Raises CipherDMError as `recording.read`."""
    about, images = recording.read(path, "cipherdm bench grid")
    return Grid(about, **images)


def summary(record: Mapping[str, Any]) -> str:
    """Return the mean PSNR of each protocol set, a row for each guidance scale and a column for each number of steps."""
    frame = pd.DataFrame(record["rows"])
    frame["psnr_db"] = frame["psnr_db"].map(np.mean)
    return frame.pivot(index=["protocols", "guidance_scale"], columns="steps", values="psnr_db").round(1).to_string()


EXACT = "exact"  # the first protocol set's name in figures


def grid_sheet(grid: Grid, prompt: int = 0, guidance_scale: float | None = None, *, steps: int | None = None) -> Figure:
    """Draw one prompt under all protocol sets, a row for each, with the PSNR in dB below each image.

    Columns are the numbers of steps, for one guidance scale; or the guidance scales, for one number of steps. Raises
    CipherDMError if neither is given, or both, or if their images were not drawn.
    """
    if (guidance_scale is None) == (steps is None):
        raise CipherDMError("give either guidance_scale, for columns of steps, or steps, for columns of scales.")
    about = grid.about
    if steps is None:
        settings = [(guidance_scale, count) for count in about["steps"]]
        titles, fixed = [f"{count} steps" for count in about["steps"]], f"guidance {guidance_scale:g}"
    else:
        settings = [(scale, steps) for scale in about["guidance_scales"]]
        titles, fixed = [f"guidance {scale:g}" for scale in about["guidance_scales"]], f"{steps} steps"
    names = dict(zip(about["protocols"], [EXACT, *about["protocols"][1:]], strict=True))
    figure = new_figure(1.5 + 1.3 * len(settings), 0.7 + 1.55 * len(about["protocols"]))
    axes = labelled_images(figure, [label.replace("-", "-\n") for label in names.values()], titles, gap=8)
    told = []
    for row, (name, label) in zip(axes, names.items(), strict=True):
        ratios = [f"{grid.psnr(name, *setting)[prompt]:.1f}" for setting in settings]
        for axis, setting, ratio in zip(row, settings, ratios, strict=True):
            draw_levels(axis, grid.picture(name, *setting, prompt))
            if label != EXACT:
                axis.set_xlabel(f"{ratio} dB", fontsize=8.5, color=GREY, labelpad=2)
        told += [f"{name} {', '.join(ratios)} dB"] if label != EXACT else []
    text = about["prompts"][prompt]
    figure.suptitle(f"{text}, {fixed}", fontsize=10, parse_math=False)
    return describe(
        figure,
        f"{text!r} by {about['model']}, {fixed}, emulated in plaintext from the same noise: a row for each protocol set, a "
        f"column for {titles[0]} to {titles[-1]}. PSNR to the exact functions: {'; '.join(told)}.",
    )


def grid_controls(grid: Grid) -> Explorer:
    """A prompt under all protocol sets, side by side with their PSNR in dB, under controls for prompt, steps and guidance."""
    about = grid.about
    prompts, steps, scales, names = (about[name] for name in ("prompts", "steps", "guidance_scales", "protocols"))
    strips = {}
    for prompt, count, scale in product(range(len(prompts)), steps, scales):
        ratios = [f"{grid.psnr(name, scale, count)[prompt]:.1f} dB" for name in names]
        pictures = [shown_pixels(grid.picture(name, scale, count, prompt)) for name in names]
        told = ", ".join(f"{name} {ratio}" for name, ratio in zip(names[1:], ratios[1:], strict=True))
        text = f"{prompts[prompt]}: {count} steps, guidance {scale:g}, from the same noise. PSNR to {EXACT}: {told}."
        strips[f"{prompt},{count},{scale:g}"] = {"strip": strip(pictures), "notes": ["", *ratios[1:]], "text": text}
    step, scale = steps[len(steps) // 2], scales[len(scales) // 2]
    controls = {
        "prompt": Control("prompt", range(len(prompts)), 0, prompts, "choice"),
        "steps": Control("steps", steps, step),
        "guidance_scale": Control("guidance scale", scales, scale, [f"{each:g}" for each in scales]),
    }
    data = {"across": len(names), "titles": [EXACT, *names[1:]], "strips": strips}
    return Explorer(controls, scene="pictures", data=data)


def _row(record: Mapping[str, Any], protocols: str, guidance_scale: float, steps: int) -> Mapping[str, Any]:
    wanted = {"protocols": protocols, "guidance_scale": guidance_scale, "steps": steps}
    (row,) = (row for row in record["rows"] if all(row[name] == value for name, value in wanted.items()))
    return row


def mean_psnr(stem: str, protocols: str, guidance_scale: float, steps: int) -> Value:
    """Return the function that takes the mean PSNR in dB over the prompts, of a protocol set under one setting."""
    return lambda records: float(np.mean(_row(records[stem], protocols, guidance_scale, steps)["psnr_db"]))


def measure(
    model: PromptModel = PROMPT_MODEL,
    steps: Annotated[str, typer.Option(help="Numbers of denoising steps.")] = "5,10,20,50",
    guidance_scales: Annotated[
        str, typer.Option(help="Scales of classifier-free guidance, whole numbers.")
    ] = "1,2,4,7",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Draw three prompts under all combinations of steps, guidance and protocol sets, emulated in plaintext.

    The images go into an .npz file beside the record.
    """
    folder = find_model(model)
    path = record_path(record, f"grid_{folder.resolve().name}")
    scales = parse_numbers(guidance_scales, "--guidance-scales")
    settings = {"steps": parse_numbers(steps, "--steps"), "guidance_scales": scales, "seed": seed}
    with ProgressBar("picture") as bar:
        found, images = run(load_pipeline(folder), progress=bar, **settings)
    typer.echo(f"{summary(found)}\n{recording.write(path, found, images)}")


_DRAWN, _SETTING = f"grid_{PROMPT_MODEL}", "guidance 4, 10 steps"

TARGET = Target(
    "grid",
    "Three prompts under steps, guidance scales and sets of protocols, in plaintext",
    "CipherDM's functions change what a prompt draws; PUMA's and ours hardly do",
    "ours",
    (Command(_DRAWN, ("bench", "grid", PROMPT_MODEL), (), ("--steps", "10", "--guidance-scales", "4")),),
    tuple(
        Check(f"mean PSNR of {name} to exact, {_SETTING}", expected, 4, mean_psnr(_DRAWN, name, 4, 10), 4, unit=" dB")
        for name, expected in (("cipherdm", 25.7), ("cipherdm-corrected", 24.4), ("puma", 41.1), ("fast", 45.8))
    ),
    lambda records: grid_sheet(read(records / f"{_DRAWN}.json"), 0, guidance_scale=4),
    order=80,
)
