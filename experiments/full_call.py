"""Calls of a U-Net of Stable Diffusion's size on three parties, block by block, against diffusers in plaintext.

Without a folder the weights are random, in Stable Diffusion 1.5's own configuration. Costs depend on weights in one way: how
far attention scores spread. Those of random weights are small, so FAST needs no number for each pair of tokens. Those of
trained checkpoints reach 10 and more, and then there is one for each pair: `--scores 10` scales random weights to that. Each
part leaves its result in a folder, so an interrupted run goes on with the next part, or with the next block.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cipherdm.engine import sum_totals
from cipherdm.errors import CipherDMError, refuse
from cipherdm.files import checkout
from cipherdm.models import UNet, UNetConditionConfig, init_unet, load_unet, save_unet
from cipherdm.owner.calibrate import calibrate
from cipherdm.owner.observe import FILE, Observation, observe, save_calibration, weights_digest
from cipherdm.progress import Progress, ProgressBar
from cipherdm.protocols import FAST_64, Protocols, named
from cipherdm.records import read_record
from cipherdm.schedules import Schedule, make_schedule
from cipherdm.views.style import GREY, PALETTE, describe, new_figure

from .commands import KeepOption, ProtocolsOption, RecordOption, finish, record_path, silent
from .journal import kept, write_json
from .sd15_blockwise import UNetCalls, ledger, run_in_plaintext, run_on_parties, sizes_by_block
from .target import Check, Command, Target, field

SD15 = UNetConditionConfig(sample_size=64, cross_attention_dim=768)
"""Stable Diffusion 1.5: 860 million parameters."""

REDUCED = replace(SD15, sample_size=16, cross_attention_dim=96, block_out_channels=(64, 128, 128, 128))
"""The same blocks with fewer channels and smaller latents."""

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, **_BETAS}
SCHEDULER |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}

_SPACING = {"timestep_spacing": "trailing"}  # as few-step students have it: the first step is that of the most noise
_VAE = {"latent_channels": 4, "layers_per_block": 2, "block_out_channels": (128, 256, 512, 512)}
_VAE |= {
    f"{way}_block_types": (kind,) * 4 for way, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D"))
}


def prepared(folder: Path, config: UNetConditionConfig | None = None, steps: int = 1, scores: float = 0) -> UNet:
    """Return the U-Net in a folder, of its own or of a pipeline, after calibrating it for so many steps if it is not yet.

    Its weights stay in their file. A missing folder is filled with random weights for `config`, if that is given. With `scores`
    above 0 its queries are scaled so that attention scores are about so far from their row's mean at most.
    """
    if not folder.exists() and config is not None:
        unet = replace(init_unet(config), scheduler_config=SCHEDULER)
        save_unet(_with_scores(unet, steps, scores) if scores else unet, folder)
    unet = load_unet(folder, lazily=True)
    if not isinstance(unet.config, UNetConditionConfig):
        raise CipherDMError(f"{folder} holds no model that takes prompts; give a folder of Stable Diffusion.")
    if not (folder / FILE).exists():
        whole, schedule = load_unet(folder), _schedule(unet, steps)
        # Several small images show as many values as one at full size does.
        count = min(8, max(1, 4096 // int(np.prod(_extent(unet.config.sample_size)))))
        embeddings = _embeddings(unet.config, count, seed=1)
        save_calibration(calibrate(whole, schedule, embeddings=embeddings, seed=1), whole)
    return unet


def _with_scores(unet: UNet, steps: int, scores: float) -> UNet:
    largest: dict[str, float] = {}

    def visit(_: int, seen: Observation) -> None:
        for name, rows in seen.scores.items():
            mean = rows.mean(-1)
            extent = max(float((rows.max(-1) - mean).max()), float((mean - rows.min(-1)).max()))
            largest[name] = max(largest.get(name, 0.0), extent)

    observe(unet, _schedule(unet, steps), _embeddings(unet.config, 1, seed=1), seed=1, visit=visit)
    queries = {f"{name}.to_q.weight": scores / extent for name, extent in largest.items()}
    return replace(unet, params=dict(unet.params) | {n: unet.params[n] * np.float32(by) for n, by in queries.items()})


def _schedule(unet: UNet, steps: int) -> Schedule:
    return make_schedule(dict(unet.scheduler_config) | _SPACING, "ddim", steps)


def calls_of(unet: UNet, protocols: Protocols, steps: int = 1, seed: int = 2) -> UNetCalls:
    """Return a run for one image and one prompt, of random numbers."""
    shape = (1, unet.config.in_channels, *_extent(unet.config.sample_size))
    sample = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return UNetCalls(unet, protocols, sample, _embeddings(unet.config, 1, seed + 1), _schedule(unet, steps))


def identity(calls: UNetCalls) -> dict[str, Any]:
    """Return what tells a run from others: weights, protocols, timesteps and inputs."""
    told = {"weights": weights_digest(calls.unet), "protocols": calls.protocols.name}
    told["inputs"] = hashlib.sha256(calls.sample.tobytes() + calls.encoder_hidden_states.tobytes()).hexdigest()
    return told | {"timesteps": calls.schedule.timesteps.tolist()}


def folder_of(calls: UNetCalls, keep: Path) -> Path:
    """Return the folder of a run's finished parts."""
    return keep / hashlib.sha256(json.dumps(identity(calls)).encode()).hexdigest()[:12]


