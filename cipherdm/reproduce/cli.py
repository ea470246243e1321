"""The commands `cipherdm reproduce`, `cipherdm bench segments` and `cipherdm bench full-call`."""

from pathlib import Path
from typing import Annotated

import typer

from ..documents import root
from ..progress import ProgressBar


def segments(
    model: Annotated[str, typer.Argument(help="A name in data/models, or the path of a diffusers folder.")],
    scheduler: Annotated[str, typer.Option(help="ddim or ddpm.")] = "ddpm",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 1000,
    segment: Annotated[int, typer.Option(help="Steps in one program.", min=1)] = 50,
    batch: Annotated[int, typer.Option(help="Pictures; labels go through the model's classes.", min=1)] = 2,
    protocols: Annotated[str, typer.Option(help="The name of a set.")] = "fast",
    seed: Annotated[int, typer.Option(help="Of the client's noise.")] = 0,
    keep: Annotated[
        Path | None, typer.Option(help="Folder of finished segments; runs/segments/RECORD by default.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="The JSON file to write; in data/measurements by default.")
    ] = None,
) -> None:
    """Sample a long schedule on three parties in segments, beside plaintext from the same noise; can be resumed.

    After each segment the client fetches the sample and stores it, which it does for resuming alone. The pictures go into
    an .npz file beside the record.
    """
    from .. import protocols as protocol_sets
    from ..bench import recording
    from ..models import find_model, load_unet
    from . import segments as benchmark

    folder = find_model(model)
    record = record or root() / "data" / "measurements" / f"{scheduler}{steps}_{folder.resolve().name}.json"
    keep = keep or root() / "runs" / "segments" / record.stem
    unet = load_unet(folder)
    classes = unet.config.num_class_embeds
    pictures = {"count": batch} if classes is None else {"labels": [index % classes for index in range(batch)]}
    settings = {"scheduler": scheduler, "steps": steps, "length": segment, "seed": seed, **pictures}
    with ProgressBar("run") as bar:
        found, samples = benchmark.run(unet, keep, protocols=protocol_sets.named(protocols), progress=bar, **settings)
    beside = recording.write(record, found, {"samples": samples})
    typer.echo(benchmark.summary(found))
    typer.echo(f"Wrote {record} and {', '.join(map(str, beside))}.")


def full_call(
    model: Annotated[
        Path | None, typer.Argument(help="A folder of Stable Diffusion 1.x; random weights of its shape by default.")
    ] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Random weights with fewer channels, and smaller latents.")
    ] = False,
    protocols: Annotated[str, typer.Option(help="The name of a set.")] = "fast-shares",
    keep: Annotated[
        Path | None, typer.Option(help="Folder of finished blocks; runs/full_call/RECORD by default.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="The JSON file to write; in data/measurements by default.")
    ] = None,
) -> None:
    """Call a U-Net of Stable Diffusion's size once on three parties, block by block, against diffusers; can be resumed.

    Random weights and the parties' files go into the folder of --keep, which needs some GB for the full size. A model's own
    folder gets a calibration if it has none.
    """
    from .. import protocols as protocol_sets
    from ..records import write_record
    from . import full_call as benchmark

    record = record or root() / "data" / "measurements" / ("sd15_step_reduced.json" if reduced else "sd15_step.json")
    keep = keep or root() / "runs" / "full_call" / record.stem
    config = benchmark.REDUCED if reduced else benchmark.SD15
    chosen = benchmark.Model(keep / "model", config) if model is None else benchmark.Model(model)
    with ProgressBar("run") as bar:
        found = benchmark.run(chosen, keep, protocols=protocol_sets.named(protocols), progress=bar)
    write_record(record, found)
    typer.echo(benchmark.summary(found))
    typer.echo(f"Wrote {record}.")


def reproduce(
    names: Annotated[
        list[str] | None, typer.Option("--only", help="A target's name, or several with commas between.")
    ] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Measure little of each, into runs/reproduce/reduced.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Only say what there is, and what is finished.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Forget what is finished, and measure anew.")] = False,
    costs: Annotated[Path | None, typer.Option(help="Only note in this JSON file what finished pieces took.")] = None,
) -> None:
    """Measure tables and figures again, and compare them with what is expected.

    Each target is one or several commands of the project. Finished pieces are kept and skipped, so that a run can be
    interrupted and started again. A full run takes hours and puts its records into data/measurements and its figures into
    figures; a reduced one takes a small part of that and touches neither. The exit code is 3 if a number is not as expected.
    """
    from ..records import read_record, write_record
    from . import driver
    from .pieces import Place
    from .targets import TARGETS

    chosen = driver.choose(TARGETS, [name.strip() for text in names or [] for name in text.split(",") if name.strip()])
    place = Place.of(reduced)
    if list_:
        typer.echo(driver.listing(chosen, place))
    elif costs is not None:
        before = read_record(costs)["rows"] if costs.exists() else []
        rows = driver.costs(TARGETS, (Place.of(True), Place.of(False)), before)
        write_record(costs, {"what": "what pieces of cipherdm reproduce took", "rows": rows})
        typer.echo(f"Wrote {costs}.")
    elif not driver.reproduce(chosen, place, typer.echo, again=again):
        raise typer.Exit(3)
