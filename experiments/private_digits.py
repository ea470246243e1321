"""What private training leaves of a model: digits that it draws, read by MNIST's LeNet, and one that is taught them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure

from cipherdm.private import privacy_of
from cipherdm.private.statement import FILE
from cipherdm.progress import Progress, ProgressBar
from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .commands import RecordOption, finish, record_path, silent, split_names
from .markdown import markdown, records_named

SOURCES = {"letters": "letters", "glyphs": "letters and digits"}
KINDS = ("public", "dp1", "dp10", "open")
MODELS = tuple(f"{source}-{kind}" for source in SOURCES for kind in KINDS)
# DPImageBench's re-run, CCS 2025: accuracy on MNIST at eps 1 and 10.
PUBLISHED = {"DP-LDM": (0.442, 0.955), "the best (DP-FETA)": (0.956, 0.981)}


def run(
    models: Sequence[str] = MODELS,
    count: int = 10_000,
    guidance: float = 2.0,
    steps: int = 20,
    seeds: Iterable[int] = (0, 1, 2),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Have each model draw `count` digits for each seed, teach a LeNet with them, and test it on MNIST; return the record."""
    from .training.evaluation import score_images
    from .training.export import trained
    from .training.private_digits.draw import accuracy_of_taught, draw, load_model
    from .training.run import one_thread

    labels, seeds, rows = np.arange(count) % 10, list(seeds), []
    with one_thread():
        for name in models:
            folder = trained(name)
            unet, vae = load_model(folder)
            stated = privacy_of(folder) if (folder / FILE).exists() else None
            row = (
                {"epsilon": stated.budget.epsilon, "share": stated.share}
                if stated
                else {"epsilon": None, "share": None}
            )
            row = {"model": name, **row, "taught": [], "read": [], "lenet_fid": []}
            for seed in seeds:
                progress(len(rows) * len(seeds) + len(row["taught"]), len(models) * len(seeds), name)
                images = draw(unet, vae, labels, steps=steps, guidance=guidance, seed=1000 * seed)
                scores = score_images(images, labels, range(10))
                row["taught"].append(accuracy_of_taught(images, labels, seed=seed))
                row["read"].append(scores.accuracy)
                row["lenet_fid"].append(scores.lenet_fid)
            rows.append(row)
    about = {"count": count, "guidance": guidance, "steps": steps, "seeds": seeds}
    return {"benchmark": "private-digits", **about, "rows": rows}


def table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each model: means over the seeds, and the spread of what is taught."""
    frame = pd.DataFrame(record["rows"])
    spread = frame["taught"].map(lambda found: (max(found) - min(found)) / 2)
    for name in ("taught", "read", "lenet_fid"):
        frame[name] = frame[name].map(np.mean)
    return frame.assign(spread=spread)


def digits_table(measurements: Path) -> str:
    """Return the accuracies of all models, and published ones, as Markdown."""
    rows = [
        [
            _told(row["model"]),
            f"{row['taught']:.1%} ± {row['spread']:.1%}",
            f"{row['read']:.1%}",
            f"{row['lenet_fid']:.1f}",
        ]
        for row in table(_record(measurements)).to_dict("records")
    ]
    rows += [[f"{name}, published, eps {eps}", f"{value:.1%}", "-", "-"]
             for name, pair in PUBLISHED.items() for eps, value in zip((1, 10), pair, strict=True)]  # fmt: skip
    return markdown(["model", "a classifier taught its digits, on MNIST", "digits read as asked", "LeNet-FID"], rows)


def _told(model: str) -> str:
    source, kind = model.split("-")
    ways = {"public": "public data only", "open": "no privacy"}
    return f"{SOURCES[source]} to digits, {ways.get(kind) or 'eps ' + kind.removeprefix('dp')}"


def _record(measurements: Path) -> dict[str, Any]:
    (record,) = records_named(measurements, "private_digits.json", "cipherdm bench private-digits")
    return record


def figure(records: Path) -> Figure:
    """Draw the accuracy of a classifier that is taught drawn digits, over the promise, beside published ones."""
    frame = table(_record(records)).set_index("model")
    drawn = new_figure(8.0, 3.6)
    axis, said = drawn.subplots(), []
    for colour, source in zip(PALETTE, SOURCES, strict=False):
        found = frame.reindex([f"{source}-{kind}" for kind in KINDS])
        axis.errorbar(
            range(len(KINDS)), found["taught"], found["spread"], fmt="o-", color=colour, capsize=3,
            label=f"public {SOURCES[source]}",
        )  # fmt: skip
        said.append(f"{SOURCES[source]}: " + ", ".join(f"{value:.1%}" for value in found["taught"]))
    for marker, (name, pair) in zip("sD", PUBLISHED.items(), strict=True):
        axis.plot((1, 2), pair, marker, color=GREY, fillstyle="none", label=f"{name}, published")
    axis.set(xticks=range(len(KINDS)), xticklabels=["public data only", "eps 1", "eps 10", "no privacy"])
    axis.set_ylabel("accuracy on MNIST of a LeNet\nthat is taught drawn digits", fontsize=9)
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.legend(frameon=False, fontsize=9)
    return describe(
        drawn, f"Accuracy on MNIST after public data only, eps 1, eps 10 and no privacy, for public {'; '.join(said)}."
    )


def measure(
    models: Annotated[str, typer.Option(help="Names of models, with commas between.")] = ",".join(MODELS),
    count: Annotated[int, typer.Option(help="Number of digits that a model draws for each seed.", min=100)] = 10_000,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 2.0,
    steps: Annotated[int, typer.Option(help="Denoising steps, by DDIM.", min=1)] = 20,
    seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 3,
    record: RecordOption = None,
) -> None:
    """Measure what a classifier learns from digits that privately trained models draw, over eps and public data."""
    with ProgressBar("seed") as bar:
        found = run(split_names(models), count, guidance, steps, range(seeds), bar)
    finish(record_path(record, "private_digits"), found, table(found))
