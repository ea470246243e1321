"""The command line of the benchmarks: `cipherdm bench`, with a command for each module here and one for the ladder."""

# FROM cipherdm.bench.picture_cli:
# The commands of benchmarks that record pictures: `cipherdm bench trajectory`, `prompts` and `grid`.

# FROM cipherdm.reproduce.cli:
# The commands `cipherdm reproduce`, `cipherdm bench segments` and `cipherdm bench full-call`.

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cipherdm.cli.options import ModelArgument
from cipherdm.cli.options import parse_numbers as numbers
from cipherdm.files import root
from cipherdm.progress import ProgressBar

if TYPE_CHECKING:
    from cipherdm.models import UNet

    from .step import Variant

# The commands import what they measure when they run, so that `cipherdm --help` need not wait for it.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

RecordOption = Annotated[Path | None, typer.Option(help="The JSON file to write; in data/measurements by default.")]


@app.command()
def operations(
    elements: Annotated[int, typer.Option(help="Numbers that an operation works on at once.", min=100)] = 10_000,
    repetitions: Annotated[int, typer.Option(help="Counted runs of each; one more warms up.", min=1)] = 9,
    record: RecordOption = None,
) -> None:
    """Measure elementary operations on three parties, from an addition to a softmax: time, bytes, messages."""
    from cipherdm.engine import LocalCluster
    from cipherdm.records import write_record

    from . import operations as benchmark

    record = record or measurements() / "operations.json"
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        session = cluster.session()
        found = benchmark.run(session, elements, repetitions, bar)
        found["layouts"] = benchmark.run(session, elements, repetitions, bar, benchmark.LAYOUTS)["rows"]
    write_record(record, found)
    for rows in (found["rows"], found["layouts"]):
        typer.echo(benchmark.table({"rows": rows}).to_string(float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


@app.command()
def activations(
    sizes: Annotated[str, typer.Option(help="Numbers of elements.")] = "1000,10000,100000,1000000",
    repetitions: Annotated[int, typer.Option(help="Of every function at every size.")] = 3,
    record: RecordOption = None,
) -> None:
    """Measure every approximation beside the exact function on three parties: error, time, bytes, sends."""
    from cipherdm.engine import LocalCluster
    from cipherdm.records import write_record

    from . import activations as benchmark

    record = record or measurements() / "activations.json"
    chosen = numbers(sizes, "--sizes")
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        found = benchmark.run(cluster, chosen, repetitions, bar)
    write_record(record, found)
    typer.echo(benchmark.table(found).to_string(index=False, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


@app.command()
def piecewise(record: RecordOption = None) -> None:
    """Measure piecewise polynomials over a grid of segments and degrees on three parties: bytes and sends of each."""
    from cipherdm.engine import LocalCluster
    from cipherdm.records import write_record

    from . import piecewise as benchmark

    record = record or measurements() / "piecewise.json"
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        found = benchmark.run(cluster, progress=bar)
    write_record(record, found)
    typer.echo(benchmark.table(found).to_string(index=False))
    typer.echo(f"Wrote {record}.")


BatchOption = Annotated[str, typer.Option(help="Images at a time, one or several numbers.")]

RepetitionsOption = Annotated[int, typer.Option(help="Counted runs of each; one more warms up.")]

StepsOption = Annotated[int, typer.Option(help="Length of the schedule whose first steps are run.")]

AtOnceOption = Annotated[int, typer.Option(help="Steps in one program; costs are divided by them.")]


@app.command()
def step(
    model: ModelArgument,
    protocols: Annotated[
        str | None,
        typer.Option(
            help="Names of sets, and direct-pade, separated by commas; the published ones and ours by default."
        ),
    ] = None,
    distilled: Annotated[
        str | None,
        typer.Option(
            help="A model distilled from this one, to measure beside it with fast; MODEL-quad if there is one."
        ),
    ] = None,
    batch: BatchOption = "1,4,16",
    repetitions: RepetitionsOption = 5,
    steps: StepsOption = 20,
    at_once: AtOnceOption = 5,
    granularity: Annotated[
        str | None,
        typer.Option(help="What one program computes: block, step or loop; by default a loop, or a step with kernels."),
    ] = None,
    record: RecordOption = None,
) -> None:
    """Measure a denoising step under several sets of protocols, taking turns: time, bytes, sends, memory.

    Ratios are against direct or direct-pade, whichever is faster; more is better.
    """
    from . import step as benchmark

    names = None if protocols is None else [name.strip() for name in protocols.split(",")]
    beside = _distilled(model, distilled)
    settings = {"batches": numbers(batch, "--batch"), "repetitions": repetitions, "steps": steps, "at_once": at_once}

    def chosen(unet: "UNet") -> "tuple[Variant, ...]":
        chosen_names = benchmark.default_names(unet) if names is None else names
        return (*benchmark.variants(chosen_names, granularity), *beside)

    _measure_steps("step", model, chosen, settings, record)


@app.command()
def ladder(
    model: ModelArgument,
    batch: BatchOption = "1",
    repetitions: RepetitionsOption = 3,
    steps: StepsOption = 20,
    at_once: AtOnceOption = 5,
    record: RecordOption = None,
) -> None:
    """Measure a denoising step from direct to fast, with one change more at each rung."""
    from .ladder import rungs

    settings = {"batches": numbers(batch, "--batch"), "repetitions": repetitions, "steps": steps, "at_once": at_once}
    _measure_steps("ladder", model, rungs, settings, record)


@app.command()
def breakdown(
    model: ModelArgument,
    protocols: Annotated[
        str, typer.Option(help="Names of sets, and direct-pade, separated by commas.")
    ] = "direct,cipherdm,fast",
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 1,
    repetitions: Annotated[int, typer.Option(help="Counted runs of each; one more warms up.", min=1)] = 3,
    steps: StepsOption = 20,
    record: RecordOption = None,
) -> None:
    """Measure a denoising step by part of the U-Net and kind of layer: seconds, bytes, messages, rounds. Takes some minutes."""
    from cipherdm.models import find_model, load_unet
    from cipherdm.records import write_record

    from . import breakdown as benchmark
    from .step import variants

    folder = find_model(model)
    record = record or measurements() / f"breakdown_{folder.resolve().name}.json"
    chosen = variants([name.strip() for name in protocols.split(",")])
    settings = {"batch": batch, "repetitions": repetitions, "steps": steps}
    with ProgressBar("run") as bar:
        found = benchmark.run(load_unet(folder), variants=chosen, progress=bar, **settings)
    write_record(record, found)
    typer.echo(benchmark.table(found).to_string(float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


@app.command()
def linear(
    shapes: Annotated[
        str | None, typer.Option(help='Of matrices, such as "128x1152x196,320x2880x4096"; all layers by default.')
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Counted runs of each; one more warms up.", min=1)] = 3,
    record: RecordOption = None,
) -> None:
    """Measure matrix products on three parties, SPU's against kernels on shares in both rings, and the rings' conversions."""
    from cipherdm.engine import LocalCluster
    from cipherdm.records import write_record

    from . import linear as benchmark

    record = record or measurements() / "linear.json"
    chosen = benchmark.SHAPES if shapes is None else [benchmark.shape_named(name) for name in shapes.split(",")]
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        session = cluster.session(benchmark.ENGINE)
        found = benchmark.run(session, chosen, repetitions, bar)
        found["conversions"] = benchmark.run_conversions(session, repetitions=repetitions, progress=bar)
    write_record(record, found)
    for table in (benchmark.table(found), benchmark.conversion_table(found)):
        typer.echo(table.to_string(index=False, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


@app.command()
def network(
    repetitions: Annotated[int, typer.Option(help="Times that each network's links are set up.", min=1)] = 5,
    record: RecordOption = None,
) -> None:
    """Measure how exactly links are shaped: round trip and throughput, asked for and measured. Takes about a minute."""
    from cipherdm.records import write_record

    from . import network as benchmark

    record = record or measurements() / "network.json"
    with ProgressBar("run") as bar:
        found = benchmark.run(repetitions=repetitions, progress=bar)
    write_record(record, found)
    typer.echo(benchmark.table(found).to_string(float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


@app.command()
def latency(
    model: Annotated[
        str, typer.Argument(help="A name in data/models, or the path of a diffusers folder.")
    ] = "mnist01-tiny",
    protocols: Annotated[str, typer.Option(help="Names of sets, separated by commas.")] = "fast,direct",
    networks: Annotated[str, typer.Option(help="Names of networks, separated by commas.")] = "lan,wan,narrow",
    repetitions: Annotated[int, typer.Option(help="Counted runs over each network.", min=1)] = 3,
    record: RecordOption = None,
) -> None:
    """Compare the latency model with a denoising step over shaped links, in turns with runs without. Takes about 6 minutes.

    Where a run would take more than 20 seconds, as with direct over a WAN, there is one.
    """
    from cipherdm.costs import network_named
    from cipherdm.models import find_model, load_unet
    from cipherdm.records import write_record

    from . import latency as benchmark
    from .step import variants

    record = record or measurements() / "latency.json"
    chosen = variants([name.strip() for name in protocols.split(",")])
    between = [network_named(name.strip()) for name in networks.split(",")]
    with ProgressBar("run") as bar:
        found = benchmark.run(
            load_unet(find_model(model)), variants=chosen, networks=between, repetitions=repetitions, progress=bar
        )
    write_record(record, found)
    typer.echo(benchmark.table(found).to_string(index=False, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


def _distilled(model: str, name: str | None) -> "list[Variant]":
    """The variant of the distilled model: that of the given name, or `model`-quad if there is one."""
    from cipherdm.models import find_model, load_unet

    from .step import of_distilled

    if name is None:
        folder = find_model(model)
        beside = folder.with_name(f"{folder.resolve().name}-quad")
        return [of_distilled(load_unet(beside))] if beside.is_dir() else []
    return [of_distilled(load_unet(find_model(name)))]


def _measure_steps(
    name: str, model: str, variants_of: "Callable[[UNet], Sequence[Variant]]", settings: dict, record: Path | None
) -> None:
    """Run the benchmark of a step on a model's variants, write its record, and print its table."""
    from cipherdm.models import find_model, load_unet

    from . import step as benchmark

    folder = find_model(model)
    record = record or measurements() / f"{name}_{folder.resolve().name}.json"
    unet = load_unet(folder)
    with ProgressBar("run") as bar:
        frame = benchmark.run(unet, variants=variants_of(unet), progress=bar, **settings)
    benchmark.write(record, frame, steps=settings["steps"])
    typer.echo(benchmark.ratios(frame).to_string(index=False, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


def measurements() -> Path:
    """Where records go by default."""
    return root() / "data" / "measurements"


PromptModel = Annotated[str, typer.Argument(help="A name in data/models, or the path of a Stable Diffusion folder.")]


def trajectory(
    model: ModelArgument,
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm or dpmsolver++.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20,
    batch: Annotated[int, typer.Option(help="Pictures; labels go through the model's classes.", min=1)] = 10,
    eta: Annotated[float, typer.Option(help="DDIM's share of fresh noise, 0 to 1.")] = 0.0,
    protocols: Annotated[str, typer.Option(help="The name of a set.")] = "fast",
    seed: Annotated[int, typer.Option(help="Of the client's noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Record sampling step by step, on three parties and in plaintext from the same noise: pictures, PSNR, costs.

    The client fetches the sample after every step, which it does for the trajectory alone. The pictures go into .npz
    files beside the record.
    """
    from cipherdm import protocols as protocol_sets
    from cipherdm.models import find_model, load_unet

    from . import trajectory
    from . import trajectory as benchmark

    folder = find_model(model)
    record = record or measurements() / f"trajectory_{folder.resolve().name}_{scheduler}.json"
    settings = {"scheduler": scheduler, "steps": steps, "batch": batch, "eta": eta, "seed": seed}
    with ProgressBar("run") as bar:
        found = benchmark.run(load_unet(folder), protocols=protocol_sets.named(protocols), progress=bar, **settings)
    told = _written(record, *found)
    typer.echo(trajectory.table(trajectory.read(record)).to_string(float_format="{:.4g}".format))
    typer.echo(told)


def prompts(
    model: PromptModel = "sd-mini",
    file: Annotated[Path | None, typer.Option("--prompts", help="A file with a prompt in each line.")] = None,
    protocols: Annotated[str, typer.Option(help="The name of a set.")] = "fast",
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm or dpmsolver++.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 20,
    guidance_scale: Annotated[float, typer.Option(help="Of classifier-free guidance; 1 is none.", min=1)] = 4.0,
    count: Annotated[int | None, typer.Option(help="Only the first so many of the prompts.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Draw prompts one by one on three parties and in plaintext from the same noise: pictures, PSNR, costs.

    The pictures go into an .npz file beside the record.
    """
    from cipherdm import protocols as protocol_sets
    from cipherdm.calibration import read_captions
    from cipherdm.models import find_model
    from cipherdm.sampling.pipeline import load_pipeline

    from . import prompts as benchmark

    folder = find_model(model)
    record = record or measurements() / f"prompts_{folder.resolve().name}.json"
    chosen = (benchmark.PROMPTS if file is None else read_captions(file))[:count]
    settings = {"scheduler": scheduler, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    with ProgressBar("run") as bar:
        found, pictures = benchmark.run(
            load_pipeline(folder), chosen, protocols=protocol_sets.named(protocols), progress=bar, **settings
        )
    told = _written(record, found, pictures)
    typer.echo(benchmark.summary(found))
    typer.echo(told)


def grid(
    model: PromptModel = "sd-mini",
    steps: Annotated[str, typer.Option(help="Numbers of denoising steps.")] = "5,10,20,50",
    guidance_scales: Annotated[str, typer.Option(help="Of classifier-free guidance, whole numbers.")] = "1,2,4,7",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    record: RecordOption = None,
) -> None:
    """Draw three prompts under all combinations of steps, guidance and sets of protocols, emulated in plaintext.

    The pictures go into an .npz file beside the record.
    """
    from cipherdm.models import find_model
    from cipherdm.sampling.pipeline import load_pipeline

    from . import grid as benchmark

    folder = find_model(model)
    record = record or measurements() / f"grid_{folder.resolve().name}.json"
    chosen = {"steps": numbers(steps, "--steps"), "guidance_scales": numbers(guidance_scales, "--guidance-scales")}
    with ProgressBar("picture") as bar:
        found, pictures = benchmark.run(load_pipeline(folder), seed=seed, progress=bar, **chosen)
    told = _written(record, found, pictures)
    typer.echo(benchmark.summary(found))
    typer.echo(told)


def _written(record: Path, found: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    """Write a record with its pictures beside it; returns what to print in the end."""
    from . import trajectory

    beside = trajectory.write(record, found, pictures)
    return f"Wrote {record} and {', '.join(map(str, beside))}."


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
    from cipherdm import protocols as protocol_sets
    from cipherdm.models import find_model, load_unet

    from . import ddpm1000 as benchmark
    from . import trajectory

    folder = find_model(model)
    record = record or root() / "data" / "measurements" / f"{scheduler}{steps}_{folder.resolve().name}.json"
    keep = keep or root() / "runs" / "segments" / record.stem
    unet = load_unet(folder)
    classes = unet.config.num_class_embeds
    pictures = {"count": batch} if classes is None else {"labels": [index % classes for index in range(batch)]}
    settings = {"scheduler": scheduler, "steps": steps, "length": segment, "seed": seed, **pictures}
    with ProgressBar("run") as bar:
        found, samples = benchmark.run(unet, keep, protocols=protocol_sets.named(protocols), progress=bar, **settings)
    beside = trajectory.write(record, found, {"samples": samples})
    typer.echo(benchmark.summary(found))
    typer.echo(f"Wrote {record} and {', '.join(map(str, beside))}.")


def full_call(
    model: Annotated[
        Path | None, typer.Argument(help="A folder of Stable Diffusion 1.x; random weights of its shape by default.")
    ] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Random weights with fewer channels, and smaller latents.")
    ] = False,
    protocols: Annotated[str, typer.Option(help="The name of a set.")] = "fast-kernels",
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
    from cipherdm import protocols as protocol_sets
    from cipherdm.records import write_record

    from . import sd15 as benchmark

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
    from cipherdm.records import read_record, write_record

    from . import runner
    from .runner import Place
    from .targets import TARGETS

    chosen = runner.choose(TARGETS, [name.strip() for text in names or [] for name in text.split(",") if name.strip()])
    place = Place.of(reduced)
    if list_:
        typer.echo(runner.listing(chosen, place))
    elif costs is not None:
        before = read_record(costs)["rows"] if costs.exists() else []
        rows = runner.costs(TARGETS, (Place.of(True), Place.of(False)), before)
        write_record(costs, {"what": "what pieces of cipherdm reproduce took", "rows": rows})
        typer.echo(f"Wrote {costs}.")
    elif not runner.reproduce(chosen, place, typer.echo, again=again):
        raise typer.Exit(3)


def tables() -> None:
    """Rewrite the tables in README.md and FUNCTIONS.md from the records in data/measurements."""
    from .tables import DOCUMENTS, rewrite

    for document in DOCUMENTS:
        changed = rewrite(root() / document, root() / "data" / "measurements")
        typer.echo(f"{document}: {'rewritten' if changed else 'up to date'}")


for _command in (trajectory, prompts, grid, segments):
    app.command()(_command)
app.command("full-call")(full_call)


@app.command("soak")
def soak(
    requests: Annotated[int, typer.Option(help="Of all clients together.", min=4)] = 200,
    clients: Annotated[int, typer.Option(help="That make them at the same time.", min=1)] = 4,
    record: RecordOption = None,
) -> None:
    """Have three hosts on this machine answer many requests of several clients, and check each answer against plaintext."""
    from .soak import soak_command

    soak_command(requests, clients, record)
