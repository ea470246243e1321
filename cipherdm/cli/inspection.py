"""`cipherdm inspect` and `privacy`: what a folder holds, which protocol sets draw from it, and what drawing would cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cipherdm as cdm

from ..errors import CipherDMError
from ..progress import ProgressBar
from .options import PROTOCOL_NAMES, GuidanceOption, ModelArgument, SchedulerOption, StepsOption

if TYPE_CHECKING:
    from ..costs.sampling import StepCost
    from ..models import UNet
    from ..models.transformer import Transformer
    from ..sampling.pipeline import Pipeline

LARGEST = 100_000_000
"""Parameters from which on a model is not prepared here: `cipherdm bench full-call --plan` takes it block by block."""


def inspect(
    name: ModelArgument,
    steps: StepsOption = None,
    scheduler: SchedulerOption = None,
    guidance_scale: GuidanceOption = None,
    pictures: Annotated[int, typer.Option(help="Number of images of a run.", min=1)] = 1,
) -> None:
    """Say what a folder holds, which protocol sets can draw from it, and what drawing would cost, before anything starts.

    Bytes and rounds of sets that the parties walk by themselves are exact, since they follow from the public plan. What SPU
    computes is known after a run: `cipherdm bench step`. Seconds are those of two cores for all three parties: what rounds and
    bytes took in this project's records; over a LAN and a WAN the latency model adds the network.
    """
    from ..models import sampling_defaults
    from ..models.transformer import Transformer
    from ..sampling.pipeline import load_model
    from ..schedules import scheduler_of
    from .owner import lines
    from .sample import counted

    folder = cdm.find_model(name)
    loaded = load_model(folder)
    if isinstance(loaded, Transformer):
        config, count = loaded.config, sum(array.size for array in loaded.params.values())
        does = f"tells {' from '.join(config.labels)} in" if config.labels else "continues"
        typer.echo(
            f"{folder.resolve().name} has {count:,} parameters and {does} texts of at most {config.tokens} tokens."
        )
        typer.echo(lines([{"protocols": each} | _row(loaded, each, pictures, {}) for each in PROTOCOL_NAMES]))
        return
    unet, usual = getattr(loaded, "unet", loaded), sampling_defaults(folder)
    settings: dict[str, Any] = {"steps": usual["steps"] if steps is None else steps}
    settings["scheduler"] = scheduler or scheduler_of(unet.scheduler_config)
    asks = "nothing" if unet.config.num_class_embeds is None else f"labels 0 to {unet.config.num_class_embeds - 1}"
    guided = ""
    if loaded is not unet:
        settings["guidance_scale"] = usual["guidance_scale"] if guidance_scale is None else guidance_scale
        asks, guided = "prompts", f", guidance scale {settings['guidance_scale']:g}"
    count = sum(array.size for array in unet.params.values())
    typer.echo(
        f"{folder.resolve().name} has {count:,} parameters and draws {' x '.join(map(str, unet.config.sample_shape))} numbers "
        f"from {asks}.\nIts scheduler is {(unet.scheduler_config or {}).get('_class_name')}; it is sampled by "
        f"{settings['scheduler']} in {counted(settings['steps'], 'step')}{guided}."
    )
    if count > LARGEST:
        plan = f": see `cipherdm bench full-call {folder} --plan`" if loaded is not unet else "; a run tells its cost"
        typer.echo(f"It is too large to be planned here{plan}.")
        return
    rows = [{"protocols": each} | _row(loaded, each, pictures, settings) for each in PROTOCOL_NAMES]
    typer.echo(lines(rows))


def privacy(folder: Annotated[Path, typer.Argument(help="Folder of a model, with privacy.json in it.")]) -> None:
    """Print who is promised what about the training data, after computing epsilon anew from the noise.

    The exit code is 1 if the numbers do not fit together, and if the training was not private because its noise has a seed.
    """
    from ..private.statement import privacy_of

    statement = privacy_of(folder)
    typer.echo(statement.text)
    if not statement.private:
        raise typer.Exit(1)


def _row(model: "UNet | Pipeline | Transformer", name: str, pictures: int, settings: dict[str, Any]) -> dict[str, str]:
    """What a set costs for a run, or why it does not draw."""
    from ..costs import LAN, WAN
    from ..kernels.ring_program import WalkPlan
    from ..kernels.rings import costs
    from ..models.transformer import Transformer
    from ..protocols import named
    from ..sampling import make_task, text_to_image_task
    from ..sampling.pipeline import blank_hints
    from ..sampling.texts import classification_task
    from .owner import hosted

    empty = dict.fromkeys(("MB", "rounds", "seconds", "LAN, s", "WAN, s"), "-")
    try:
        if named(name).walk_bits is None or named(name).small_bits is not None:  # whose bytes no plan tells
            if isinstance(model, Transformer):
                classification_task(model, ["."] * pictures, protocols=named(name))
            elif "guidance_scale" in settings:
                hints = blank_hints(model, pictures)
                text_to_image_task(model, [""] * pictures, control=hints, protocols=named(name), **settings)
            else:
                classes = model.config.num_class_embeds
                who = {"count": pictures} if classes is None else {"labels": [0] * pictures}
                make_task(model, protocols=named(name), **who, **settings)
            return {"draws": "yes"} | empty
        with ProgressBar("call") as bar:
            chosen = {"batch": pictures, "protocols": name, "granularity": "step", "progress": bar}
            calls = hosted("inspected", model, steps=settings, **chosen).plan.calls
    except CipherDMError as error:
        return {"draws": f"no: {error}"} | empty
    found = [costs(WalkPlan.from_json(call.program.code.decode())) for call in calls if call.program.walk]
    sent, rounds = (sum(part) for part in zip(*found, strict=True))
    cost = _timed(name, sent, rounds)
    told = {"draws": "yes", "MB": f"{sent / 1e6:.1f}", "rounds": f"{rounds:,}"}
    if cost is None:
        return empty | told
    times = {"seconds": cost.seconds} | {f"{net.name}, s": cost.over(net).seconds for net in (LAN, WAN)}
    return told | {column: f"{value:.1f}" for column, value in times.items()}


def _timed(variant: str, sent: int, rounds: int) -> "StepCost | None":
    """Return a run's cost with the seconds that its rounds and bytes took in the records of steps; None without records."""
    import numpy as np
    from scipy.optimize import nnls

    from ..costs.sampling import StepCost, step_costs
    from ..records import MEASUREMENTS

    known = [cost for path in MEASUREMENTS.glob("step_*.json") for cost in step_costs(path) if cost.variant == variant]
    if not known:
        return None
    (each_round, each_byte), _ = nnls(
        np.array([[k.rounds, k.bytes] for k in known]), np.array([k.seconds for k in known])
    )
    return StepCost("", variant, 1, each_round * rounds + each_byte * sent, sent, rounds, sent // 3)
