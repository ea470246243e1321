"""The command line of the benchmarks: `cipherdm bench activations | step`."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from ..documents import root
from ..errors import CipherDMError

# The commands import what they measure when they run, so that `cipherdm --help` need not wait for it.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

RecordOption = Annotated[Path | None, typer.Option(help="The JSON file to write; in data/measurements by default.")]


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

    record = record or _measurements() / "activations.json"
    chosen = _numbers(sizes, "--sizes")
    with LocalCluster() as cluster, _Bar() as bar:
        found = benchmark.run(cluster, chosen, repetitions, bar)
    write_record(record, found)
    typer.echo(benchmark.table(found).to_string(index=False, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


@app.command()
def step(
    model: Annotated[str, typer.Argument(help="A name in data/models, or the path of a diffusers folder.")],
    protocols: Annotated[
        str | None,
        typer.Option(
            help="Names of sets, and direct-pade, separated by commas; the published ones and ours by default."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images at a time, one or several numbers.")] = "1,4,16",
    repetitions: Annotated[int, typer.Option(help="Counted runs of each; one more warms up.")] = 5,
    steps: Annotated[int, typer.Option(help="Length of the schedule whose first step is run.")] = 20,
    record: RecordOption = None,
) -> None:
    """Measure one denoising step under several sets of protocols, taking turns: time, bytes, sends, memory.

    Ratios are against direct or direct-pade, whichever is faster; more is better.
    """
    from ..models import find_model, load_unet
    from . import step as benchmark

    names = benchmark.DEFAULT_NAMES if protocols is None else [name.strip() for name in protocols.split(",")]
    folder = find_model(model)
    record = record or _measurements() / f"step_{folder.resolve().name}.json"
    settings = {
        "variants": benchmark.variants(names),
        "batches": _numbers(batch, "--batch"),
        "repetitions": repetitions,
        "steps": steps,
    }
    with _Bar() as bar:
        frame = benchmark.run(load_unet(folder), progress=bar, **settings)
    benchmark.write(record, frame, steps=steps)
    typer.echo(benchmark.ratios(frame).to_string(index=False, float_format="{:.4g}".format))
    typer.echo(f"Wrote {record}.")


class _Bar:
    """A progress bar that names what is being measured."""

    def __enter__(self) -> "_Bar":
        self._bar = tqdm(unit="run")
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None and self._bar.total:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()

    def __call__(self, done: int, total: int, name: str) -> None:
        self._bar.total = total
        self._bar.set_description(name, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()  # before the measurement, and not only when there is progress


def _measurements() -> Path:
    return root() / "data" / "measurements"


def _numbers(text: str, option: str) -> list[int]:
    """ "1,4,16" to [1, 4, 16]. Raises CipherDMError if it is something else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise CipherDMError(
            f"cannot read {option} {text!r}: write positive numbers separated by commas, such as 1,4,16."
        )
    return [int(part) for part in parts]
