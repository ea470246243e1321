"""`cipherdm calibrate`, `check-ranges` and `plan`: what the owner of a checkpoint runs before it is sampled from shares."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cipherdm as cdm

from ..errors import CipherDMError
from ..files import replacing
from ..progress import ProgressBar
from .options import (
    ConditioningOption,
    GuidanceOption,
    ModelArgument,
    ProtocolsOption,
    ReuseOption,
    StepsOption,
    writable_image,
)

if TYPE_CHECKING:
    from ..hosts import Model
    from ..models import UNet
    from ..models.transformer import Transformer
    from ..owner.ranges import LayerRange
    from ..sampling.pipeline import Pipeline

CaptionsOption = Annotated[
    Path | None,
    typer.Option(help="File with one caption per line, or text; captions.txt or texts.txt in the folder by default."),
]
LEFT = 3  # exit code if a layer left its range; errors have 1, and wrong usage 2


def calibrate(
    name: ModelArgument,
    images: Annotated[
        int | None,
        typer.Option(help="Number of images: of each class, 24 by default, or of all captions, 64 by default.", min=1),
    ] = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            help="Number of timesteps, evenly spaced; schedules take the nearest. 100, or 50 with captions.", min=1
        ),
    ] = None,
    reuse: ReuseOption = 1,
    captions: CaptionsOption = None,
    guidance_scale: GuidanceOption = None,
    conditioning_scale: ConditioningOption = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise, which is public.")] = 0,
) -> None:
    """Calibrate a model for the set `fast`: measure in plaintext what its layers carry, and store fits in its folder."""
    model, known = _read(name, captions)
    settings = {
        "timesteps": timesteps,
        "reuse": reuse,
        "images": images,
        "guidance_scale": guidance_scale,
        "conditioning_scale": conditioning_scale,
        "seed": seed,
    }
    with ProgressBar("step") as bar:
        path = cdm.calibrate(model, known, progress=bar, **settings)
    typer.echo(f"Wrote {path}.")


def hosted(
    name: str, model: "UNet | Pipeline | Transformer", *, steps: dict[str, Any], tokens: int | None = None, **settings
) -> "Model":
    """Return a model as it would be registered; `steps` are the settings of one that is sampled, `tokens` of a transformer."""
    from ..hosts import classifying_model, sampling_model
    from ..models.transformer import Transformer

    if isinstance(model, Transformer):
        return classifying_model(name, model, tokens=tokens, **settings)
    return sampling_model(name, model, **settings, **steps)


def _read(name: str, captions: Path | None) -> "tuple[UNet | Pipeline | Transformer, list[str] | None]":
    """A model, and captions or texts for it."""
    from ..models import UNet
    from ..sampling.pipeline import load_model, read_captions

    folder = cdm.find_model(name)
    model = load_model(folder)
    if captions is not None and isinstance(model, UNet):
        raise CipherDMError(f"{folder} is no Stable Diffusion folder, and takes no captions.")
    return model, None if captions is None else read_captions(captions)


def check_ranges(
    model: ModelArgument,
    protocols: ProtocolsOption = "fast",
    steps: StepsOption = None,
    captions: CaptionsOption = None,
    guidance_scale: GuidanceOption = None,
    conditioning_scale: ConditioningOption = 1.0,
    count: Annotated[
        int | None, typer.Option(help="Number of images of each class, 4 by default; of captions, 16; of texts, 64.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise, which is public.")] = 1,
) -> None:
    """Check in plaintext whether a model's layers stay in the ranges outside which a protocol set is wrong.

    With sets that parties walk, it also checks whether numbers fit the rings of the plan, and with ditto that of 32 bits: "cut"
    is the share of the room that they take.
    Prints what every layer carries on fresh noise, worst first. The exit code is 0 if no layer leaves its range, 3 if one
    does, and 1 for errors.
    """
    from ..protocols import named
    from ..sampling.ditto import MORE_ROOM

    chosen, (loaded, texts) = named(protocols), _read(model, captions)
    settings = {"steps": steps, "images": count, "guidance_scale": guidance_scale, "seed": seed}
    settings |= {"conditioning_scale": conditioning_scale}
    with ProgressBar("step") as bar:
        found = cdm.check_ranges(loaded, chosen, texts, progress=bar, **settings)
    if found:
        typer.echo(f"{table(found)}\n{verdict(found)}")
    else:
        typer.echo(f"No function of {chosen.name} is restricted to a range, so nothing can leave one.")
    left = any(entry.outside for entry in found)
    if left and chosen.small_bits is not None:
        typer.echo(f"To make room in the ring of 32 bits, {MORE_ROOM}.")
    raise typer.Exit(LEFT if left else 0)


def plan(
    name: ModelArgument,
    protocols: ProtocolsOption = "fast-rings",
    steps: Annotated[int, typer.Option(help="Number of denoising steps.", min=1)] = 4,
    pictures: Annotated[int, typer.Option(help="Number of images, or texts, of a run.", min=1)] = 1,
    granularity: Annotated[str, typer.Option(help="Unit that becomes one program: block or step.")] = "step",
    out: Annotated[
        Path | None, typer.Option(help="Image file for a picture of a step.", callback=writable_image)
    ] = None,
) -> None:
    """Show the public plan by which three parties would walk a model's steps: rings, truncations, bytes and rounds.

    It is what `cipherdm register` would give the parties for the same settings.
    """
    from ..kernels.ring_program import WalkPlan
    from ..kernels.rings import costs, made_by
    from ..protocols import named
    from ..sampling.pipeline import load_model

    folder, chosen = cdm.find_model(name), named(protocols)
    if chosen.walk_bits is None:
        raise CipherDMError(f"{chosen.name} is computed by SPU, without a plan; take fast-64 or fast-rings.")
    settings = {"batch": pictures, "steps": {"steps": steps}, "protocols": chosen, "granularity": granularity}
    with ProgressBar("call") as bar:
        calls = hosted("plan", load_model(folder), **settings, progress=bar).plan.calls
    times = Counter(call.program.id for call in calls)
    rows, step = [], []
    # The first call of each program, in order.
    for call in reversed({call.program.id: call for call in reversed(calls) if call.program.walk}.values()):
        walk = WalkPlan.from_json(call.program.code.decode())
        made, (sent, rounds) = made_by(walk), costs(walk)
        kinds = Counter(each.kind for each in made)
        row = {"first call": call.label, "calls": times[call.program.id]}
        row |= {"products": kinds["product"], "cuts": kinds["cut"], "local truncations": kinds["local"]}
        row["bits a number"] = sum(each.bits * each.numbers for each in made) / max(
            1, sum(each.numbers for each in made)
        )
        rows.append(row | {"kB a call": sent / 1e3, "rounds": rounds})
        step += made
    typer.echo(lines(rows))
    if out is not None:
        from ..views.plans import rings_of_step

        with replacing(out) as temporary:
            rings_of_step(step, folder.resolve().name).savefig(temporary, dpi=150)
        typer.echo(f"Wrote {out}.")


def table(found: "Sequence[LayerRange]") -> str:
    """Format one line per layer and function, in the order given; steps are counted from 1."""
    rows = [
        {
            "layer": entry.layer,
            "function": entry.function,
            "lowest": entry.lowest,
            "highest": entry.highest,
            "allowed": f"{entry.allowed[0]:.4g} to {entry.allowed[1]:.4g}",
            "outside": f"{100 * entry.outside:.2g}%",
            "worst step": "" if entry.step is None else str(entry.step + 1),
            "beyond by": entry.excess,
        }
        for entry in found
    ]
    return lines(rows)


def lines(rows: list[dict[str, Any]]) -> str:
    """Format rows as a table, with their keys above."""
    import pandas as pd  # slow to import, and --help does not need it

    return pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format)


def verdict(found: "Sequence[LayerRange]") -> str:
    """Name the layers that leave their range, each once, in the order given."""
    layers = {entry.layer for entry in found}
    leaving = list(dict.fromkeys(entry.layer for entry in found if entry.outside))
    if not leaving:
        return f"All {len(layers)} layers stay in their ranges."
    return f"{len(leaving)} of {len(layers)} layers leave their range: {', '.join(leaving)}."
