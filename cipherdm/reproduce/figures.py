"""The figure of each target, drawn from the records in a folder. Views are imported when a figure is drawn."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ..errors import CipherDMError
from ..records import read_record
from .claims import STEP_BATCHES, step_record

MODELS = ("mnist01-tiny", "mnist10")
PROMPT_MODEL = "sd-mini"


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


def samplers(records: Path) -> Figure:
    """LeNet-FID over the seconds that sampling takes under fast, by the committed record of a step if there is none here."""
    from ..costs.sampling import cost_of
    from ..views.latency import quality_against_cost, quality_frame
    from ..views.latency_widget import load_costs

    model = MODELS[1]
    here = (records / f"step_{model}.json").exists()
    costs = load_costs(records if here else None, (model,))
    return quality_against_cost(quality_frame(model, records), cost_of(costs[model], "fast"))


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


def prompts(records: Path) -> Figure:
    """Prompts, secure below plaintext."""
    from ..bench.prompts import read
    from ..views.prompts import prompts_sheet

    return prompts_sheet(read(records / f"prompts_{PROMPT_MODEL}.json"))


def grid(records: Path) -> Figure:
    """The first prompt under all sets of protocols, with guidance as it is calibrated, over the numbers of steps."""
    from ..bench.grid import read
    from ..views.grid import grid_sheet

    return grid_sheet(read(records / f"grid_{PROMPT_MODEL}.json"), 0, 4)


def prompt_gains(records: Path) -> Figure:
    """Gains of a step of the model that takes prompts."""
    from ..views.claims import claims_figure
    from .claims import gains as gains_of

    return claims_figure(gains_of(step_rows(records, (PROMPT_MODEL,))))


def requests(records: Path) -> Figure:
    """How long the requests of a soak took, and the memory of the parties' processes."""
    from ..views.hosts_runs import endurance

    return endurance(read_record(records / "soak.json"))


def step_rows(records: Path, models: Sequence[str] = MODELS) -> list[dict]:
    """The rows of all records of `bench step` on some models, by default the two of the paper's claims.

    Rows are of every number of pictures that was measured.

    Raises:
        CipherDMError: there are none.
    """
    stems = [step_record(model, batch) for model in models for batch in STEP_BATCHES]
    paths = [path for stem in stems if (path := records / f"{stem}.json").exists()]
    if not paths:
        raise CipherDMError(
            f"there is no record {records}/step_*.json: make them with `cipherdm bench step MODEL` of "
            f"{' and '.join(models)}."
        )
    return pd.concat([pd.DataFrame(read_record(path)["rows"]) for path in paths]).to_dict("records")