def planned(calls: UNetCalls, keep: Path, progress: Progress = silent) -> dict[str, dict[int, float]] | None:
    """Return what rings by value are planned from, for sets that have them: inputs other than the run's. Kept in a file."""
    if calls.protocols.significant_bits is None:
        return None
    path = keep / "sizes.json"
    if not path.exists():
        write_json(path, sizes_by_block(calls_of(calls.unet, calls.protocols, calls.schedule.steps, seed=12), progress))
    read = json.loads(path.read_text())
    return {block: {int(number): size for number, size in sizes.items()} for block, sizes in read.items()}


def run(
    unet: UNet,
    keep: Path,
    *,
    protocols: Protocols = FAST_64,
    steps: int = 1,
    about: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Draw with a prepared U-Net in plaintext and on three parties, and return the record; `about` says what the weights are.

    The run is for one image and one prompt, by DDIM without guidance. Finished parts, in the folder `keep`, are not computed
    again. "error" has rms and max of the parties' latents and of the emulation, against diffusers' and in units of their rms;
    "decode_seconds" is what the client then takes to decode them by an autoencoder of Stable Diffusion's shape. Raises
    CipherDMError as `run_on_parties`, or if values leave the ring.
    """
    calls = calls_of(unet, protocols, steps)
    keep = folder_of(calls, keep)
    # The parties take longest. The emulation takes minutes and tells whether they would fail, so it comes first.
    emulated = kept(keep / "emulated.npy", lambda: run_in_plaintext(calls, progress))
    if not np.isfinite(emulated).all():
        shown = "as its emulation in plaintext shows; the parties were not started. Choose another protocol set."
        raise CipherDMError(f"in {protocols.name} the values of {unet.folder.name} leave the ring, {shown}")
    expected = kept(keep / "diffusers.npy", lambda: _by_diffusers(calls))
    found, rows = run_on_parties(calls, keep / "run", identity(calls), progress, planned(calls, keep, progress))
    return {
        **_described(calls, about),
        **sum_totals(rows),
        "share_seconds": sum(row["share_seconds"] for row in rows),
        "decode_seconds": _decoding(found),
        "peak_memory": max(row["peak_memory"] for row in rows),
        "processes": sum(row["first_of_process"] for row in rows),
        "error": {"parties": _error(found, expected), "emulated": _error(emulated, expected)},
        "rows": [{name: value for name, value in row.items() if name != "writes"} for row in rows],
    }


def by_plan(
    unet: UNet, keep: Path, protocols: Protocols, steps: int, about: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """Return bytes and rounds of a run that nobody makes, which plans of walks say exactly."""
    calls = calls_of(unet, protocols, steps)
    rows = ledger(calls, planned(calls, folder_of(calls, keep), progress), progress)
    return {
        **_described(calls, about),
        **{name: sum(row[name] for row in rows) for name in ("bytes", "rounds")},
        "rows": rows,
    }


def _described(calls: UNetCalls, about: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "benchmark": "full_call",
        "model": calls.unet.folder.resolve().name,
        **(about or {}),
        "config": calls.unet.config.to_diffusers(),
        "protocols": calls.protocols.name,
        "timesteps": calls.schedule.timesteps.tolist(),
        "sample_shape": list(calls.sample.shape),
        "tokens": calls.encoder_hidden_states.shape[1],
        "parameters": sum(int(array.size) for array in calls.unet.params.values()),
    }


def summary(record: dict[str, Any]) -> str:
    """Return two sentences about a run."""
    count = len(record["timesteps"])
    return (
        f"{'One call' if count == 1 else f'{count} calls'} of {record['parameters'] / 1e6:.0f} million parameters in "
        f"{record['seconds'] / 60:.1f} minutes, and "
        f"{record['share_seconds'] / 60:.1f} to prepare and share weights; the parties sent {record['bytes'] / 1e9:.2f} GB in "
        f"{record['sends']:,} messages and held at most {record['peak_memory'] / 2**30:.2f} GiB each. Error against diffusers: "
        f"{record['error']['parties']['rms']:.4f} of the rms, in emulation {record['error']['emulated']['rms']:.4f}."
    )


def _embeddings(config: UNetConditionConfig, count: int, seed: int) -> np.ndarray:
    """Return embeddings [count, 77, width] of numbers about 1, as CLIP's are, with as many tokens as its prompts have."""
    return np.random.default_rng(seed).standard_normal((count, 77, config.cross_attention_dim), np.float32)


def _by_diffusers(calls: UNetCalls) -> np.ndarray:
    """Return the latents of diffusers' own loop, in float32."""
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    folder = calls.unet.folder
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    network = UNet2DConditionModel.from_pretrained(home).eval()
    scheduler = DDIMScheduler.from_config(dict(calls.unet.scheduler_config) | _SPACING)
    scheduler.set_timesteps(calls.schedule.steps)
    latents, prompt = torch.tensor(calls.sample), torch.tensor(calls.encoder_hidden_states)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            latents = scheduler.step(network(latents, timestep, prompt).sample, timestep, latents).prev_sample
    return latents.numpy()


def _decoding(latents: np.ndarray) -> float:
    """Return the seconds that decoding takes on the client."""
    import torch
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL(**_VAE).eval()
    start = perf_counter()
    with torch.no_grad():
        autoencoder.decode(torch.tensor(latents))
    return perf_counter() - start


def _error(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Return rms and maximum of the difference, in units of the rms of the expected values."""
    unit = float(np.sqrt(np.mean(expected.astype(np.float64) ** 2)))
    difference = np.abs(found.astype(np.float64) - expected)
    return {"rms": float(np.sqrt(np.mean(difference**2))) / unit, "max": float(difference.max()) / unit}


KINDS = {
    "context": ("cross-attention", PALETTE[4]),
    "self_attention": ("self-attention", PALETTE[1]),
    "cross_attention": ("cross-attention", PALETTE[4]),
    "feed_forward": ("feed-forward", PALETTE[5]),
    "resnet": ("residual block", PALETTE[3]),
}
"""Shown name and colour of each kind of block; all others are `OTHER`."""

OTHER = ("projections, resampling, ends", "#bbbbbb")


def full_call_frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each block: part, kind as it is shown, seconds, MB, rounds, GiB of the party that held most."""
    rows = pd.DataFrame(record["rows"])
    kinds = [KINDS.get(kind, OTHER)[0] for kind in rows["kind"]]
    frame = pd.DataFrame({"part": rows["block"].map(_part), "kind": kinds, "seconds": rows["seconds"]})
    return frame.assign(MB=rows["bytes"] / 1e6, rounds=rows["rounds"], GiB=rows["peak_memory"] / 2**30)


def full_call_figure(record: Mapping[str, Any]) -> Figure:
    """Draw the seconds of each part of the U-Net, stacked by kind of block, and the most memory that a party held in it."""
    frame = full_call_frame(record)
    seconds = frame.pivot_table(index="part", columns="kind", values="seconds", aggfunc="sum", fill_value=0)
    # Keys and values of the prompt are computed first, but belong to parts that come later.
    order = ("first", "down", "middle", "up", "last")
    parts = sorted(set(frame["part"]), key=lambda part: (order.index(part.split()[0]), part))
    colours = dict([*KINDS.values(), OTHER])
    seconds = seconds.reindex(index=parts, columns=list(colours), fill_value=0)
    memory = frame.groupby("part")["GiB"].max().reindex(parts)
    figure = new_figure(9.0, 1.3 + 0.3 * len(parts))
    time, held = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    left = seconds.cumsum(axis="columns") - seconds
    for kind, colour in colours.items():
        time.barh(range(len(parts)), seconds[kind], left=left[kind], color=colour, height=0.75)
    held.barh(range(len(parts)), memory, color=GREY, height=0.75)
    time.set_xlabel(f"seconds, of {record['seconds']:,.0f} in all")
    held.set_xlabel("GiB held by a party at most")
    labels = [f"{part}, {_part_extent(part, record['config'])}" for part in parts]
    time.set_yticks(range(len(parts)), labels, fontsize=9)
    time.invert_yaxis()
    for axis in (time, held):
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
    handles = [Patch(color=colour, label=kind) for kind, colour in colours.items() if seconds[kind].any()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    total, sums = record["seconds"], seconds.sum().sort_values(ascending=False)
    return describe(
        figure,
        f"Stacked bars for one call of a U-Net of {record['parameters'] / 1e6:.1f} million parameters under "
        f"{record['protocols']}, by part: {total:,.0f} seconds, of which {sums.index[0]} {sums.iloc[0] / total:.0%} and "
        f"{sums.index[1]} {sums.iloc[1] / total:.0%}. Beside it the memory that a party held at most in each part, "
        f"{memory.min():.2f} to {memory.max():.2f} GiB.",
    )


def _part(block: str) -> str:
    """Return "down 0" for "down_blocks.0.resnets.1", "first layer" for "conv_in"."""
    head, *rest = block.split(".")
    if head in ("down_blocks", "up_blocks"):
        return f"{head.removesuffix('_blocks')} {rest[0]}"
    names = {"conv_in": "first layer", "mid_block": "middle", "conv_out": "last layer", "scheduler": "last layer"}
    return names.get(head, head)


def _part_extent(part: str, config: Mapping[str, Any]) -> str:
    """Return "64 x 64": latents are halved from one level down to the next, and doubled on the way up."""
    last = len(config["block_out_channels"]) - 1
    way, number = part.split()[0], int(part.split()[1]) if part[-1].isdigit() else 0
    level = {"down": number, "middle": last, "up": last - number}.get(way, 0)
    return " x ".join(str(-(-size // 2**level)) for size in _extent(config["sample_size"]))


def _extent(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of latents, from a configuration's sample_size."""
    return (size, size) if isinstance(size, int) else tuple(size)


def measure(
    model: Annotated[
        Path | None, typer.Argument(help="Folder of Stable Diffusion 1.x; random weights of its shape by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Calls of the U-Net, which make a picture.", min=1)] = 1,
    scores: Annotated[
        float,
        typer.Option(help="Largest attention score, about its row's mean, of random weights; as it comes by default."),
    ] = 0.0,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Use random weights with fewer channels, and smaller latents.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say bytes and rounds, by the plans of fast-64 or fast-rings.")
    ] = False,
    protocols: ProtocolsOption = "fast-64",
    keep: KeepOption = None,
    record: RecordOption = None,
) -> None:
    """Draw with a U-Net of Stable Diffusion's size on three parties, block by block, against diffusers; can be resumed.

    One call by default, from shares of noise and prompt to latents that the client decodes. Random weights and the parties'
    files go into the folder of --keep, which needs some GB for the full size, and 50 GB for several calls. A model's own folder
    gets a calibration if it has none.
    """
    name = ("sd15_step" if steps == 1 else f"sd15_{steps}_calls") + f"_scores-{scores:g}" * (scores > 0)
    name += "_reduced" * reduced + f"_{protocols}" * plan
    path = record_path(record, name)
    keep = keep or checkout() / "runs" / "full_call" / path.stem
    refuse({"--scores is for random weights: leave the model out": scores and model is not None})
    config, folder = REDUCED if reduced else SD15, keep / ("model" + f"-scores-{scores:g}" * (scores > 0))
    unet = prepared(folder, config, steps, scores) if model is None else prepared(model, None, steps)
    about = {"random_weights": model is None, "scores": scores or None}
    with ProgressBar("run") as bar:
        if plan:
            found = by_plan(unet, keep, named(protocols), steps, about, bar)
            typer.echo(f"It would take {found['bytes'] / 1e9:.2f} GB in {found['rounds']:,} rounds.")
        else:
            found = run(unet, keep, protocols=named(protocols), steps=steps, about=about, progress=bar)
            typer.echo(summary(found))
    finish(path, found)


_RINGS = ("bench", "full-call", "--protocols", "fast-rings")


def _checks(record: str, gigabytes: float) -> tuple[Check, ...]:
    error = field(record, "error", "parties", "rms")
    return (
        Check("error against diffusers, of the rms", 0.1, 0, error, 0, 3, bound="most"),
        Check("GB of all parties", gigabytes, 0.5, field(record, "bytes", factor=1e-9), unit=" GB"),
    )


TARGET = Target(
    "sd15-step",
    "One U-Net call of Stable Diffusion 1.5's size, block by block",
    "parties compute with weights whose shares do not fit into memory, one block after the other",
    "ours",
    (Command("sd15_step", _RINGS, (), ("--reduced",), resumes=True),),
    _checks("sd15_step", 20.7),
    lambda records: full_call_figure(read_record(records / "sd15_step.json")),
    order=110,
)

PICTURE = Target(
    "sd15-picture",
    "A picture of Stable Diffusion 1.5's size in four calls, from sharing to decoding",
    "a whole picture takes minutes on two cores",
    "ours",
    (Command("sd15_4_calls", (*_RINGS, "--steps", "4"), (), ("--reduced",), resumes=True),),
    _checks("sd15_4_calls", 82.4),
    order=111,
)
