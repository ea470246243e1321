"""The command line of the benchmarks: `cipherdm bench`, with a command for each module here and one for the ladder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..documents import root
from ..errors import CipherDMError
from ..progress import ProgressBar

if TYPE_CHECKING:
    from ..models import UNet
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
    from ..engine import LocalCluster
    from ..records import write_record
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
    from ..engine import LocalCluster
    from ..records import write_record
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
    from ..engine import LocalCluster
    from ..records import write_record
    from . import piecewise as benchmark

    record = record or measurements() / "piecewise.json"
    with LocalCluster() as cluster, ProgressBar("run") as bar:
        found = benchmark.run(cluster, progress=bar)
    write_record(record, found)
    typer.echo(benchmark.table(found).to_string(index=False))
    typer.echo(f"Wrote {record}.")


ModelArgument = Annotated[str, typer.Argument(help="A name in data/models, or the path of a diffusers folder.")]
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
    from ..models import find_model, load_unet
    from ..records import write_record
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
    from ..engine import LocalCluster
    from ..records import write_record
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
    from ..records import write_record
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
    from ..costs import network_named
    from ..models import find_model, load_unet
    from ..records import write_record
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
    from ..models import find_model, load_unet
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
    from ..models import find_model, load_unet
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


def numbers(text: str, option: str) -> list[int]:
    """ "1,4,16" to [1, 4, 16]. Raises CipherDMError if it is something else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise CipherDMError(
            f"cannot read {option} {text!r}: write positive numbers separated by commas, such as 1,4,16."
        )
    return [int(part) for part in parts]
