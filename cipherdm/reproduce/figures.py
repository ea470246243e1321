"""The figure of each target, drawn from the records in a folder. Views are imported when a figure is drawn."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ..errors import CipherDMError
from ..records import read_record

MODELS = ("mnist01-tiny", "mnist10")


def functions(records: Path) -> Figure:
    """Error against bytes of every SiLU."""
    from ..views.pareto import pareto_figure

    record = read_record(records / "activations.json")
    sizes = {row["elements"] for row in record["rows"]}
    return pareto_figure(record, "silu", "bytes", elements=100_000 if 100_000 in sizes else max(sizes))


def gains(records: Path) -> Figure:
    """Gains of a step against both baselines, with the paper's ranges as bands."""
    from ..views.claims import claims_figure
    from .claims import gains as gains_of

    return claims_figure(gains_of(step_rows(records)))


def ladder(records: Path) -> Figure:
    """A step from direct to fast, one change after the other."""
    from ..views.ladder import ladder_figure

    return ladder_figure(read_record(records / f"ladder_{MODELS[0]}.json")["rows"])


def quality(records: Path) -> Figure:
    """Accuracy and LeNet-FID under each set of protocols."""
    from ..views.quality import quality_figure, read_quality

    return quality_figure(read_quality(records), MODELS, ("DDIM-50", "DDPM-20"))


def parts(records: Path) -> Figure:
    """A step by part of the U-Net and kind of layer."""
    from ..views.breakdown import breakdown_bars

    return breakdown_bars(read_record(records / f"breakdown_{MODELS[0]}.json"))


def latency(records: Path) -> Figure:
    """The latency model against runs over shaped links."""
    from ..views.latency import model_check

    return model_check(read_record(records / "latency.json"))


def trajectories(records: Path) -> Figure:
    """PSNR of secure sampling after each step."""
    from ..bench import recording
    from ..views.trajectory import psnr_by_step

    return psnr_by_step([recording.read(path) for path in sorted(records.glob("trajectory_*.json"))])


def long_run(records: Path) -> Figure:
    """The long DDPM run, secure beside plaintext."""
    from ..views.segments import segments_figure
    from .segments import read

    return segments_figure(*read(records / f"ddpm1000_{MODELS[0]}.json"))


def full_call(records: Path) -> Figure:
    """Where the time of one U-Net call of Stable Diffusion's size goes."""
    from ..views.full_call import full_call_figure

    return full_call_figure(read_record(records / "sd15_step.json"))


def step_rows(records: Path) -> list[dict]:
    """The rows of all records of `bench step` on the models of the claims. Raises CipherDMError if there are none."""
    paths = [path for model in MODELS if (path := records / f"step_{model}.json").exists()]
    if not paths:
        raise CipherDMError(
            f"there is no record {records}/step_*.json: make them with `cipherdm reproduce --only step`."
        )
    return pd.concat([pd.DataFrame(read_record(path)["rows"]) for path in paths]).to_dict("records")
